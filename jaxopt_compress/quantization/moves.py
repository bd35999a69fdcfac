"""What keeps a QArray a QArray on its way to a product.

Weights reach dots through transpose, reshape, squeeze, slice, split and convert.
Each is done to every part of the leaf: codes, scales, zero points. Where codes that
share bytes cannot follow they are unpacked first; where scales cannot, the rule
declines and the array becomes dense.
"""

import dataclasses
import functools

from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import moved as moved_lib
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import qarray


def each(primitive, make, *outs):
  """`make` of the results, one by one where the primitive has several."""
  if primitive.multiple_results:
    return [make(*parts) for parts in zip(*outs, strict=True)]
  return make(*outs)


def of_weight(primitive, move):
  """The move of a QDotArray: that of the weight in it."""

  def move_weight(x, *rest, **params):
    if not isinstance(x, qarray.QDotArray):
      return lift.Dense('it is an index')
    out = move(x.weight, *rest, **params)
    if isinstance(out, lift.Dense):
      return out
    if x.act_scale is None or x.act_scale.size == 1:
      return each(primitive, functools.partial(_again, x), out)
    # Ranges of stacked weights lie along the stack, as scales of weights do.
    ranges = move(
      _with_scales(x.weight, x.act_scale, x.act_zero), *rest, **params
    )
    if isinstance(ranges, lift.Dense):
      return ranges
    return each(primitive, functools.partial(_ranged, x), out, ranges)

  return move_weight


def _again(x: qarray.QDotArray, weight: qarray.QArray) -> qarray.QDotArray:
  """The same with another weight; a calibrated range keeps to its rank."""
  static = {
    name: of_rank(ranged, weight.ndim)
    for name, ranged in (('act_scale', x.act_scale), ('act_zero', x.act_zero))
    if ranged is not None
  }
  return dataclasses.replace(x, weight=weight, **static)


def _with_scales(q, scale, zero):
  return dataclasses.replace(
    q.of_one_level(), scale=scale, zero=zero, blocks=()
  )


def _ranged(x, weight, ranges):
  return dataclasses.replace(
    x, weight=weight, act_scale=ranges.scale, act_zero=ranges.zero
  )


def of_rank(p, ndim):
  """What there is one of for a whole leaf, in another rank."""
  return p.reshape((1,) * ndim) if p.size == 1 and p.ndim != ndim else p


def _with(q, move):
  """The leaf of moved parts, or why one of them cannot move."""
  parts = {}
  for name, part in q.parts().items():
    moved = move(part)
    if isinstance(moved, lift.Dense):
      # Codes that share bytes can move when each has one of its own.
      return _with(q.unpacked(), move) if part.packed else moved
    parts[name] = moved
  return q.with_parts(parts)


def _units(part, ndim, place):
  """Units after each axis i (from the start) became axis place[i] of ndim."""
  old = part.array.ndim
  return {place[old + a] - ndim: u for a, u in part.units.items()}


def transpose(q, *, permutation):
  # `permutation` says where each new axis comes from; units need where each goes.
  place = {i: j for j, i in enumerate(permutation)}

  def move(part):
    moved = lax.transpose(part.array, permutation)
    return qarray.Part(moved, _units(part, q.ndim, place))

  return _with(q, move)


def reverse(q, *, dimensions):
  def move(part):
    for i in dimensions:
      entries, _ = part.units.get(i - q.ndim, (1, 1))
      if entries > 1 and (part.packed or q.shape[i] % entries):
        return lift.Dense('a reversal of a packed axis, or of a ragged group')
    return part._replace(array=lax.rev(part.array, dimensions))

  return _with(q, move)


def convert(q, *, new_dtype, **_):
  if not jnp.issubdtype(new_dtype, jnp.floating):
    return lift.Dense(f'a conversion to {new_dtype}')
  if jnp.finfo(new_dtype).nmant < 7:  # rounds more coarsely than the codes
    return lift.Dense(f'a conversion to {new_dtype}')
  return dataclasses.replace(q, dtype=jnp.dtype(new_dtype))


# -------------------------------------------------------------------- reshapes


def squeeze(q, *, dimensions):
  shape = [n for i, n in enumerate(q.shape) if i not in dimensions]
  return reshape(q, shape)


def broadcast(q, *sizes, shape, broadcast_dimensions, **_):
  """New axes and axes of one are repeated in the codes; scales are shared there."""
  if not isinstance(q, qarray.QArray):
    return lift.Dense('it is a size')
  if 0 in shape or not q.size:
    return lift.Dense('an empty array')
  place = dict(enumerate(broadcast_dimensions))
  repeated = {j for i, j in place.items() if q.shape[i] != shape[j]}

  def move(part):
    if repeated & {place[q.ndim + a] for a in part.units}:
      return lift.Dense('a broadcast of a packed or grouped axis')
    numbers = part.array is q.qvalue
    sizes = list(shape) if numbers else [1] * len(shape)
    for i, j in place.items():
      if not numbers or j not in repeated:
        sizes[j] = part.array.shape[i]
    x = lax.broadcast_in_dim(part.array, sizes, broadcast_dimensions)
    return part._replace(array=x, units=_units(part, len(shape), place))

  return _with(q, move)


def reshape_as(q, *sizes, new_sizes, dimensions, **_):
  if dimensions is not None:
    q = transpose(q, permutation=dimensions)
  return reshape(q, new_sizes)


def reshape(q, new_shape):
  """Reshapes all parts alike, or declines."""
  if not new_shape:
    return lift.Dense('a reshape to a scalar')
  if q.size == 0:
    return lift.Dense('an empty array')
  pairs = moved_lib.common_blocks(q.shape, new_shape)
  why = lift.Dense(f'a reshape {q.shape} to {tuple(new_shape)} cuts groups')
  return _with(
    q, lambda part: _reshaped(part, pairs, q.shape, new_shape) or why
  )


def _reshaped(part, pairs, old, new):
  """A part after the reshape of its leaf, or None where its groups are cut."""
  shape, units = [1] * len(new), {}
  for rows, columns in pairs:
    moved = _regrouped(part, rows, columns, old, new)
    if moved is None:
      return None
    for j, size, unit in moved:
      shape[j] = size
      if unit != (1, 1):
        units[j - len(new)] = unit
  return part._replace(array=part.array.reshape(shape), units=units)


def _regrouped(part, rows, columns, old, new):
  """[(axis, size, unit)] of the `columns` that `rows` become together.

  Seen as one long axis, the rows of a part have runs of `entries` consecutive
  entries of the leaf for `stored` of its own: the unit of the minor axis, times
  the minor axes that are shared as a whole.
  """

  def unit_of(i):
    unit = part.units.get(i - len(old), (1, 1))
    shared = unit == (1, 1) and part.array.shape[i] == 1
    return (old[i], 1) if shared else unit

  if len(rows) == len(columns) == 1:
    # An axis that stays itself keeps a ragged last unit too.
    (i,), (j,) = rows, columns
    return [(j, part.array.shape[i], part.units.get(i - len(old), (1, 1)))]
  # From the minor axis outwards. A run may go on to the next axis only while all
  # axes inside of it are covered whole: `through`.
  entries, stored, through = 1, 1, True
  for i in reversed(rows):
    count, size = unit_of(i)
    if old[i] % count or (not through and count > 1):
      return None
    entries, stored = entries * count, stored * size
    through = through and count == old[i]
  # The runs are dealt to the new axes, again from the minor one: an axis has whole
  # runs, or is a part of a run that all its entries share.
  out = []
  for j in reversed(columns):
    n = new[j]
    if n % entries == 0:
      keep = part.packed or entries < n
      unit = (entries, stored) if keep else (1, 1)
      out.append((j, n // entries * stored, unit))
      entries, stored = 1, 1
    elif entries % n == 0 and not part.packed:
      out.append((j, 1, (1, 1)))
      entries //= n
    else:
      return None
  return out if (entries, stored) == (1, 1) else None


# ---------------------------------------------------------------------- slices


def cut_slice(q, *, start_indices, limit_indices, strides):
  strides = strides or (1,) * q.ndim
  cuts = zip(start_indices, limit_indices, strides, strict=True)
  cuts = {i: c for i, c in enumerate(cuts) if c != (0, q.shape[i], 1)}
  return _cut(q, cuts)


def split(q, *, sizes, axis):
  ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
  pieces = [
    _cut(q, {axis: (end - n, end, 1)})
    for n, end in zip(sizes, ends, strict=True)
  ]
  declined = [p for p in pieces if isinstance(p, lift.Dense)]
  return declined[0] if declined else pieces


def unstack(q, *, axis):
  """Slices of one along an axis, without it."""
  pieces = [_cut(q, {axis: (i, i + 1, 1)}) for i in range(q.shape[axis])]
  declined = [p for p in pieces if isinstance(p, lift.Dense)]
  if declined:
    return declined[0]
  return [squeeze(p, dimensions=(axis,)) for p in pieces]


def _cut(q, cuts):
  """The entries start, start + stride, ... < limit of some axes."""
  if any(start >= limit for start, limit, _ in cuts.values()):
    return lift.Dense('an empty slice')

  def move(part):
    x = part.array
    for i, (start, limit, stride) in cuts.items():
      if x.shape[i] == 1 and q.shape[i] > 1 and not part.packed:
        continue  # shared
      entries, stored = part.units.get(i - q.ndim, (1, 1))
      whole = start % entries == 0 and (
        limit % entries == 0 or limit == q.shape[i]
      )
      if entries > 1 and (stride != 1 or not whole):
        return lift.Dense('a slice that cuts packed or grouped entries')
      # A last unit that is not full ends with the axis, so the limit rounds up.
      first, last = start // entries * stored, -(-limit // entries) * stored
      x = lax.slice_in_dim(x, first, last, stride, axis=i)
    return part._replace(array=x)

  out = _with(q, move)
  if isinstance(out, lift.Dense):
    return out
  # Filling codes are at the end of the packed axis: a cut before it has none.
  _, limit, _ = cuts.get(out.ndim + out.packed, (0, q.shape[out.packed], 1))
  tail = out.tail if limit == q.shape[out.packed] else 0
  return _single(dataclasses.replace(out, tail=tail))


def _single(q):
  """Forgets blocks along axes of which one block is left."""

  def several(blocks):
    return tuple((a, n) for a, n in blocks if n < q.shape[a])

  return dataclasses.replace(
    q, blocks=several(q.blocks), global_blocks=several(q.global_blocks)
  )


def dynamic_slice(q, *starts, slice_sizes, **_):
  if not isinstance(q, qarray.QArray):
    return lift.Dense('it is an index')
  if 0 in slice_sizes:
    return lift.Dense('an empty slice')
  cuts = [i for i, n in enumerate(slice_sizes) if n != q.shape[i]]

  def move(part):
    x = part.array
    for i in cuts:
      if x.shape[i] == 1 and not part.packed:
        continue
      if part.units.get(i - q.ndim, (1, 1)) != (1, 1):
        return lift.Dense('a slice along a packed or grouped axis')
      x = lax.dynamic_slice_in_dim(x, starts[i], slice_sizes[i], axis=i)
    return part._replace(array=x)

  return _with(q, move)


# The move of a QArray under each primitive.
MOVES = {
  lax.transpose_p: transpose,
  lax.rev_p: reverse,
  lax.convert_element_type_p: convert,
  lax.squeeze_p: squeeze,
  lax.broadcast_in_dim_p: broadcast,
  lax.reshape_p: reshape_as,
  lax.slice_p: cut_slice,
  lax.split_p: split,
  lax.unstack_p: unstack,
  lax.dynamic_slice_p: dynamic_slice,
}
