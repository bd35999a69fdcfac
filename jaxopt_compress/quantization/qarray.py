"""The leaf: codes and scales.

    QArray      stands for  (number - zero) * scale
    QDotArray   the same, and its products quantise the other operand as well

`number` is what a code means in its format; scale and zero are broadcast over what
shares them.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis.plan import gathered
from jaxopt_compress.core import array
from jaxopt_compress.quantization import blocks as blocks_lib
from jaxopt_compress.quantization import clip
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import granularity
from jaxopt_compress.quantization import hqq
from jaxopt_compress.quantization import packing
from jaxopt_compress.quantization import scales as scales_lib
from jaxopt_compress.quantization import spec as spec_lib


class Part(NamedTuple):
  """One array of a leaf, and how its axes follow those of the leaf.

  Attributes:
    array: of the rank of the leaf; size 1 on axes that it is shared along.
    units: {axis from the end: (entries, stored)}, how many entries of the leaf
      are how many of the array; (1, 1) where nothing is said.
    packed: whether its units are codes that share bytes, rather than a scale.
  """

  array: jax.Array
  units: dict[int, tuple[int, int]]
  packed: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QArray(array.CompressedArray):
  """Stands for `(number(qvalue) - zero) * scale`: [..., n, ...] of `dtype`.

  All arrays have the rank of what they stand for, and size 1 on the axes that
  they are shared along.

  Attributes:
    qvalue: codes. int8 or float8 of the full shape; formats of fewer bits are
      packed along the axis `packed`, in uint8.
    scale: float32, bfloat16, or of the second level's type; ceil(n / size)
      entries on an axis with blocks.
    zero: None; or the number that stands for zero, the shape of `scale`: int8
      for integer formats, float32 for others.
    global_scale: None; or float32 scales of the scales.
    global_offset: None; or float32, added to the scales.
    format: name of the number format.
    dtype: of the array that this stands for.
    packed: the axis, counted from the end, along which codes share bytes; 0 for
      none.
    tail: filling codes at the end of the packed axis.
    blocks: ((axis, size), ...), how many entries share a scale, on axes where
      it is neither one nor all.
    global_blocks: the same of global_scale.
  """

  qvalue: jax.Array
  scale: jax.Array
  zero: jax.Array | None
  global_scale: jax.Array | None
  global_offset: jax.Array | None
  format: str = dataclasses.field(metadata={'static': True})
  dtype: jnp.dtype = dataclasses.field(metadata={'static': True})
  packed: int = dataclasses.field(default=0, metadata={'static': True})
  tail: int = dataclasses.field(default=0, metadata={'static': True})
  blocks: blocks_lib.Blocks = dataclasses.field(
    default=(), metadata={'static': True}
  )
  global_blocks: blocks_lib.Blocks = dataclasses.field(
    default=(), metadata={'static': True}
  )

  @property
  def numbers_format(self) -> formats.Format:
    return formats.FORMATS[self.format]

  @property
  def shape(self):
    shape = list(self.qvalue.shape)
    if self.packed:
      codes, num_bytes = packing.unit(self.numbers_format.bits)
      n = shape[self.packed]
      shape[self.packed] = n // num_bytes * codes - self.tail
    return tuple(shape)

  def dtypes(self):
    codes = self.numbers_format.native or jnp.dtype(jnp.uint8)
    of_two_levels = self.global_offset is not None
    scale = jnp.dtype(jnp.int8) if of_two_levels else jnp.floating
    return dict(qvalue=codes, scale=scale)

  @property
  def integer(self) -> bool:
    """Whether its numbers are integers, so that products can be."""
    return self.numbers_format.integer

  @property
  def codes(self) -> jax.Array:
    """Stored codes, one an entry, of `shape`."""
    if not self.packed:
      return self.qvalue
    bits = self.numbers_format.bits
    return packing.unpack(self.qvalue, bits, self.packed, self.tail)

  @property
  def numbers(self) -> jax.Array:
    """What the codes mean: int8 for integer formats, else float32; `shape`."""
    return self.numbers_format.numbers(self.codes)

  @property
  def scale_hat(self) -> jax.Array:
    """float32 scales as they are used, the shape of `scale`."""
    s = scales_lib.Scales(
      self.scale, self.global_scale, self.global_offset, self.global_blocks
    )
    return scales_lib.read(s, self.blocks)

  def materialize(self):
    x = self.numbers.astype(jnp.float32)

    def spread(p):
      return blocks_lib.expand(p, self.blocks, self.shape)

    if self.zero is not None:
      x = x - spread(self.zero.astype(jnp.float32))
    return (x * spread(self.scale_hat)).astype(self.dtype)

  def parts(self) -> dict[str, Part]:
    """Its arrays by field, with their units."""
    unit = packing.unit(self.numbers_format.bits)

    def one_a_block(blocks):
      return {a: (n, 1) for a, n in blocks}

    found = {
      'qvalue': Part(self.qvalue, {self.packed: unit}, packed=True)
      if self.packed
      else Part(self.qvalue, {}),
      'scale': Part(self.scale, one_a_block(self.blocks)),
      'zero': Part(self.zero, one_a_block(self.blocks)),
      'global_scale': Part(self.global_scale, one_a_block(self.global_blocks)),
      'global_offset': Part(self.global_offset, {}),
    }
    return {k: p for k, p in found.items() if p.array is not None}

  def with_parts(self, parts: dict[str, Part]) -> 'QArray':
    """The leaf with other arrays, whose units say what is packed and grouped."""
    packed = next(iter(parts['qvalue'].units), 0)

    def sizes(name):
      return tuple(sorted((a, n) for a, (n, _) in parts[name].units.items()))

    return dataclasses.replace(
      self,
      **{name: part.array for name, part in parts.items()},
      packed=packed,
      tail=self.tail if packed else 0,
      blocks=sizes('scale'),
      global_blocks=sizes('global_scale') if 'global_scale' in parts else (),
    )

  def codes_as_stored(self) -> jax.Array:
    """What codes there are, before they are unpacked."""
    return self.qvalue

  def with_codes(self, codes) -> 'QArray':
    """The same leaf with other codes, stored as these are."""
    return dataclasses.replace(self, qvalue=codes)

  def zero_codes(self) -> jax.Array:
    """What `qvalue` is of a weight of zeros, or closest to them: its shape and type."""
    zero = jnp.zeros((1,) * self.ndim) if self.zero is None else self.zero
    codes = self.numbers_format.round(zero.astype(jnp.float32))
    if self.zero is not None:
      codes = blocks_lib.expand(codes, self.blocks, self.shape)
    codes = jnp.broadcast_to(codes, self.shape)
    if not self.packed:
      return codes
    return packing.pack(codes, self.numbers_format.bits, self.packed)

  def unpacked(self) -> 'QArray':
    """The same, one code to a byte."""
    return dataclasses.replace(self, qvalue=self.codes, packed=0, tail=0)

  def of_one_level(self) -> 'QArray':
    """The same, without scales of its scales."""
    return dataclasses.replace(
      self,
      scale=self.scale_hat,
      global_scale=None,
      global_offset=None,
      global_blocks=(),
    )

  def can_cut(self, axis, size):
    for part in self.parts().values():
      # A cut between codes of one byte, or inside of a group, has no bytes or scale
      # of its own.
      entries, _ = part.units.get(axis, (1, 1))
      if entries > 1 and (part.packed or part.array.shape[axis] > 1):
        if size == 1 or size % entries:
          return False
    return True

  def taken(self, index: np.ndarray, axis: int) -> 'QArray':
    """The entries `index` along an axis, counted from the end.

    Args:
      index: int [new size]; or of the rank of the leaf, where other entries are taken
        for each entry of other axes.

    Raises:
      ValueError: entries that share a scale do not stay together.
    """
    rows = index.ndim > 1
    repack = self.packed if rows or self.packed == axis else 0
    q = self.unpacked() if repack else self
    parts = {}
    for name, part in q.parts().items():
      x, entries = part.array, part.units.get(axis, (1, 1))[0]
      mine = index
      if entries > 1:
        at = axis if rows else 0
        mine = _whole_blocks(index, at, entries, q.shape[axis], axis)
      elif x.shape[axis] != q.shape[axis]:  # shared
        parts[name] = part
        continue
      if rows and part.units.keys() - {axis}:
        raise ValueError(
          f'entries along axis {axis} differ from row to row, and groups of rows'
          ' share a scale. Shrink what this was quantised from, then quantise.'
        )
      x = gathered.taken(x, {x.ndim + axis: mine})
      parts[name] = part._replace(array=x)
    q = q.with_parts(parts)
    several = {
      name: tuple((a, n) for a, n in getattr(q, name) if n < q.shape[a])
      for name in ('blocks', 'global_blocks')
    }
    q = dataclasses.replace(q, **several)
    if not repack:
      return q
    bits = q.numbers_format.bits
    tail = -q.shape[repack] % packing.unit(bits)[0]
    codes = packing.pack(q.qvalue, bits, repack)
    return dataclasses.replace(q, qvalue=codes, packed=repack, tail=tail)

  def describe(self):
    return f'{self.format} {granularity.words(self)}'


def _whole_blocks(index, at, size, n, axis) -> np.ndarray:
  """The blocks of `size` that entries of an axis of n are, or ValueError."""
  index = np.moveaxis(index, at, -1)
  count = index.shape[-1]
  blocks = index[..., ::size] // size
  # The last block of an axis may be shorter: it is whole, too, but stays the last.
  want = blocks[..., None] * size + np.arange(size)
  want = want.reshape(*index.shape[:-1], -1)[..., :count]
  ends = count % size == 0 or np.all(index[..., -1] == n - 1)
  whole = count % size in (0, n % size) and ends
  if not (whole and np.array_equal(want, index)):
    raise ValueError(
      f'{size} entries along axis {axis} share a scale, and not all of them stay'
      f' together: channels have to go in multiples of {size} that begin at one.'
      ' Shrink what this was quantised from, then quantise; or choose whole groups.'
    )
  return np.moveaxis(blocks, -1, at)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QDotArray(array.CompressedArray):
  """A `QArray` whose products quantise the other operand.

  `materialize` is that of the weight. A dot with x, contracted over K entries,
  differs from that of the materialised weight by at most K * e * max|w| for each
  token, with e the largest rounding error of the activations' format: for int8
  half a step, absmax(x) / 255.

  Attributes:
    weight: the weight; what it stands for is what this stands for.
    act_scale: None, where ranges are measured at run time; or float32 of the
      rank of the weight, 1 on all but stacked axes: calibrated or learned.
    act_zero: the zero point that goes with it, or None.
    act: how the other operand becomes codes.
  """

  weight: QArray
  act_scale: jax.Array | None = None
  act_zero: jax.Array | None = None
  act: spec_lib.Spec = dataclasses.field(
    default=spec_lib.Spec('int8', 'token'), metadata={'static': True}
  )

  shape = property(lambda self: self.weight.shape)
  dtype = property(lambda self: self.weight.dtype)

  def materialize(self):
    return self.weight.materialize()

  def can_cut(self, axis, size):
    return self.weight.can_cut(axis, size)

  def codes_as_stored(self):
    """Of the weight, as `QArray.codes_as_stored`."""
    return self.weight.codes_as_stored()

  def with_codes(self, codes):
    """Of the weight, as `QArray.with_codes`."""
    return dataclasses.replace(self, weight=self.weight.with_codes(codes))

  def zero_codes(self):
    """Of the weight, as `QArray.zero_codes`."""
    return self.weight.zero_codes()

  def describe(self):
    return f'{self.weight.describe()}, {spec_lib.act_words(self.act)}'


def quantize_array(
  x: jax.Array,
  spec: spec_lib.Spec,
  blocks: blocks_lib.Blocks,
  *,
  packed: int = -1,
  stacked: tuple[int, ...] = (),
  importance: jax.Array | None = None,
  key: jax.Array | None = None,
) -> QArray:
  """Rounds an array to codes.

  Args:
    x: floating array.
    spec: format, scales and rounding; its granularity is in `blocks`.
    blocks: ((axis from the end, size), ...) of what shares a scale; size 0 for
      the whole axis.
    packed: the axis along which narrow codes share bytes; 0 to leave one code
      to a byte.
    stacked: axes along which matrices lie, each with second-level scales of its
      own.
    importance: weights of the squared errors where a clip is searched,
      broadcastable to `x`; None for equal ones.
    key: for stochastic rounding.

  Returns:
    A QArray of the shape and dtype of `x`.

  Raises:
    ValueError: stochastic rounding without a key.
  """
  if spec.rounding == 'stochastic' and key is None:
    raise ValueError(
      'Stochastic rounding needs a random key; pass key=, or use'
      " rounding='nearest'."
    )
  dtype, x = jnp.dtype(x.dtype), x.astype(jnp.float32)
  reach, center = scales_lib.reach_and_center(x, spec, blocks)

  def nearest(v):
    return spec.numbers.numbers(spec.numbers.round(v)).astype(jnp.float32)

  def rounded(shrink, packed=0, noise=None):
    s = scales_lib.stored(reach, spec, blocks, x.shape, stacked, shrink)
    zero = None
    if center is not None:
      middle = center if shrink is None else center * shrink
      inner = blocks_lib.inner_sizes(x.shape, blocks)
      scale_hat = scales_lib.read(s, inner)
      zero = scales_lib.zero_point(middle, scale_hat, spec)
      if spec.range == 'hqq':
        start = zero.astype(jnp.float32)
        zero = hqq.zero_points(x, scale_hat, start, nearest, blocks)
    return with_scales(x, dtype, spec, blocks, packed, s, zero, noise)

  shrink = None
  if spec.range == 'mse':

    def error(shrink):
      q = dataclasses.replace(rounded(shrink), dtype=jnp.dtype(jnp.float32))
      squared = jnp.square(q.materialize() - x)
      if importance is not None:
        squared = squared * importance
      return blocks_lib.reduce(jnp.sum, squared, blocks)

    shrink = clip.search(error)
  noise = None
  if spec.rounding == 'stochastic':
    noise = jax.random.uniform(key, x.shape, jnp.float32)
  return rounded(shrink, packed, noise)


def with_scales(x, dtype, spec, blocks, packed, s, zero=None, noise=None):
  """Rounds an array in ranges that are given.

  Args:
    x: [...] float32.
    dtype: of what the leaf stands for.
    spec, blocks, packed: as for `quantize_array`.
    s: the scales.
    zero: zero points, or None.
    noise: uniform in [0, 1), of the shape of `x`, for stochastic rounding.
  """
  fmt = spec.numbers
  inner = blocks_lib.inner_sizes(x.shape, blocks)
  spread = functools.partial(blocks_lib.expand, blocks=inner, shape=x.shape)
  scaled = x * spread(1 / scales_lib.read(s, inner))
  if zero is not None:
    # Rounded before the zero point is added: a sum of floats would round again, and
    # put some numbers on the other side of a tie.
    integer = jnp.issubdtype(zero.dtype, jnp.integer)
    scaled = jnp.round(scaled) if integer and noise is None else scaled
    scaled = scaled + spread(zero.astype(jnp.float32))
  codes = fmt.round(scaled, noise)
  tail = 0
  if fmt.native:
    packed = 0
  if packed:
    # Codes of bits that do not divide a byte share runs of bytes, filled at the end.
    tail = -x.shape[packed] % packing.unit(fmt.bits)[0]
    codes = packing.pack(codes, fmt.bits, packed)
  return QArray(
    codes,
    s.scale,
    zero,
    s.global_scale,
    s.global_offset,
    format=spec.format,
    dtype=dtype,
    packed=packed,
    tail=tail,
    blocks=inner,
    global_blocks=s.global_blocks,
  )
