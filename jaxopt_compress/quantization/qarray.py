"""The leaf: integers and a scale.

QArray      stands for  qvalue * scale, scale broadcast over what shares it
QDotArray   the same, and its dots round the other operand to int8 as well
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.quantization import numerics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QArray(array.CompressedArray):
  """Stands for `qvalue * scale`: [..., n, ...] of `dtype`.

  Attributes:
    qvalue: int8 codes; or uint8 with two int4 codes to a byte along `axis`.
    scale: same rank; 1 on the axes that share a scale, ceil(n / group) on
      `axis` if it is grouped.
    format: 'int8' or 'int4'.
    axis: the axis, counted from the end, that is packed and grouped.
    group: how many entries along `axis` share a scale; 0 where all do.
    odd: whether the packed axis ends in a filling nibble.
    dtype: of the array that this stands for.
  """

  qvalue: jax.Array
  scale: jax.Array
  format: str = dataclasses.field(metadata={'static': True})
  axis: int = dataclasses.field(metadata={'static': True})
  group: int = dataclasses.field(metadata={'static': True})
  odd: bool = dataclasses.field(metadata={'static': True})
  dtype: jnp.dtype = dataclasses.field(metadata={'static': True})

  @property
  def shape(self):
    shape = list(self.qvalue.shape)
    if self.packed:
      shape[self.axis] = 2 * shape[self.axis] - self.odd
    return tuple(shape)

  @property
  def packed(self) -> bool:
    """Whether two codes share a byte along `axis`."""
    return numerics.FORMATS[self.format].packed

  @property
  def grouped(self) -> bool:
    """Whether several entries along `axis` share a scale, but not all."""
    return self.group > 1 and self.scale.shape[self.axis] > 1

  def can_cut(self, axis, size):
    if axis != self.axis or not (self.packed or self.grouped):
      return True
    whole_bytes = not self.packed or size % 2 == 0
    whole_groups = not self.grouped or size % self.group == 0
    return size > 1 and whole_bytes and whole_groups

  @property
  def codes(self) -> jax.Array:
    """int8 codes, of `shape`."""
    if self.packed:
      return numerics.unpack(self.qvalue, self.axis, self.odd)
    return self.qvalue

  def materialize(self):
    scale = self.scale.astype(jnp.float32)
    if self.grouped:
      scale = numerics.by_group(scale, self.group, self.axis)
      scale = jax.lax.slice_in_dim(
        scale, 0, self.shape[self.axis], axis=self.axis
      )
    return (self.codes.astype(jnp.float32) * scale).astype(self.dtype)

  def describe(self):
    if self.group:
      return f'{self.format} g{min(self.group, self.shape[self.axis])}'
    shared = all(n == 1 for n in self.scale.shape[-2:])
    return f'{self.format} {"tensor" if shared else "channel"}'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QDotArray(array.CompressedArray):
  """A `QArray` whose products round the other operand to int8, per token.

  `materialize` is that of the weight. A dot with x, contracted over K entries
  with codes of absolute value at most 128, differs from the dot of the
  materialised weight by at most  K * (absmax(x) / 255) * max|w|  for each token:
  half a step of x for each of its entries.
  """

  weight: QArray
  act: str = dataclasses.field(default='int8', metadata={'static': True})

  shape = property(lambda self: self.weight.shape)
  dtype = property(lambda self: self.weight.dtype)

  def materialize(self):
    return self.weight.materialize()

  def describe(self):
    return f'{self.weight.describe()}, {self.act} activations'


def quantize_array(
  x: jax.Array,
  format: str,
  shared: tuple[int, ...],
  *,
  axis: int,
  group: int = 0,
  scale_dtype=jnp.float32,
) -> QArray:
  """Rounds an array to the nearest codes.

  Args:
    x: floating array.
    format: 'int8' or 'int4'.
    shared: axes, counted from the end, along which entries share a scale.
    axis: the axis that is packed (int4) and grouped.
    group: entries along `axis` that share a scale; 0 for no groups. The last
      group may be shorter.
    scale_dtype: float32 or bfloat16.

  Returns:
    A QArray of the shape and dtype of `x`.
  """
  fmt = numerics.FORMATS[format]
  if group:
    scale = _group_scale(x, fmt, shared, axis, group, scale_dtype)
    full = numerics.by_group(scale, group, axis)
    full = jax.lax.slice_in_dim(full, 0, x.shape[axis], axis=axis)
  else:
    scale = full = numerics.absmax_scale(x, fmt, shared, scale_dtype)
  codes = numerics.encode(x, full, fmt)
  odd = fmt.packed and bool(x.shape[axis] % 2)
  payload = numerics.pack(codes, axis) if fmt.packed else codes
  return QArray(payload, scale, format, axis, group, odd, jnp.dtype(x.dtype))


def _group_scale(x, fmt, shared, axis, group, scale_dtype):
  position = x.ndim + axis
  short = -x.shape[axis] % group
  padding = [(0, short if i == position else 0) for i in range(x.ndim)]
  x = jnp.pad(x, padding)
  n_groups = x.shape[axis] // group
  split = (*x.shape[:position], n_groups, group, *x.shape[position + 1 :])
  # Axes counted from the end move by one where they lie before the split.
  axes = {axis} | {a - 1 if a < axis else a for a in shared if a != axis}
  scale = numerics.absmax_scale(
    x.reshape(split), fmt, tuple(sorted(axes)), scale_dtype
  )
  return jnp.squeeze(scale, position + 1)
