"""Codes of fewer than eight bits, side by side in bytes.

    3 bits:  byte 0 = c2[1:0] c1 c0,  byte 1 = c5[0] c4 c3 c2[2],  byte 2 = ...

Codes follow each other without gaps, the lowest bits first, as in
compressed-tensors: eight 3-bit codes fill three bytes, two 4-bit codes one. Bytes
are unsigned: shifts of signed bytes differ between backends.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp


def unit(bits: int) -> tuple[int, int]:
  """(codes, bytes) of the smallest run of codes that ends with a byte.

  >>> unit(3), unit(4), unit(8)
  ((8, 3), (2, 1), (1, 1))
  """
  whole = math.lcm(bits, 8)
  return whole // bits, whole // 8


def pack(codes: jax.Array, bits: int, axis: int) -> jax.Array:
  """Packs unsigned codes along an axis.

  Args:
    codes: [..., n, ...] uint8 below 2^bits.
    bits: of one code, 1 to 8.
    axis: counted from the end.

  Returns:
    [..., ceil(n / c) * b, ...] uint8 with (c, b) = unit(bits); the last unit is
    filled with zeros.

  >>> pack(jnp.array([0, 15, 9], jnp.uint8), 4, -1)
  Array([240,   9], dtype=uint8)
  """
  per_unit, num_bytes = unit(bits)
  pieces = _in_units(codes, per_unit, axis)
  packed = []
  for j in range(num_bytes):
    byte = jnp.zeros_like(pieces[0])
    for k in range(per_unit):
      # Where code k begins in byte j; below zero, it began in the byte before.
      shift = bits * k - 8 * j
      if -bits < shift < 8:
        byte |= pieces[k] << shift if shift >= 0 else pieces[k] >> -shift
    packed.append(byte)
  return _joined(packed, axis)


def unpack(payload: jax.Array, bits: int, axis: int, tail: int) -> jax.Array:
  """The inverse of `pack`.

  Args:
    payload: [..., m, ...] uint8, whole units.
    bits: of one code.
    axis: counted from the end.
    tail: how many codes of the last unit are filling.

  Returns:
    [..., m / b * c - tail, ...] uint8 codes.
  """
  per_unit, num_bytes = unit(bits)
  pieces = _in_units(payload, num_bytes, axis)
  codes = []
  for k in range(per_unit):
    j, shift = divmod(bits * k, 8)
    # A code that a byte's end cuts has its upper bits lowest in the next byte.
    code = pieces[j] >> shift
    if shift + bits > 8:
      code |= pieces[j + 1] << (8 - shift)
    codes.append(code & (2**bits - 1))
  codes = _joined(codes, axis)
  n = codes.shape[axis]
  return lax.slice_in_dim(codes, 0, n - tail, axis=axis) if tail else codes


def _in_units(x, length, axis):
  """The `length` entries of every unit along `axis`, as separate arrays."""
  position = x.ndim + axis
  fill = -x.shape[axis] % length
  if fill:
    x = jnp.pad(x, [(0, fill * (i == position)) for i in range(x.ndim)])
  shape = x.shape
  split = (
    *shape[:position],
    shape[position] // length,
    length,
    *shape[position + 1 :],
  )
  x = x.reshape(split)
  return [
    lax.index_in_dim(x, i, position + 1, keepdims=False) for i in range(length)
  ]


def _joined(pieces, axis):
  if len(pieces) == 1:
    return pieces[0]
  position = pieces[0].ndim + axis
  stacked = jnp.stack(pieces, axis=position + 1)
  shape = pieces[0].shape
  whole = (
    *shape[:position],
    shape[position] * len(pieces),
    *shape[position + 1 :],
  )
  return stacked.reshape(whole)
