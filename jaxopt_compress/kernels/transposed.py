"""W8A8 on GPUs: XLA's own product of int8, of a weight that lies along k.

    y = (codes_x @ codes_w^T) * scale_x * scale_w

Tensor cores read both operands of int8 along k. Of a weight [k, n] XLA makes that
in every call, or, of few rows, a slow loop.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp


class Weight(NamedTuple):
  """A weight as the product reads it.

  Attributes:
    codes: [1, n, k] int8.
    scale: [1, n] floating.
  """

  codes: jax.Array
  scale: jax.Array


def lay_out(codes: jax.Array, scale: jax.Array) -> Weight:
  """The layout of a weight codes [k, n] * scale [1, n]."""
  return Weight(codes.T[None], scale)


def restore(weight: Weight, *, k: int, n: int) -> tuple[jax.Array, jax.Array]:
  """The inverse of `lay_out`: codes [k, n], scale [1, n]."""
  del k, n  # Nothing was filled up.
  return weight.codes[0].T, weight.scale


def matmul(x: jax.Array, weight: Weight) -> jax.Array:
  """quantize(x) @ weight: [m, n] of the dtype of x [m, k]."""
  # Imported here, as the room imports Pallas.
  from jaxopt_compress.kernels.pallas import dynamic

  codes, scale = dynamic.quantize(x)
  along = (((1,), (1,)), ((), ()))
  sums = lax.dot_general(
    codes, weight.codes[0], along, preferred_element_type=jnp.int32
  )
  y = sums.astype(jnp.float32) * scale * weight.scale.astype(jnp.float32)
  return y.astype(x.dtype)
