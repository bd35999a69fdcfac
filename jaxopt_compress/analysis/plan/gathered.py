"""Some entries of an array, or of a leaf that stands for one, along some axes.

    materialize(taken(leaf, {i: index})) = materialize(leaf) at `index` of axis i

A leaf stays the leaf that it was: a mask goes with what it masks, a factor of an
adapter with the base, codes with their scales. Shardings are kept.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array


def taken(x: Any, moves: Mapping[int, np.ndarray]) -> Any:
  """The entries `index` of each axis `i`, for `{i: index}`.

  Args:
    x: an array of JAX or numpy, abstract or not, or a leaf. A leaf type that is more than arrays of
      the axes of what it stands for has a method `taken(index, axis)`, the axis
      counted from the end, that returns such a leaf or raises a ValueError.
    moves: axes from the start; int [new size], or of the axes of `x`, [..., new
      size, ...], where other entries are taken for each entry of other axes. These
      are gathered in the order given.

  Returns:
    [..., new size, ...], of the kind of `x`; what was numpy is on the device.

  Raises:
    ValueError: a leaf that cannot be taken apart there, or an array that cannot be
      cut over devices as it is.

  >>> taken(np.arange(6).reshape(2, 3), {1: np.array([2, 0])}).tolist()
  [[2, 0], [5, 3]]
  """
  alike = {
    i: m.ravel()
    for i, m in moves.items()
    if m.size == m.shape[i if m.ndim > 1 else 0]
  }
  if len(alike) == len(moves):
    # What removes most goes first: the others have less to copy.
    order = sorted(moves, key=lambda i: alike[i].size / x.shape[i])
    moves = {i: alike[i] for i in order}
  else:
    moves = {i: alike.get(i, m) for i, m in moves.items()}
  if array.is_compressed(x):
    for i, index in moves.items():
      x = _of_leaf(x, index, i - x.ndim)
    return x
  if isinstance(x, jax.ShapeDtypeStruct):
    return jax.eval_shape(lambda x: _gather(x, moves), x)
  if isinstance(x, np.ndarray):
    return array.on_device(_gather(x, moves, np.take, np.take_along_axis))
  x = jnp.asarray(x)
  sharding = jax.typeof(x).sharding if _is_traced(x) else x.sharding
  cut = isinstance(sharding, jax.sharding.NamedSharding) and any(sharding.spec)
  if not cut or not moves:
    return _gather(x, moves)
  return _placed(_gather(_whole(x, sharding, moves), moves), x, sharding)


def _is_traced(x) -> bool:
  return isinstance(x, jax.core.Tracer)


def _gather(x, moves, take=jnp.take, along=jnp.take_along_axis):
  for i, index in moves.items():
    if index.ndim == 1:
      x = take(x, index, axis=i, mode='clip')
    else:
      x = along(x, index, axis=i)
  return x


def _of_leaf(leaf, index, axis):
  own = getattr(type(leaf), 'taken', None)
  out = own(leaf, index, axis) if own else _by_parts(leaf, index, axis)
  want = list(leaf.shape)
  want[axis] = index.shape[axis if index.ndim > 1 else 0]
  assert tuple(out.shape) == tuple(want), (leaf, out.shape, want)
  return out


def _by_parts(leaf, index, axis):
  """The leaf of arrays that have its axes, or size one where they are shared."""
  if leaf.portable() is not leaf:
    raise ValueError(
      f'{leaf.describe()} is laid out for one machine. Take it apart first and lay'
      ' the smaller one out again: jc.pack(jc.shrink(plan, jc.unpack(tree)), ...).'
    )
  # Counted from the start: a factor may have an axis behind those of the leaf.
  i, n = axis + leaf.ndim, leaf.shape[axis]

  def part(x):
    if len(x.shape) >= leaf.ndim and x.shape[i] == n:
      behind = len(x.shape) - leaf.ndim if index.ndim > 1 else 0
      return taken(x, {i: index.reshape(index.shape + (1,) * behind)})
    if len(x.shape) >= leaf.ndim and x.shape[i] == 1:
      return x
    raise ValueError(
      f'{leaf.describe()} holds an array {tuple(x.shape)} for {tuple(leaf.shape)}, so'
      f' entries along axis {axis} do not come apart. Pass what it was made from, or'
      ' jc.materialize(tree), and make the leaf again.'
    )

  return jax.tree.map(
    part, leaf, is_leaf=lambda x: x is not leaf and array.is_compressed(x)
  )


def _whole(x, sharding, axes):
  """The array, not cut along some axes."""
  spec = [*sharding.spec, *[None] * (x.ndim - len(sharding.spec))]
  spec = [None if i in axes else s for i, s in enumerate(spec)]
  whole = sharding.update(spec=jax.sharding.PartitionSpec(*spec))
  return _put(x, whole)


def _placed(out, x, sharding):
  """On the devices that `x` lies on, cut as it is."""
  try:
    return _put(out, sharding)
  except ValueError as e:
    raise ValueError(
      f'Of shape {out.shape}, what had shape {x.shape} cannot be cut as'
      f' {sharding.spec} any more. Take multiples of the number of devices, or'
      ' replicate it first.'
    ) from e


def _put(x, sharding):
  # Under a trace the type of a value says how it is cut.
  return (jax.sharding.reshard if _is_traced(x) else jax.device_put)(
    x, sharding
  )
