"""What keeps a QArray a QArray on its way to a product.

Weights reach dots through transpose, reshape, squeeze, slice, split and convert.
Each is done to the codes and to the scales; where the parts cannot follow, the
rule declines and the array becomes dense.
"""

import dataclasses
import math

from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.quantization import qarray

PRIMITIVES = []


def each(primitive, make, *outs):
  """`make` of the results, one by one where the primitive has several."""
  if primitive.multiple_results:
    return [make(*one) for one in zip(*outs, strict=True)]
  return make(*outs)


def _rule(primitive):
  """Registers a move for a QArray, and for the one inside a QDotArray."""

  def register(move):
    PRIMITIVES.append(primitive)
    lift.rule(primitive, qarray.QArray)(move)

    @lift.rule(primitive, qarray.QDotArray)
    def _(x, *rest, **params):
      if not isinstance(x, qarray.QDotArray):
        return lift.Dense('it is an index')
      out = move(x.weight, *rest, **params)
      if isinstance(out, lift.Dense):
        return out
      return each(primitive, lambda w: dataclasses.replace(x, weight=w), out)

    return move

  return register


def _with_parts(q, qvalue, scale, axis):
  return dataclasses.replace(q, qvalue=qvalue, scale=scale, axis=axis)


@_rule(lax.transpose_p)
def _(q, *, permutation):
  axis = permutation.index(q.axis % q.ndim) - q.ndim
  parts = (lax.transpose(p, permutation) for p in (q.qvalue, q.scale))
  return _with_parts(q, *parts, axis)


@_rule(lax.convert_element_type_p)
def _(q, *, new_dtype, **_):
  if not jnp.issubdtype(new_dtype, jnp.floating):
    return lift.Dense(f'a conversion to {new_dtype}')
  if jnp.finfo(new_dtype).nmant < 7:  # rounds more coarsely than the codes
    return lift.Dense(f'a conversion to {new_dtype}')
  return dataclasses.replace(q, dtype=jnp.dtype(new_dtype))


# -------------------------------------------------------------------- reshapes


@_rule(lax.squeeze_p)
def _(q, *, dimensions):
  shape = [n for i, n in enumerate(q.shape) if i not in dimensions]
  return reshape(q, shape)


@_rule(lax.broadcast_in_dim_p)
def _(q, *sizes, shape, **_):
  if math.prod(shape) != q.size:
    return lift.Dense('a broadcast')
  return reshape(q, shape)


@_rule(lax.reshape_p)
def _(q, *sizes, new_sizes, dimensions, **_):
  if dimensions is not None:
    return lift.Dense('a reshape with a permutation')
  return reshape(q, new_sizes)


def reshape(q, new_shape):
  """Reshapes codes and scales alike, or declines."""
  if not new_shape:
    return lift.Dense('a reshape to a scalar')
  axis = q.axis % q.ndim
  # A scale shared along the whole axis is a group of as many as there are.
  group = q.shape[axis] if q.scale.shape[axis] == 1 else q.group
  blocks = common_blocks(q.shape, new_shape)
  new_axis = _moved_axis(blocks, axis, q)
  qvalue, scale = (
    part_shape(blocks, q.shape, part.shape, new_shape, axis, factor)
    for part, factor in ((q.qvalue, 1 + q.packed), (q.scale, group))
  )
  if new_axis is None or qvalue is None or scale is None:
    return lift.Dense(f'a reshape {q.shape} to {tuple(new_shape)} cuts groups')
  return dataclasses.replace(
    q,
    qvalue=q.qvalue.reshape(qvalue),
    scale=q.scale.reshape(scale),
    axis=new_axis - len(new_shape),
    group=group,
  )


def common_blocks(old, new):
  """Pairs the axes of two shapes that must be merged or split together.

  Axes of size one stand alone, so that an axis keeps its own block.

  >>> common_blocks((2, 3, 4), (6, 2, 2))
  [([0, 1], [0]), ([2], [1, 2])]
  >>> common_blocks((1, 6), (6, 1))
  [([0], []), ([1], [0]), ([], [1])]
  """
  blocks, i, j = [], 0, 0
  while i < len(old) or j < len(new):
    if i < len(old) and old[i] == 1:
      both = j < len(new) and new[j] == 1
      blocks.append(([i], [j] if both else []))
      i, j = i + 1, j + both
      continue
    if j < len(new) and new[j] == 1:
      blocks.append(([], [j]))
      j += 1
      continue
    rows, columns, m, n = [i], [j], old[i], new[j]
    while m != n:
      if m < n:
        i += 1
        rows, m = [*rows, i], m * old[i]
      else:
        j += 1
        columns, n = [*columns, j], n * new[j]
    blocks.append((rows, columns))
    i, j = i + 1, j + 1
  return blocks


def _moved_axis(blocks, axis, q):
  """Where the packed or grouped axis goes: the minor one of its block."""
  rows, columns = next(b for b in blocks if axis in b[0])
  if rows[-1] == axis and columns:
    return columns[-1]
  if q.packed or q.grouped:
    return None
  # An axis that is neither packed nor grouped has nothing to keep together.
  return columns[-1] if columns else 0


def part_shape(blocks, old, part, new, axis, factor):
  """The shape of a part after the reshape of its leaf, or None.

  In each block a part is shared (all ones) or whole; along `axis`, the minor one
  of its block, it may be shorter by `factor` (packing, groups).
  """
  out = [1] * len(new)
  for rows, columns in blocks:
    sizes = [part[i] for i in rows]
    whole = [old[i] for i in rows]
    shorter = rows and rows[-1] == axis and sizes[-1] * factor == whole[-1]
    if all(n == 1 for n in sizes):
      continue
    if len(rows) == len(columns) == 1:
      out[columns[0]] = sizes[0]
      continue
    if sizes[:-1] != whole[:-1] or not (shorter or sizes == whole):
      return None
    for j in columns:
      out[j] = new[j]
    if sizes != whole:
      if new[columns[-1]] % factor:
        return None
      out[columns[-1]] //= factor
  return out


# ---------------------------------------------------------------------- slices


@_rule(lax.slice_p)
def _(q, *, start_indices, limit_indices, strides):
  strides = strides or (1,) * q.ndim
  cuts = zip(start_indices, limit_indices, strides, strict=True)
  cuts = {i: c for i, c in enumerate(cuts) if c != (0, q.shape[i], 1)}
  empty = any(start >= limit for start, limit, _ in cuts.values())

  def cut(part):
    for i, (start, limit, stride) in cuts.items():
      if part.shape[i] != 1:
        part = lax.slice_in_dim(part, start, limit, stride, axis=i)
    return part

  return _each_part(q, cut, cuts, empty)


@_rule(lax.dynamic_slice_p)
def _(q, *starts, slice_sizes, **_):
  if not isinstance(q, qarray.QArray):
    return lift.Dense('it is an index')
  cuts = [i for i, n in enumerate(slice_sizes) if n != q.shape[i]]

  def cut(part):
    for i in cuts:
      if part.shape[i] != 1:
        part = lax.dynamic_slice_in_dim(part, starts[i], slice_sizes[i], axis=i)
    return part

  return _each_part(q, cut, cuts, empty=0 in slice_sizes)


@_rule(lax.split_p)
def _(q, *, sizes, axis):
  ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]

  def piece(n, end):
    cut = lambda part: (
      part
      if part.shape[axis] == 1
      else lax.slice_in_dim(part, end - n, end, axis=axis)
    )
    return _each_part(q, cut, [axis], empty=n == 0)

  pieces = [piece(n, end) for n, end in zip(sizes, ends, strict=True)]
  declined = [p for p in pieces if isinstance(p, lift.Dense)]
  return declined[0] if declined else pieces


def _each_part(q, cut, axes, empty):
  """Cuts both parts along `axes`, on which each is whole or shared."""
  if (q.packed or q.grouped) and q.axis % q.ndim in axes:
    return lift.Dense('a slice along the packed or grouped axis')
  if empty:
    return lift.Dense('an empty slice')
  return _with_parts(q, cut(q.qvalue), cut(q.scale), q.axis)
