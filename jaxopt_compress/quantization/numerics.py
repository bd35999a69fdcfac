"""Numbers: from floats to integer codes and back, and two int4 codes to a byte.

    code  = clip(round(x * (1 / scale)), qmin, qmax)      ties to even
    x_hat = code * scale
    scale = absmax(x) * (1 / bound),  bound = (2^bits - 1) / 2

`bound` puts the largest magnitude half a step outside the grid's positive end,
as compressed-tensors and AQT do, so a step is 255/254 (int8) or 15/14 (int4)
smaller than with `bound = qmax` and the largest error stays half a step.

Divisions are written as products with a reciprocal: XLA rewrites x / s anyway,
and a product rounds the same way in every program and in numpy, so codes do not
depend on where they are computed.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Format:
  """A symmetric integer format.

  Attributes:
    name: as users write it.
    bits: bits of one code; codes of 4 bits are stored two to a byte.
  """

  name: str
  bits: int

  @property
  def qmin(self) -> int:
    return -(2 ** (self.bits - 1))

  @property
  def qmax(self) -> int:
    return 2 ** (self.bits - 1) - 1

  @property
  def bound(self) -> float:
    return (2**self.bits - 1) / 2

  @property
  def packed(self) -> bool:
    return self.bits == 4


FORMATS = {f.name: f for f in (Format('int8', 8), Format('int4', 4))}


def absmax_scale(
  x: jax.Array, format: Format, axes: tuple[int, ...], dtype=jnp.float32
) -> jax.Array:
  """The scale that just covers `x` along `axes`.

  Args:
    x: [...], floating.
    format: the integer format.
    axes: reduced axes.
    dtype: of the scale, float32 or bfloat16.

  Returns:
    Positive scale of the rank of `x`, size 1 on `axes`; where `x` is all zeros,
    the smallest normal number.
  """
  absmax = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axes, keepdims=True)
  scale = absmax * np.float32(1 / format.bound)
  return jnp.maximum(scale, np.float32(jnp.finfo(dtype).tiny)).astype(dtype)


def encode(x: jax.Array, scale: jax.Array, format: Format) -> jax.Array:
  """Codes of `x`: int8 of its shape, in [qmin, qmax]. `scale` broadcasts."""
  inverse = 1 / scale.astype(jnp.float32)
  codes = jnp.round(x.astype(jnp.float32) * inverse)
  return jnp.clip(codes, format.qmin, format.qmax).astype(jnp.int8)


def pack(codes: jax.Array, axis: int) -> jax.Array:
  """Two int4 codes to a byte along `axis`: code 2i low, code 2i+1 high.

  Args:
    codes: [..., n, ...] int8 in [-8, 7].
    axis: the packed axis, counted from the end.

  Returns:
    [..., ceil(n / 2), ...] uint8 of code + 8; an odd tail is filled with code 0.

  >>> pack(jnp.array([-8, 7, 1], jnp.int8), -1)
  Array([240, 137], dtype=uint8)
  """
  position = codes.ndim + axis
  nibbles = (codes + 8).astype(jnp.uint8)
  if codes.shape[position] % 2:
    tail = [(0, int(i == position)) for i in range(codes.ndim)]
    nibbles = jnp.pad(nibbles, tail, constant_values=8)
  shape = nibbles.shape
  split = (*shape[:position], shape[position] // 2, 2, *shape[position + 1 :])
  pairs = nibbles.reshape(split)
  low = jax.lax.index_in_dim(pairs, 0, position + 1, keepdims=False)
  high = jax.lax.index_in_dim(pairs, 1, position + 1, keepdims=False)
  return low | (high << 4)


def unpack(payload: jax.Array, axis: int, odd: bool) -> jax.Array:
  """The inverse of `pack`: int8 codes.

  Args:
    payload: [..., m, ...] uint8.
    axis: the packed axis, counted from the end.
    odd: whether the last high nibble is filling.

  Returns:
    [..., 2 m - odd, ...] int8.
  """
  position = payload.ndim + axis
  pairs = jnp.stack([payload & 15, payload >> 4], axis=position + 1)
  n = 2 * payload.shape[position]
  shape = (*payload.shape[:position], n, *payload.shape[position + 1 :])
  codes = pairs.reshape(shape).astype(jnp.int8) - 8
  return jax.lax.slice_in_dim(codes, 0, n - odd, axis=position)


def by_group(x: jax.Array, group: int, axis: int) -> jax.Array:
  """Repeats group scales [..., ceil(n/group), ...] to [..., >= n, ...]."""
  return jnp.repeat(x, group, axis=axis)
