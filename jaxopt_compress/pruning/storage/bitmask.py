"""The storage leaf of scattered zeros: a bit for each weight, and those that are kept.

    entry i  =  values[how many bits before i are set]  where bit i is set, else 0

    bytes    =  segments * (ceil(p / 8) + capacity * itemsize)

A segment is a run of p entries: the last axes of the array, whatever lies in front.
`capacity` is the largest number of kept weights in a segment; the others are filled up
to it. So one segment for each stacked layer wastes little, and one for each row more,
though rows can be gathered and cut over devices without the others. At 90% zeros, in
rows of 1024, bits a weight (`python -m launch.bench.sparse_bytes`):

              float32   bfloat16   int8
    dense       32        16        8
    by layer     4.20      2.60     1.80
    by row       5.34      3.17     2.09
"""

import dataclasses
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import table_rows
from jaxopt_compress.analysis.plan import gathered
from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.pruning.storage import bits as bits_lib

_RUN = 64  # bytes that are counted together


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Bitmask(array.CompressedArray):
  """Stands for an array, most of it zeros: [*lead, *segment] of any dtype.

  Without loss: inf, -0.0 and subnormals come back bit by bit, and so does NaN, but
  for what bits of it say besides in 16 bits or fewer. Products put the zeros back
  first, so memory is saved and time is not.

  Attributes:
    bits: [*lead, 1, ..., ceil(p / 8)] uint8, a bit for each entry of a segment,
      lowest first; of the rank of what this stands for.
    values: [*lead, 1, ..., capacity], the kept entries in their order, then fill.
    segment: shape of the last axes, p entries.

  >>> leaf = of_array(jnp.float32([[0., 7.], [0., -1.]]))
  >>> leaf.bits.tolist(), leaf.values.tolist(), leaf.describe()
  ([[10]], [[7.0, -1.0]], 'bitmask 50%')
  """

  bits: jax.Array
  values: jax.Array
  segment: tuple[int, ...] = dataclasses.field(metadata={'static': True})

  @property
  def shape(self):
    return (*self.bits.shape[: -len(self.segment)], *self.segment)

  dtype = property(lambda self: self.values.dtype)

  def dtypes(self):
    return dict(bits=jnp.dtype(jnp.uint8))

  def can_cut(self, axis, size):
    return axis < -len(self.segment)

  def materialize(self):
    lead, p = self.bits.shape[: -len(self.segment)], math.prod(self.segment)
    byte = self.bits.reshape(*lead, -1)
    values = self.values.reshape(*lead, -1)
    # Kept entries are counted before each byte, of which there are an eighth, and
    # before each bit within its byte.
    counts = lax.population_count(byte).astype(jnp.int32)
    before = _before(counts)
    one = np.uint8(1) << np.arange(8, dtype=np.uint8)
    one = one.reshape((1,) * byte.ndim + (8,))
    place = before[..., None] + lax.population_count(
      byte[..., None] & (one - np.uint8(1))
    ).astype(jnp.int32)
    kept = (byte[..., None] & one) != 0
    place, kept = (x.reshape(*lead, -1)[..., :p] for x in (place, kept))
    entries = jnp.take_along_axis(values, place, axis=-1, mode='clip')
    entries = jnp.where(kept, entries, jnp.zeros((), entries.dtype))
    return entries.reshape(self.shape)

  def again(self, x: jax.Array) -> 'Bitmask':
    """An array of other sizes in this form."""
    lead = x.ndim - len(self.segment)
    known = not isinstance(x, jax.core.Tracer)
    # Entries that are left out keep no more than there were.
    most = min(self.values.shape[-1], math.prod(x.shape[lead:]))
    return of_array(x, lead, None if known else most)

  def taken(self, index: np.ndarray, axis: int) -> 'Bitmask':
    """The entries `index` along an axis: see `analysis.gathered`."""
    dense = self.materialize()
    return self.again(gathered.taken(dense, {self.ndim + axis: index}))

  def describe(self):
    if isinstance(self.bits, jax.core.Tracer | jax.ShapeDtypeStruct):
      return 'bitmask'
    kept = np.bitwise_count(np.asarray(self.bits)).sum(dtype=np.int64)
    return f'bitmask {1 - kept / max(self.size, 1):.0%}'


def _before(counts):
  """The sum of all that come before each, along the last axis.

  Within runs first, then over runs: XLA's running sum over a long axis takes several
  times as long.
  """
  *lead, n = counts.shape
  if n <= 2 * _RUN:
    return jnp.cumsum(counts, axis=-1) - counts
  tail = -n % _RUN
  runs = jnp.pad(counts, [(0, 0)] * len(lead) + [(0, tail)])
  runs = runs.reshape(*lead, (n + tail) // _RUN, _RUN)
  before = _before(runs.sum(-1))[..., None] + _before(runs)
  return before.reshape(*lead, n + tail)[..., :n]


def of_array(
  x: jax.Array, lead: int = 0, capacity: int | None = None
) -> Bitmask:
  """Leaves the zeros out.

  Args:
    x: array of whole bytes an entry, of at least one axis.
    lead: how many axes are in front of a segment: the stacked layers of a scan, or
      all but the last where rows are to be gathered.
    capacity: how many values a segment has room for; None for the largest number of
      kept entries. To be given where `x` is traced, as that number is not known then:
      a segment that has too many is NaN, and integers get room for all.

  Raises:
    ValueError: no such array, no capacity under a trace, or one that is too small.
  """
  x = jnp.asarray(x)
  _check(x, lead)
  kept = bits_lib.nonzero(x).reshape(*x.shape[:lead], -1)
  if not isinstance(kept, jax.core.Tracer):
    most = int(kept.sum(-1).max(initial=0))
    if capacity is not None and capacity < most:
      raise ValueError(
        f'A segment keeps {most} entries, and there is room for {capacity}. Leave'
        ' out capacity= to have it counted.'
      )
    capacity = max(most, 1) if capacity is None else capacity
  elif capacity is None:
    raise ValueError(
      'How many entries of a traced array are not zero is not known: pass'
      ' capacity=, or make the leaf outside of jit.'
    )
  elif jnp.issubdtype(x.dtype, jnp.integer):
    # Integers have no NaN to say that there was no room.
    capacity = kept.shape[-1]
  return _laid_out(x, lead, capacity)


def _check(x, lead):
  p = math.prod(x.shape[lead:])
  if not bits_lib.has_patterns(x.dtype) or not 0 <= lead < x.ndim or not x.size:
    raise ValueError(
      'A bitmask is of an array that is not empty, of floats or integers of whole'
      f' bytes, with axes after the first {lead}; not {x.dtype}{list(x.shape)}.'
    )
  if p >= 2**31:
    raise ValueError(
      f'A segment has {p} entries, and their places need more than 31 bits. Pass'
      f' lead={lead + 1}, so that segments are shorter.'
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _laid_out(x, lead, capacity):
  shape = x.shape[:lead]
  inner = (1,) * (x.ndim - lead - 1)
  flat = x.reshape(math.prod(shape), -1)
  kept = bits_lib.nonzero(flat)
  place = jnp.cumsum(kept, axis=-1, dtype=jnp.int32) - 1
  place = jnp.where(kept, place, capacity)

  def values(row, place):
    return jnp.zeros((capacity,), x.dtype).at[place].set(row, mode='drop')

  values = jax.vmap(values)(flat, place)
  if jnp.issubdtype(x.dtype, jnp.floating):
    # Only under a trace: otherwise it was checked.
    fits = kept.sum(-1, keepdims=True) <= capacity
    values = jnp.where(fits, values, jnp.full((), jnp.nan, x.dtype))
  packed = jnp.packbits(kept, axis=-1, bitorder='little')
  return Bitmask(
    packed.reshape(*shape, *inner, packed.shape[-1]),
    values.reshape(*shape, *inner, capacity),
    x.shape[lead:],
  )


# ----------------------------------------------------------------------- rules


def convert(x: Bitmask, *, new_dtype, **_):
  """Casts the values: what rounds to zero is kept as a zero."""
  if not bits_lib.has_patterns(new_dtype) or jnp.dtype(new_dtype).itemsize < 2:
    return lift.Dense(f'a conversion to {new_dtype}')
  return dataclasses.replace(x, values=x.values.astype(new_dtype))


def reshape(x: Bitmask, *, new_sizes, dimensions=None, **_):
  """Other axes for a segment, which is a run of entries in any shape."""
  lead = x.ndim - len(x.segment)
  segment = tuple(new_sizes[lead:])
  if dimensions is not None or not segment:
    return lift.Dense('a reshape across segments')
  if tuple(new_sizes[:lead]) != x.shape[:lead]:
    return lift.Dense('a reshape across segments')
  inner = (1,) * (len(segment) - 1)
  bits, values = (
    p.reshape(*x.shape[:lead], *inner, p.shape[-1]) for p in (x.bits, x.values)
  )
  return Bitmask(bits, values, segment)


def squeeze(x: Bitmask, *, dimensions):
  """Axes of length 1 go, of the stack or of a segment."""
  lead = x.ndim - len(x.segment)
  if all(d < lead for d in dimensions):
    bits, values = (lax.squeeze(p, dimensions) for p in (x.bits, x.values))
    return Bitmask(bits, values, x.segment)
  sizes = [n for i, n in enumerate(x.shape) if i not in dimensions]
  return reshape(x, new_sizes=tuple(sizes))


def cut(x: Bitmask, *, start_indices, limit_indices, strides=None):
  """Whole segments."""
  lead = x.ndim - len(x.segment)
  strides = strides or (1,) * x.ndim
  inner = tuple(zip(start_indices[lead:], limit_indices[lead:], strides[lead:]))
  if inner != tuple((0, n, 1) for n in x.segment):
    return lift.Dense('a slice through segments')

  def part(p):
    ends = (*limit_indices[:lead], *p.shape[lead:])
    return lax.slice(p, start_indices, ends, strides)

  return Bitmask(part(x.bits), part(x.values), x.segment)


def dynamic_cut(x, *starts, slice_sizes):
  """Whole segments, from places that are traced."""
  if not isinstance(x, Bitmask):
    return lift.Dense('it is an index')
  lead = x.ndim - len(x.segment)
  if tuple(slice_sizes[lead:]) != x.segment:
    return lift.Dense('a slice through segments')

  def part(p):
    # What is whole begins at 0, whatever was asked for, as with the array.
    sizes = (*slice_sizes[:lead], *p.shape[lead:])
    return lax.dynamic_slice(p, starts, sizes)

  return Bitmask(part(x.bits), part(x.values), x.segment)


@table_rows.in_one_form
def gather(x, indices, *, dimension_numbers, slice_sizes, fill_value, **params):
  """Whole segments, such as the rows of a table; only those are expanded."""
  if not isinstance(x, Bitmask):
    return lift.Dense('it is an index')
  lead, n = x.ndim - len(x.segment), len(x.segment)
  numbers, ndim = dimension_numbers, len(dimension_numbers.offset_dims)
  ndim += indices.ndim - 1
  behind = set(numbers.collapsed_slice_dims) | set(numbers.start_index_map)
  whole = tuple(slice_sizes[lead:]) == x.segment and max(behind) < lead
  last = tuple(range(ndim - n, ndim))
  if not whole or numbers.operand_batching_dims:
    return lift.Dense('a gather of something other than whole segments')
  if numbers.offset_dims[-n:] != last:
    return lift.Dense('a gather that puts segments in front')

  def part(p, fill):
    sizes = (*slice_sizes[:lead], *p.shape[lead:])
    return lax.gather(p, indices, numbers, sizes, fill_value=fill, **params)

  # Beyond the table every bit is set, so that every entry is the value to fill with.
  bits, values = part(x.bits, 255), part(x.values, fill_value)
  return Bitmask(bits, values, x.segment).materialize()


def put_back(*operands, **params):
  """Products and whatever has no rule of its own meet the dense array."""
  return lift.Dense('zeros are put back before a product')


RULES = {
  lax.convert_element_type_p: convert,
  lax.reshape_p: reshape,
  lax.squeeze_p: squeeze,
  lax.slice_p: cut,
  lax.dynamic_slice_p: dynamic_cut,
  lax.gather_p: gather,
  lax.dot_general_p: put_back,
  lax.conv_general_dilated_p: put_back,
}
