"""The storage leaf of N:M zeros: the n entries of each m that may be kept.

    group g  =  zeros, with values[g, i] at place indices[g, i]  for i < n

    bytes    =  entries * n / m * (itemsize + ceil(log2 m) / 8)

Mishra et al. 2021, https://arxiv.org/abs/2104.08378, section 3.1, store 2:4 so, with
two bits for each kept value. That is a bit for each weight, as much as a bitmask takes;
for 4:8 it is one and a half, for 1:8 three eighths. Unlike a bitmask it has the same
size whatever the values are, and every axis is cut, transposed and stacked as before.
"""

import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import table_rows
from jaxopt_compress.analysis.plan import gathered
from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.pruning.storage import bitmask
from jaxopt_compress.pruning.storage import bits as bits_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NMArray(array.CompressedArray):
  """Stands for an array that keeps n of each m entries along an axis.

  Without loss, as `Bitmask`. Products put the zeros back first.

  Attributes:
    values: [..., k / m * n, ...], the kept entries of each group in their order; zeros
      where a group has fewer.
    indices: [..., ceil(k / m * n * b / 8), ...] uint8, where each was in its group, b
      bits each, packed along the axis; b = ceil(log2 m).
    n, m: how many are kept of how many.
    axis: along which groups lie, counted from the end.

  >>> leaf = of_array(jnp.float32([0., 5., 0., 7., 0., 0., 0., 1.]), 2, 4, -1)
  >>> leaf.values.tolist(), leaf.indices.tolist(), leaf.describe()
  ([5.0, 7.0, 0.0, 1.0], [205], '2:4')
  """

  values: jax.Array
  indices: jax.Array
  n: int = dataclasses.field(metadata={'static': True})
  m: int = dataclasses.field(metadata={'static': True})
  axis: int = dataclasses.field(metadata={'static': True})

  @property
  def shape(self):
    shape = list(self.values.shape)
    shape[self.axis] = shape[self.axis] // self.n * self.m
    return tuple(shape)

  dtype = property(lambda self: self.values.dtype)

  def dtypes(self):
    return dict(indices=jnp.dtype(jnp.uint8))

  def can_cut(self, axis, size):
    if axis != self.axis:
      return True
    # Whole groups, whose indices end with a byte.
    bits = size // self.m * self.n * index_bits(self.m)
    return size % self.m == 0 and bits % 8 == 0

  def materialize(self):
    values = _groups(self.values, self.axis, self.n)
    count = values.shape[-2] * self.n
    packed = jnp.moveaxis(self.indices, self.axis, -1)
    at = bits_lib.unpack(packed, index_bits(self.m), count)
    at = at.reshape(values.shape)
    # n choices for each entry: XLA fuses them into one pass, without a scatter.
    place = np.arange(self.m, dtype=np.int32)
    place = place.reshape((1,) * (values.ndim - 1) + (self.m,))
    out = jnp.zeros((*values.shape[:-1], self.m), values.dtype)
    for i in range(self.n):
      here = at[..., i : i + 1] == place
      out = jnp.where(here, values[..., i : i + 1], out)
    return _joined(out, self.axis)

  def again(self, x: jax.Array) -> 'NMArray | bitmask.Bitmask':
    """An array of other sizes in this form, or a bitmask where groups came apart."""
    lead = max(x.ndim - 2, 0)
    if isinstance(x, jax.core.Tracer):
      # Entries that are left out keep no more than there were.
      most = self.values.size // math.prod(self.shape[:lead])
      most = min(most, math.prod(x.shape[lead:]))
      return bitmask.of_array(x, lead, most)
    try:
      return of_array(x, self.n, self.m, self.axis)
    except ValueError:
      return bitmask.of_array(x, lead)

  def taken(self, index: np.ndarray, axis: int) -> 'NMArray | bitmask.Bitmask':
    """The entries `index` along an axis: see `analysis.gathered`."""
    dense = self.materialize()
    return self.again(gathered.taken(dense, {self.ndim + axis: index}))

  def describe(self):
    return f'{self.n}:{self.m}'


def index_bits(m: int) -> int:
  """Bits of a place in a group of m."""
  return max(math.ceil(math.log2(m)), 1)


def of_array(x: jax.Array, n: int, m: int, axis: int) -> NMArray:
  """Leaves the zeros of N:M sparsity out.

  Args:
    x: array of whole bytes an entry. May be traced: then a group of more than n
      entries gets NaN, as it cannot be refused; integers are refused.
    n, m: at most n of each m consecutive entries along `axis` are not zero.
    axis: along which groups lie, counted from the end.

  Raises:
    ValueError: n, m and the axis do not fit, or a group has more than n entries.
  """
  x = jnp.asarray(x)
  fits = -x.ndim <= axis < 0 and 1 <= n < m and not x.shape[axis] % m
  if not fits or not bits_lib.has_patterns(x.dtype) or not x.size:
    raise ValueError(
      f'{n}:{m} is stored of whole groups of {m}, {m} > {n} > 0, of floats or integers'
      ' of whole bytes, along an axis that is counted from the end; not of'
      f' {x.dtype}{list(x.shape)} along {axis}.'
    )
  groups = _groups(x, axis, m)
  kept = bits_lib.nonzero(groups)
  counts = kept.sum(-1, dtype=jnp.int32)
  known = not isinstance(counts, jax.core.Tracer)
  floats = jnp.issubdtype(x.dtype, jnp.floating)
  if known and counts.size and int(counts.max()) > n:
    raise ValueError(
      f'{n}:{m} along axis {axis} of {list(x.shape)}: {int((counts > n).sum())} of'
      f' {counts.size} groups keep more than {n}. Prune with'
      f' jc.Sparsity(kind="n_m", n={n}, m={m}), or store a bitmask.'
    )
  if not known and not floats:
    raise ValueError(
      'Integers cannot be stored as N:M under jit: a group of too many could not be'
      ' told. Make the leaf outside of jit.'
    )
  # Kept entries first, in their order; then as many zeros as are needed.
  at = jnp.sort(jnp.argsort(~kept, axis=-1, stable=True)[..., :n], axis=-1)
  values = jnp.take_along_axis(groups, at, axis=-1)
  if floats:
    values = jnp.where(
      counts[..., None] <= n, values, jnp.full((), jnp.nan, x.dtype)
    )
  flat = at.reshape(*at.shape[:-2], -1)
  packed = bits_lib.pack(flat, index_bits(m))
  return NMArray(
    _joined(values, axis), jnp.moveaxis(packed, -1, axis), n, m, axis
  )


def _groups(x, axis, size):
  """[..., k, ...] to [..., k / size, size], the other axes in front in order."""
  x = jnp.moveaxis(x, axis, -1)
  return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def _joined(x, axis):
  """The inverse of `_groups`."""
  return jnp.moveaxis(x.reshape(*x.shape[:-2], -1), -1, axis)


# ----------------------------------------------------------------------- rules


def _each(x, move, axis):
  """The leaf with its arrays moved, and where its axis went."""
  return dataclasses.replace(
    x, values=move(x.values), indices=move(x.indices), axis=axis
  )


def convert(x: NMArray, *, new_dtype, **_):
  """Casts the values: what rounds to zero is kept as a zero."""
  if not bits_lib.has_patterns(new_dtype) or jnp.dtype(new_dtype).itemsize < 2:
    return lift.Dense(f'a conversion to {new_dtype}')
  return dataclasses.replace(x, values=x.values.astype(new_dtype))


def transpose(x: NMArray, *, permutation):
  """The parts are transposed, and the axis of the groups goes along."""
  axis = tuple(permutation).index(x.ndim + x.axis) - x.ndim
  return _each(x, lambda p: lax.transpose(p, permutation), axis)


def reshape(x: NMArray, *, new_sizes, dimensions=None, **_):
  """Axes merge and split on either side of that of the groups."""
  old = x.ndim + x.axis
  before, k = math.prod(x.shape[:old]), x.shape[old]
  fits = [
    i
    for i, n in enumerate(new_sizes)
    if n == k and math.prod(new_sizes[:i]) == before
  ]
  if dimensions is not None or not fits:
    return lift.Dense(f'a reshape through groups of {x.m}')
  at = fits[0]

  def part(p):
    sizes = (*new_sizes[:at], p.shape[old], *new_sizes[at + 1 :])
    return p.reshape(sizes)

  return _each(x, part, at - len(new_sizes))


def squeeze(x: NMArray, *, dimensions):
  """Axes of length 1 go, but not that of the groups."""
  sizes = [n for i, n in enumerate(x.shape) if i not in dimensions]
  return reshape(x, new_sizes=tuple(sizes))


def cut(x: NMArray, *, start_indices, limit_indices, strides=None):
  """A slice along other axes."""
  at = x.ndim + x.axis
  strides = strides or (1,) * x.ndim
  if (start_indices[at], limit_indices[at], strides[at]) != (0, x.shape[at], 1):
    return lift.Dense(f'a slice through groups of {x.m}')

  def part(p):
    ends = (*limit_indices[:at], p.shape[at], *limit_indices[at + 1 :])
    return lax.slice(p, start_indices, ends, strides)

  return _each(x, part, x.axis)


def dynamic_cut(x, *starts, slice_sizes):
  """A slice along other axes, from places that are traced."""
  if not isinstance(x, NMArray):
    return lift.Dense('it is an index')
  at = x.ndim + x.axis
  if slice_sizes[at] != x.shape[at]:
    return lift.Dense(f'a slice through groups of {x.m}')

  def part(p):
    sizes = (*slice_sizes[:at], p.shape[at], *slice_sizes[at + 1 :])
    return lax.dynamic_slice(p, starts, sizes)

  return _each(x, part, x.axis)


@table_rows.in_one_form
def gather(x, indices, *, dimension_numbers, slice_sizes, fill_value, **params):
  """Rows across the groups' axis; only those are expanded."""
  if not isinstance(x, NMArray):
    return lift.Dense('it is an index')
  numbers, at = dimension_numbers, x.ndim + x.axis
  gone = numbers.collapsed_slice_dims
  if numbers.operand_batching_dims or at in (*gone, *numbers.start_index_map):
    return lift.Dense('a gather along the axis of the groups')
  if slice_sizes[at] != x.shape[at]:
    return lift.Dense('a gather through groups')
  ndim = len(numbers.offset_dims) + indices.ndim - 1
  # Axes that are kept appear in the result, in their order, at `offset_dims`.
  kept = [i for i in range(x.ndim) if i not in gone]
  axis = numbers.offset_dims[kept.index(at)] - ndim

  def part(p, fill):
    sizes = (*slice_sizes[:at], p.shape[at], *slice_sizes[at + 1 :])
    return lax.gather(p, indices, numbers, sizes, fill_value=fill, **params)

  rows = dataclasses.replace(
    x, values=part(x.values, fill_value), indices=part(x.indices, 0), axis=axis
  )
  # Beyond the table every value is the one to fill with, and so is every entry.
  one = lax.slice_in_dim(jnp.zeros_like(x.indices), 0, 1, axis=at)
  fill = lax.slice_in_dim(rows.values, 0, 1, axis=ndim + axis)
  beyond = jnp.broadcast_to(part(one, 1) > 0, rows.shape)
  return jnp.where(
    beyond, jnp.broadcast_to(fill, rows.shape), rows.materialize()
  )


def put_back(*operands, **params):
  """Products and whatever has no rule of its own meet the dense array."""
  return lift.Dense('zeros are put back before a product')


RULES = {
  lax.convert_element_type_p: convert,
  lax.transpose_p: transpose,
  lax.reshape_p: reshape,
  lax.squeeze_p: squeeze,
  lax.slice_p: cut,
  lax.dynamic_slice_p: dynamic_cut,
  lax.gather_p: gather,
  lax.dot_general_p: put_back,
  lax.conv_general_dilated_p: put_back,
}
