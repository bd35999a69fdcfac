"""What keeps a QArray a QArray on its way to a product.

Weights reach dots through transpose, reshape, squeeze, slice and convert. Each
is done to the codes and to the scales; where the parts cannot follow, the rule
declines and the array becomes dense.
"""

import dataclasses
import math

from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.quantization import qarray

PRIMITIVES = []


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
      return dataclasses.replace(x, weight=out)

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
  return dataclasses.replace(q, dtype=jnp.dtype(new_dtype))


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
  blocks = common_blocks(q.shape, new_shape)
  new_axis = _moved_axis(blocks, q.axis % q.ndim, q)
  qvalue = part_shape(blocks, q.shape, q.qvalue.shape, new_shape)
  scale = part_shape(blocks, q.shape, q.scale.shape, new_shape)
  if new_axis is None or qvalue is None or scale is None:
    return lift.Dense(f'a reshape {q.shape} to {tuple(new_shape)} cuts groups')
  return _with_parts(
    q,
    q.qvalue.reshape(qvalue),
    q.scale.reshape(scale),
    new_axis - len(new_shape),
  )


def common_blocks(old, new):
  """Pairs the axes of two shapes that must be merged or split together.

  >>> common_blocks((2, 3, 4), (6, 2, 2))
  [([0, 1], [0]), ([2], [1, 2])]
  """
  blocks, i, j = [], 0, 0
  while i < len(old) or j < len(new):
    rows, columns = [], []
    m = n = 1
    if i < len(old):
      rows, m, i = [i], old[i], i + 1
    if j < len(new) and (n_next := new[j]) is not None:
      # Sizes of one stand alone, so that an axis keeps its own block.
      if rows and (old[rows[0]] == 1) != (n_next == 1):
        if n_next == 1:
          blocks.append(([], [j]))
          j, i = j + 1, i - 1
        else:
          blocks.append((rows, []))
        continue
      columns, n, j = [j], n_next, j + 1
    while m != n:
      if m < n:
        rows, m, i = [*rows, i], m * old[i], i + 1
      else:
        columns, n, j = [*columns, j], n * new[j], j + 1
    blocks.append((rows, columns))
  return blocks


def _moved_axis(blocks, axis, q):
  for rows, columns in blocks:
    if axis not in rows:
      continue
    if rows[-1] == axis and columns:
      return columns[-1]
    packed_or_grouped = q.group or q.qvalue.shape != q.shape
    # An axis that is neither packed nor grouped has nothing to keep together.
    return None if packed_or_grouped else (columns[-1] if columns else 0)
  raise AssertionError(f'axis {axis} is in no block of {blocks}')


def part_shape(blocks, old, part, new):
  """The shape of a part after the reshape of its leaf, or None.

  In each block a part is whole, or shared (all ones), or whole but for the
  minor axis, which is shorter by a factor (packing, groups).
  """
  out = [1] * len(new)
  for rows, columns in blocks:
    if all(part[i] == 1 for i in rows):
      continue
    if any(part[i] != old[i] for i in rows[:-1]) or not columns:
      return None
    minor, whole = part[rows[-1]], old[rows[-1]]
    if len(rows) == len(columns) == 1:
      out[columns[0]] = minor
      continue
    if whole % minor:
      return None
    factor = whole // minor
    if new[columns[-1]] % factor:
      return None
    for j in columns:
      out[j] = new[j]
    out[columns[-1]] //= factor
  return out


@_rule(lax.slice_p)
def _(q, *, start_indices, limit_indices, strides):
  sizes = tuple(
    b - a for a, b in zip(start_indices, limit_indices, strict=True)
  )
  strides = strides or (1,) * q.ndim
  if not _can_cut(q, sizes):
    return lift.Dense('a slice along the packed or grouped axis')

  def cut(part):
    whole = [n == m for n, m in zip(part.shape, q.shape, strict=True)]
    axes = [i for i, n in enumerate(sizes) if whole[i] and n != q.shape[i]]
    for i in axes:
      part = lax.slice_in_dim(
        part, start_indices[i], limit_indices[i], strides[i], axis=i
      )
    return part

  if any(
    s != 1 and n == m for s, n, m in zip(strides, sizes, q.shape, strict=True)
  ):
    return lift.Dense('a strided slice of a whole axis')
  return _with_parts(q, cut(q.qvalue), cut(q.scale), q.axis)


@_rule(lax.dynamic_slice_p)
def _(q, *starts, slice_sizes, **_):
  if not isinstance(q, qarray.QArray):
    return lift.Dense('it is an index')
  if not _can_cut(q, slice_sizes):
    return lift.Dense('a slice along the packed or grouped axis')

  def cut(part):
    for i, (n, m) in enumerate(zip(slice_sizes, q.shape, strict=True)):
      if n != m and part.shape[i] == m:
        part = lax.dynamic_slice_in_dim(part, starts[i], n, axis=i)
    return part

  return _with_parts(q, cut(q.qvalue), cut(q.scale), q.axis)


def _can_cut(q, sizes) -> bool:
  """Whether each cut axis is whole or shared in both parts."""
  return all(
    n == m or all(p.shape[i] in (1, m) for p in (q.qvalue, q.scale))
    for i, (n, m) in enumerate(zip(sizes, q.shape, strict=True))
  )
