"""Bits: which entries are zero, and small numbers side by side in bytes.

Zero is the pattern of no bits at all: -0.0, NaN and the smallest subnormal have some.
Patterns are compared, not numbers, as XLA takes subnormals for zero.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def has_patterns(dtype) -> bool:
  """Whether an array of this type can be seen as whole bytes, 0 being no bits."""
  dtype = jnp.dtype(dtype)
  if dtype == jnp.float8_e8m0fnu:
    return False  # It has no zero: no bits at all are 2^-127.
  kinds = jnp.floating, jnp.integer
  return any(jnp.issubdtype(dtype, k) for k in kinds) and (
    dtype.itemsize * 8 == _width(dtype)
  )


def _width(dtype) -> int:
  of = jnp.finfo if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo
  return of(dtype).bits


def nonzero(x: jax.Array) -> jax.Array:
  """Which entries have a bit that is set: bool, the shape of `x`.

  >>> nonzero(jnp.float32([0., -0., 1e-45])).tolist()
  [False, True, True]
  """
  x = jnp.asarray(x)
  return lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}') != 0


def pack(numbers: jax.Array, width: int) -> jax.Array:
  """Numbers of `width` bits, one after the other along the last axis, lowest first.

  Args:
    numbers: [..., n] unsigned, below 2^width.
    width: of one, in bits.

  Returns:
    [..., ceil(n * width / 8)] uint8, filled with zeros at the end.

  >>> pack(jnp.uint8([3, 0, 1, 2]), 2).tolist()
  [147]
  """
  at = _along_last(np.arange(width), numbers.ndim)
  ones = (numbers.astype(jnp.int32)[..., None] >> at) & 1
  ones = ones.reshape(*numbers.shape[:-1], numbers.shape[-1] * width)
  return jnp.packbits(ones.astype(jnp.uint8), axis=-1, bitorder='little')


def unpack(packed: jax.Array, width: int, n: int) -> jax.Array:
  """The inverse of `pack`: [..., n] int32."""
  ones = jnp.unpackbits(packed, axis=-1, bitorder='little')[..., : n * width]
  ones = ones.reshape(*packed.shape[:-1], n, width).astype(jnp.int32)
  return (ones << _along_last(np.arange(width), packed.ndim)).sum(-1)


def _along_last(x, lead):
  """[n] to [1, ..., 1, n] with `lead` axes in front."""
  return x.astype(np.int32).reshape((1,) * lead + (-1,))
