"""Scales: from the range of a block to a scale, a zero point, and their storage.

    symmetric    scale = reach / bound,  reach = max|x|
    asymmetric   scale = reach / bound,  reach = (high - low) / 2,
                 zero such that low is the lowest number; low <= 0 <= high
    e8m0         scale = 2^k, by one of four rules
    e4m3, int8   scale_hat = scale * global_scale + global_offset

Divisions are written as products with a reciprocal: XLA rewrites x / s anyway, and
a product rounds the same way in every program and in numpy.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.quantization import blocks as blocks_lib
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import spec as spec_lib

_TINY = np.float32(np.finfo(np.float32).tiny)
# Up to which of its scales a global scale of double quantisation reaches.
_SUPERBLOCK = 256


class Scales(NamedTuple):
  """Scales as they are stored.

  `scale_hat = scale * global_scale + global_offset`, where they are not None;
  `global_blocks` says how many entries of the array share a global scale.
  """

  scale: jax.Array
  global_scale: jax.Array | None = None
  global_offset: jax.Array | None = None
  global_blocks: blocks_lib.Blocks = ()


# --------------------------------------------------------------------- ranges


def reach_and_center(x, spec: spec_lib.Spec, blocks):
  """Half the range of each block, and where its middle is; None for zero.

  Args:
    x: [...] float32.
    spec: its format and whether it is symmetric.
    blocks: what shares a scale.

  Returns:
    reach, center: the rank of x, one entry a block.
  """
  if spec.format in ('binary', 'ternary'):
    if spec.symmetric:
      return _few_levels(x, spec.format, blocks), None
    center = blocks_lib.mean(x, blocks)
    apart = x - blocks_lib.expand(center, blocks, x.shape)
    return _few_levels(apart, spec.format, blocks), center
  if spec.symmetric:
    return blocks_lib.reduce(jnp.max, jnp.abs(x), blocks), None
  low = jnp.minimum(blocks_lib.reduce(jnp.min, x, blocks), 0)
  high = jnp.maximum(blocks_lib.reduce(jnp.max, x, blocks), 0)
  # Halves first: the difference of two large numbers is infinite.
  low, high = low * np.float32(0.5), high * np.float32(0.5)
  return high - low, high + low


def _few_levels(x, name, blocks):
  """The number that two or three levels -s, (0,) s are best placed at.

  Binary: the mean magnitude, Rastegari et al. 2016, XNOR-Net,
  https://arxiv.org/abs/1603.05279, eq. 6. Ternary: the mean of the magnitudes
  above 0.7 of their mean, Li et al. 2016, Ternary Weight Networks,
  https://arxiv.org/abs/1605.04711, eqs. 5 and 6.
  """
  magnitude = jnp.abs(x)
  mean = blocks_lib.mean(magnitude, blocks)
  if name == 'binary':
    return mean
  threshold = blocks_lib.expand(np.float32(0.7) * mean, blocks, x.shape)
  large = magnitude > threshold
  total = blocks_lib.reduce(jnp.sum, jnp.where(large, magnitude, 0), blocks)
  n = blocks_lib.reduce(jnp.sum, large.astype(jnp.float32), blocks)
  return total / jnp.maximum(n, 1)


def zero_point(center, scale_hat, spec: spec_lib.Spec):
  """The number that stands for zero: int8 for integers, else float32.

  Args:
    center: middle of the range of each block.
    scale_hat: float32 scale of each block, as it is read back.
    spec: the format.
  """
  fmt = spec.numbers
  middle = np.float32((fmt.highest + fmt.lowest) / 2)
  zero = middle - center * (1 / scale_hat)
  if fmt.integer and fmt.bits > 2:
    return jnp.clip(jnp.round(zero), fmt.lowest, fmt.highest).astype(jnp.int8)
  return zero


# -------------------------------------------------------------------- storage


def stored(
  reach, spec: spec_lib.Spec, blocks, shape, stacked=(), shrink=None
) -> Scales:
  """Scales that take `reach` to the bound of the format, as they are stored.

  A scale that its own format cannot hold is brought to the nearest one that it
  can, never to zero.

  Args:
    reach: [...] float32, half the range of each block.
    spec: how.
    blocks: what shares a scale.
    shape: of the array.
    stacked: axes along which matrices lie, for scales of a second level.
    shrink: how much smaller each range is to be, or None; a second level is that
      of the whole ranges, so that searching one block's leaves the others alone.
  """
  fmt = spec.numbers
  whole, reach = reach, reach if shrink is None else reach * shrink
  if spec.scale == 'e8m0':
    return Scales(power_of_two(reach, fmt, spec.rule))
  whole, scale = (
    jnp.maximum(r * np.float32(1 / fmt.bound), _TINY) for r in (whole, reach)
  )
  if spec.scale == 'e4m3':
    return _two_levels(scale, whole, stacked)
  if spec.scale == 'int8':
    return _double(scale, whole, blocks, shape, stacked)
  return Scales(scale.astype(jnp.dtype(spec.scale)))


def read(s: Scales, blocks: blocks_lib.Blocks) -> jax.Array:
  """float32 scales, the shape of `s.scale`; positive.

  Args:
    s: as they are stored.
    blocks: how many entries of the array share a scale.
  """
  scale = s.scale.astype(jnp.float32)
  if s.global_scale is None:
    return scale
  # Global blocks count entries of the array; divided by the size of a block, scales.
  sizes = dict(blocks)
  in_scales = tuple((a, n // sizes.get(a, 1)) for a, n in s.global_blocks)
  scale = scale * blocks_lib.expand(s.global_scale, in_scales, scale.shape)
  if s.global_offset is not None:
    scale = jnp.maximum(scale + s.global_offset, _TINY)
  return scale


def power_of_two(reach: jax.Array, fmt: formats.Format, rule: str) -> jax.Array:
  """E8M0 scales: 2^k for k in [-126, 127 - emax].

  With emax the exponent of the format's largest number,
    floor  k = floor(log2 reach) - emax             OCP MX v1.0, section 6.3
    rceil  k = ceil(log2(reach / largest))
    even   floor, after rounding `reach` to as many mantissa bits as a number has
    compressed-tensors  the same with one mantissa bit, three for e2m3

  Args:
    reach: [...] float32, largest magnitude of each block.
    fmt: format of the numbers.
    rule: as above.

  Returns:
    [...] float8_e8m0fnu; NaN where `reach` is not finite.
  """
  fraction, emax = np.frexp(np.float32(fmt.highest))
  emax = int(emax) - 1
  bits = lax.bitcast_convert_type(reach, jnp.int32)
  if rule == 'rceil':
    # One more where the mantissa exceeds that of the largest number: exact.
    bits = bits + (0x7FFFFF - int((2 * fraction - 1) * 2**23))
  elif rule != 'floor':
    integer = int(fmt.highest).bit_length() - 1
    even = getattr(fmt, 'mantissa', integer)
    mantissa = even if rule == 'even' or fmt.name == 'e2m3' else 1
    bits = bits + (1 << (22 - mantissa))
  # The exponent field of a float32 is floor(log2) + 127: exact, where a logarithm
  # rounds. What was added above carries into it.
  exponent = (bits >> 23) - 127 - emax
  # What is rounded up for numbers next to infinity would take them there.
  exponent = jnp.clip(exponent, -126, 127 - emax)
  code = jnp.where(jnp.isfinite(reach), exponent + 127, 255).astype(jnp.uint8)
  return lax.bitcast_convert_type(code, jnp.float8_e8m0fnu)


def _two_levels(scale, whole, stacked) -> Scales:
  """e4m3 scales under one float32 scale for each matrix (NVFP4)."""
  e4m3 = formats.FORMATS['e4m3']
  matrix = tuple(i for i in range(scale.ndim) if i - scale.ndim not in stacked)
  largest = jnp.max(whole, axis=matrix, keepdims=True)
  shared = jnp.maximum(largest * np.float32(1 / e4m3.highest), _TINY)
  small = scale * (1 / shared)
  # The smallest number of the format rather than zero.
  return Scales(e4m3.round(jnp.maximum(small, np.float32(2**-9))), shared)


def _double(scale, whole, blocks, shape, stacked) -> Scales:
  """int8 scales around their mean, 256 of them under a float32 scale.

  Dettmers et al. 2023, QLoRA, https://arxiv.org/abs/2305.14314, section 3.
  """
  ndim = scale.ndim
  matrix = tuple(i for i in range(ndim) if i - ndim not in stacked)
  mean = jnp.mean(whole, axis=matrix, keepdims=True)
  # As many as there are along the grouped axis, then along the last other.
  sizes = dict(blocks)
  order = sorted(
    (i - ndim for i in matrix), key=lambda a: (not sizes.get(a), -a)
  )
  superblocks, room = [], _SUPERBLOCK
  for axis in order:
    along = min(scale.shape[axis], room)
    room = max(room // along, 1)
    superblocks.append((axis, along))
  superblocks = tuple((a, s) for a, s in superblocks if s > 1)
  largest = blocks_lib.reduce(jnp.max, jnp.abs(whole - mean), superblocks)
  shared = jnp.maximum(largest * np.float32(1 / 128), _TINY)
  full = blocks_lib.expand(shared, superblocks, scale.shape)
  codes = formats.FORMATS['int8'].round((scale - mean) * (1 / full))
  entries = tuple((a, s * (sizes.get(a) or 1)) for a, s in superblocks)
  return Scales(codes, shared, mean, blocks_lib.inner_sizes(shape, entries))
