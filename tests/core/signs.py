"""A leaf whose products are exact, so that equality is to the bit.

It is a matrix of signs with one power of two for each column, and x holds small
integers.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import lift


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Signs(array.CompressedArray):
  """Stands for sign * scale: int8 [..., n, m] and float32 [..., 1, m]."""

  sign: jax.Array
  scale: jax.Array
  shape = property(lambda self: self.sign.shape)
  dtype = property(lambda self: self.scale.dtype)

  def materialize(self):
    return self.sign * self.scale


@lift.rule(lax.dot_general_p, Signs)
def dot_general(lhs, rhs, *, dimension_numbers, preferred_element_type, **_):
  if not isinstance(rhs, Signs):
    return lift.Dense('it is on the left')
  if dimension_numbers != (((lhs.ndim - 1,), (0,)), ((), ())):
    return lift.Dense('it is not x @ w')
  y = jnp.tensordot(lhs, rhs.sign.astype(lhs.dtype), 1)
  scale = rhs.scale.reshape((1,) * (y.ndim - 1) + (-1,))
  return (y * scale).astype(preferred_element_type)


def signs(*shape, seed=0):
  rng = np.random.default_rng(seed)
  sign = rng.choice([-1, 1], shape).astype(np.int8)
  scale = 2.0 ** rng.integers(-2, 2, (*shape[:-2], 1, shape[-1]))
  return Signs(jnp.asarray(sign), jnp.asarray(scale, jnp.float32))


def integers(*shape, seed=1):
  values = np.random.default_rng(seed).integers(-4, 5, shape)
  return jnp.asarray(values, jnp.float32)


W, X = signs(8, 8), integers(4, 8)
STACK = signs(3, 8, 8)
