"""The other operand of a weight's product, as a matrix of rows.

    x [stack..., n, k]:  k the contracted entries of the weight, in the order of
                         its own axes; a stack axis for each of its batch axes

A `probes.Probe` says which axes of the weight an axis of a product is. Where a
`shard_map` cuts the weight along what it contracts, `x` is joined over devices.
"""

import math
import re
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import jaxprs


class Rows(NamedTuple):
  """What a probe met.

  Attributes:
    x: [stack..., n, k].
    mask: [stack..., n], the rows that count.
    k: how many entries the leaf contracts.
    contracted: the axes of the probe that are.
    stack: axes of the probe that the leading axes of `x` are, in order.
  """

  x: jax.Array
  mask: jax.Array
  k: int
  contracted: tuple[int, ...]
  stack: tuple[int, ...] = ()


def joined(x, names, axis):
  """The parts of an array on all devices along mesh axes, one after the other.

  By a sum, which is exact here and, other than a gather, known to be the same on
  all of them.
  """
  n, ways = x.shape[axis], lax.axis_size(names)
  shape = (*x.shape[:axis], ways * n, *x.shape[axis + 1 :])
  start = lax.axis_index(names) * n
  whole = lax.dynamic_update_slice_in_dim(
    jaxprs.vary(jnp.zeros(shape, x.dtype), jaxprs.varying(jax.typeof(x))),
    x,
    start,
    axis,
  )
  return lax.psum(whole, names)


def _complete(probe, dims) -> None:
  """Raises where axes of a product are not whole axes of the leaf."""
  sizes = {}
  for i in dims:
    for axis, size in probe.pieces[i]:
      sizes[axis] = sizes.get(axis, 1) * size
  for axis, names in probe.cut:
    if axis in sizes:
      sizes[axis] *= lax.axis_size(names)
  why = [
    f'a part of its axis {axis}: {size} entries of {probe.full[axis]}'
    for axis, size in sizes.items()
    if size != probe.full[axis]
  ]
  why += [
    f'{probe.shape[i]} entries that are no axis of it (cut or broadcast before)'
    for i in dims
    if math.prod(s for _, s in probe.pieces[i]) != probe.shape[i]
  ]
  if why:
    raise ValueError(
      f'{probe.path} is contracted, or stacked, in a product along {why[0]}.'
      ' Parts meet different data, which cannot be observed as one. Make them'
      f' leaves, or leave it out with (r"{re.escape(probe.path)}", None).'
    )


def _columns(x, probe, dims):
  """Joins the last axes of `x`, which meet `dims`, in the order of the leaf.

  Returns [..., k], whole also where a `shard_map` has cut the leaf.
  """
  _complete(probe, dims)
  pieces = [(axis, i, size) for i in dims for axis, size in probe.pieces[i]]
  n = x.ndim - len(dims)
  x = x.reshape(*x.shape[:n], *(size for *_, size in pieces))
  # By axis of the leaf. The pieces of an axis that was split lie in order in the
  # probe, though a product may list them in another.
  order = sorted(range(len(pieces)), key=lambda j: (*pieces[j][:2], j))
  cut = dict(probe.cut)
  for j in order:
    if pieces[j][0] in cut:  # of several pieces of an axis, the first is cut
      x = joined(x, cut.pop(pieces[j][0]), n + j)
  x = lax.transpose(x, (*range(n), *(n + j for j in order)))
  return x.reshape(*x.shape[:n], math.prod(x.shape[n:]))


def _dot_rows(probe, side, operands, params, statistic):
  contracting, batch = params['dimension_numbers']
  x = operands[1 - side]
  mine, other = contracting[side], contracting[1 - side]
  # Experts in the order of the leaf's axes; where it was broadcast, more rows.
  pairs = sorted(
    (
      p
      for p in zip(batch[side], batch[1 - side], strict=True)
      if probe.pieces[p[0]]
    ),
    key=lambda p: probe.pieces[p[0]],
  )
  _complete(probe, [i for i, _ in pairs])
  stack = [j for _, j in pairs]
  free = [i for i in range(x.ndim) if i not in (*stack, *other)]
  # To [stack..., rows..., contracted...], then all rows in one axis.
  x = lax.transpose(x, (*stack, *free, *other))
  m = len(stack)
  n = math.prod(x.shape[m : m + len(free)])
  x = x.reshape(*x.shape[:m], n, *x.shape[m + len(free) :])
  x = _columns(x, probe, mine)
  mask = jnp.ones(x.shape[:-1], bool)
  return Rows(x, mask, x.shape[-1], mine, tuple(i for i, _ in pairs))


def _conv_rows(probe, side, operands, params, statistic):
  if side != 1 or params['batch_group_count'] != 1:
    raise _not_a_weight(probe, 'conv_general_dilated')
  x, numbers = operands[0], params['dimension_numbers']
  dims = numbers.rhs_spec[1:]
  sizes = [probe.shape[i] for i in dims]
  if statistic.per == 'tensor':  # patches hold the same entries, and padding
    x = jnp.moveaxis(x, numbers.lhs_spec[1], -1)
    x = x.reshape(-1, x.shape[-1])
    for axis, _ in probe.pieces[dims[0]]:
      if axis in (cut := dict(probe.cut)):
        x = joined(x, cut[axis], 1)
    k = math.prod(sizes)
  else:
    patches = lax.conv_general_dilated_patches(
      x.astype(jnp.float32),
      sizes[1:],
      params['window_strides'],
      params['padding'],
      lhs_dilation=params['lhs_dilation'],
      rhs_dilation=params['rhs_dilation'],
      dimension_numbers=numbers,
      precision=lax.Precision.HIGHEST,
    )
    # Channels major, then the window, as in rhs_spec[1:]; each group is a row.
    patches = jnp.moveaxis(patches, numbers.out_spec[1], -1)
    x = _columns(patches.reshape(-1, *sizes), probe, dims)
    k = x.shape[-1]
  return Rows(x, jnp.ones(x.shape[0], bool), k, dims)


def _ragged_rows(probe, side, operands, params, statistic):
  numbers = params['ragged_dot_dimension_numbers']
  contracting, batch = numbers.dot_dimension_numbers
  ragged = numbers.lhs_ragged_dimensions
  known = side == 1 and not any(batch) and len(ragged) == 1
  if not known or ragged[0] in contracting[0]:
    raise _not_a_weight(probe, 'ragged_dot_general')
  x, _, group_sizes = operands
  other = contracting[0]
  free = [i for i in range(x.ndim) if i not in (*other, *ragged)]
  # Rows of one group lie behind each other along the ragged axis, so it goes first.
  x = lax.transpose(x, (*ragged, *free, *other))
  rows = x.shape[0]
  each = math.prod(x.shape[1 : 1 + len(free)])
  x = x.reshape(rows, each, *x.shape[1 + len(free) :])
  x = _columns(x, probe, contracting[1])
  # Every group gets all rows and a mask of its own ones: shapes stay static.
  ends = jnp.cumsum(group_sizes)
  index = jnp.arange(rows)[None]
  mine = (index >= (ends - group_sizes)[:, None]) & (index < ends[:, None])
  mine = jnp.repeat(mine, x.shape[1], axis=1)
  x = x.reshape(-1, x.shape[-1])
  x = jnp.broadcast_to(x, (len(ends), *x.shape))
  groups = tuple(numbers.rhs_group_dimensions)
  _complete(probe, groups)
  return Rows(x, mine, x.shape[-1], contracting[1], groups)


def _not_a_weight(probe, primitive) -> ValueError:
  return ValueError(
    f'{probe.path} is not the weight of a {primitive} that it reaches, or that'
    ' one is batched over groups: what it meets there is not observed. Leave it'
    f' out with (r"{re.escape(probe.path)}", None).'
  )


ROWS = {
  'dot_general': _dot_rows,
  'conv_general_dilated': _conv_rows,
  'ragged_dot_general': _ragged_rows,
}
