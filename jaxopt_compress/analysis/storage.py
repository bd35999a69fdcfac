"""What a tree takes in memory."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def nbytes(tree: Any) -> int:
  """Bytes that the arrays of `tree` really occupy.

  Counts what is stored, not what is stood for: a packed int4 leaf counts its
  uint8 payload and its scales. Works on abstract arrays too.

  >>> nbytes({'w': jnp.zeros((3, 4)), 'b': jnp.zeros(4, jnp.bfloat16)})
  56
  """
  return sum(_leaf_nbytes(x) for x in jax.tree.leaves(tree))


def _leaf_nbytes(x) -> int:
  if not hasattr(x, 'dtype'):
    return 0
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.eval_shape(jax.random.key_data, x)
  return math.prod(x.shape) * jnp.dtype(x.dtype).itemsize
