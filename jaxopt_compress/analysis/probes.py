"""A leaf that watches a parameter on its way through a program that runs.

A `Probe` stands for a parameter under `lift` and carries the names of its axes
through what moves entries (`moved`). So what meets it knows which axis of the
parameter is which, also where a `shard_map` has cut it.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import lax

from jaxopt_compress.analysis import moved
from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Probe(array.CompressedArray):
  """Stands for a parameter; `axes[-i]` names the pieces of axis -i.

  `full` is the shape of the parameter, and `cut` pairs (axis of it, mesh axes)
  along which a `shard_map` has cut it, where `placed` was told. `value` is the
  array, or the leaf that computes for it.
  """

  value: Any
  axes: tuple = dataclasses.field(metadata={'static': True})
  full: tuple[int, ...] = dataclasses.field(metadata={'static': True})
  cut: tuple = dataclasses.field(default=(), metadata={'static': True})
  path: str = dataclasses.field(default='', metadata={'static': True})

  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)
  origin = property(lambda self: len(self.full))  # rank of the parameter

  def materialize(self):
    return array.materialize(self.value)

  @property
  def pieces(self) -> list[moved.Pieces]:
    """The pieces of each present axis, their sizes as they are here."""
    axes = self.axes[len(self.axes) - self.ndim :]
    return [moved.fit(p, n) for p, n in zip(axes, self.shape, strict=True)]


def probe(x, path: str = '') -> Any:
  """A probe that stands for a parameter; what has no shape stays itself."""
  if not hasattr(x, 'shape'):
    return x
  return Probe(x, tuple(moved.whole(x.shape)), x.shape, path=path)


def placed(x, spec) -> Any:
  """A probe that knows how a `shard_map` cuts it; other leaves as they are."""
  if not isinstance(x, Probe):
    return x
  cut = dict(x.cut)
  for pieces, names in zip(x.pieces, spec, strict=False):
    names = names if isinstance(names, tuple) else (names,)
    if pieces and names != (None,):
      axis = pieces[0][0]
      cut[axis] = (*cut.get(axis, ()), *names)
  return dataclasses.replace(x, cut=tuple(cut.items()))


def move_for(primitive) -> Callable | None:
  """What a probe does under a primitive that moves entries."""
  if primitive.name == 'all_gather':
    return _gather
  known = moved.moves_axes(primitive.name)
  return functools.partial(_move, primitive) if known else None


def _move(primitive, /, *operands, **params):
  """Moves the array, and the names of its axes with it."""
  side = [isinstance(x, Probe) for x in operands].index(True)
  if not moved.moves_operand(primitive.name, side):
    return lift.Dense('an index')
  probe = operands[side]
  values = [x.value if x is probe else x for x in operands]
  # What is observed comes as it was before it was cast to vary over devices.
  axes = frozenset().union(*(jaxprs.varying(jax.typeof(x)) for x in values))
  out = primitive.bind(*(jaxprs.vary(x, axes) for x in values), **params)
  outs = out if primitive.multiple_results else [out]
  shapes = [x.shape for x in outs]
  pieces = moved.Move(primitive.name, params, probe.shape, shapes).axes(
    probe.pieces
  )
  if pieces is None:
    return lift.Dense('axes are mixed')
  made = [
    dataclasses.replace(probe, value=x, axes=tuple(p))
    for x, p in zip(outs, pieces, strict=True)
  ]
  return made if primitive.multiple_results else made[0]


def _gather(x, *, axis_name, all_gather_dimension, **params):
  """The parts of a parameter that a `shard_map` had cut, joined again."""
  if params['axis_index_groups'] is not None or not params['tiled']:
    return lift.Dense('a gather of another form')
  value = lax.all_gather(
    x.value, axis_name, axis=all_gather_dimension, tiled=True
  )
  params = {**params, 'all_gather_dimension': all_gather_dimension}
  move = moved.Move('all_gather', params, x.shape, [value.shape])
  pieces = move.axes(x.pieces)
  if pieces is None:
    return lift.Dense('a gather of another form')
  names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
  # Of several pieces the first was cut; the leaf is whole along it from here on.
  joined = pieces[0][all_gather_dimension][0][0], names
  cut = tuple(c for c in x.cut if c != joined)
  return dataclasses.replace(x, value=value, axes=tuple(pieces[0]), cut=cut)
