"""W8A8 on GPUs: XLA's own product of int8, of a weight that lies along k.

    y = (codes_x @ codes_w^T - zero_x * totals) * scale_x * scale_w

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
    totals: [1, n] int32, for codes of x with zero points; None for symmetric ones.
  """

  codes: jax.Array
  scale: jax.Array
  totals: jax.Array | None = None


def lay_out(
  codes: jax.Array, scale: jax.Array, *, symmetric: bool = True
) -> Weight:
  """The layout of a weight codes [k, n] * scale [1, n]."""
  totals = None if symmetric else _dynamic().totals(codes)
  return Weight(codes.T[None], scale, totals)


def restore(weight: Weight, *, k: int, n: int) -> tuple[jax.Array, jax.Array]:
  """The inverse of `lay_out`: codes [k, n], scale [1, n]."""
  del k, n  # Nothing was filled up.
  return weight.codes[0].T, weight.scale


def matmul(x: jax.Array, weight: Weight) -> jax.Array:
  """quantize(x) @ weight: [m, n] of the dtype of x [m, k]."""
  symmetric = weight.totals is None
  codes, scale, zero = _dynamic().quantize(x, symmetric=symmetric)
  along = (((1,), (1,)), ((), ()))
  sums = lax.dot_general(
    codes, weight.codes[0], along, preferred_element_type=jnp.int32
  )
  if zero is not None:
    sums = sums - zero * weight.totals
  y = sums.astype(jnp.float32) * scale * weight.scale.astype(jnp.float32)
  return y.astype(x.dtype)


def _dynamic():
  # Imported where it is needed, as the room imports Pallas.
  from jaxopt_compress.kernels.pallas import dynamic

  return dynamic
