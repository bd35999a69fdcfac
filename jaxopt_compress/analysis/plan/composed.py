"""Two plans, one after the other, as one.

first   [0, 2, 3, 5]   of the network that was there
second  [1, 2]         of what the first made
both    [2, 3]         of the network that was there
"""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxopt_compress.analysis.layers import siblings
from jaxopt_compress.analysis.structure import structure as structure_lib


def sources(
  first: Any, second: Any, paths: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """What both plans take of the first network, and {group of the second: of the first}.

  Args:
    first, second: plans.
    paths: {path of a leaf that the first makes: path of what it is made from}.

  Raises:
    ValueError: the second is not of what the first makes, or copies of one channel
      or layer that the first makes change apart.
  """
  made, want = first.shapes, second.structure.shapes
  for path in {**want, **made}:
    if made.get(path) != want.get(path):
      raise ValueError(
        f'The first plan makes {path} of shape {made.get(path)}, and the second is of'
        f' a network where it is {want.get(path)}: it is of another one. Make it of'
        ' what the first made: jc.structure(apply)(jc.shrink(first, params), ...).'
      )
  names = _names(first.structure, second.structure, paths)
  found, met = dict(first.sources), {}
  for theirs, mine in names.items():
    group = second.structure.groups[theirs]
    then = second.sources.get(theirs, np.arange(group.size))
    if not np.array_equal(met.setdefault(mine, then), then):
      raise ValueError(f'{theirs}: {_APART}')
    if theirs in second.sources:
      found[mine] = _taken(first, mine, then)
  for theirs in second.structure.layers.keys() & second.sources.keys():
    mine, taken = _layers(first, second, theirs, paths)
    names[theirs], found[mine] = mine, taken
  return found, names


_APART = (
  'copies of what the first plan repeats change apart, which no single plan says.'
  ' Keep the two plans.'
)


def _names(first, second, paths) -> dict[str, str]:
  """{group of the second network: group of the first}."""
  names = {}
  for new, layouts in second.axes.items():
    for theirs, mine in zip(layouts, first.axes[paths[new]], strict=True):
      for a, b in _pairs(theirs, mine):
        if names.setdefault(a, b) != b:
          raise ValueError(
            f'{a} of the second plan is {names[a]} and {b} of the first: channels'
            ' that go apart there go together here. Keep the two plans.'
          )
  return names


def _pairs(a, b) -> Iterator[tuple[str, str]]:
  theirs, mine = list(structure_lib.names(a)), list(structure_lib.names(b))
  if len(theirs) != len(mine):
    raise ValueError(
      f'An axis is made of {theirs} in the second plan and of {mine} in the first:'
      ' it has other groups once it is smaller. Keep the two plans.'
    )
  yield from zip(theirs, mine, strict=True)


def _taken(first, name, then) -> np.ndarray:
  """The channels of the first network that `then` takes of what is left of it."""
  structure = first.structure
  group = structure.groups[name]
  here = first.sources.get(name, np.arange(group.size))
  if then.ndim == 1:
    return here[..., then]
  # Its rows are of channels that are left: they go to where those were.
  outer = [
    first.sources.get(g, np.arange(structure.groups[g].size))
    for g in group.within
  ]
  if any(source.ndim > 1 for source in outer):
    raise ValueError(
      f'{name}: it lies within channels that differ from row to row, and differs'
      ' itself in the second plan. Keep the two plans.'
    )
  sizes = [structure.groups[g].size for g in group.within]
  then = np.broadcast_to(then, (*map(len, outer), then.shape[-1]))
  rows = np.zeros((*sizes, then.shape[-1]), int)
  rows[...] = then.reshape(-1, then.shape[-1])[0]
  rows[np.ix_(*outer)] = then
  if not np.array_equal(rows[np.ix_(*outer)], then):
    raise ValueError(f'{name}: {_APART}')
  here = np.broadcast_to(here, (*sizes, here.shape[-1]))
  return np.take_along_axis(here, rows, -1)


def _layers(first, second, theirs, paths) -> tuple[str, np.ndarray]:
  """The group of the first network that layers are of, and which of it they are."""
  at = {
    path: (name, i)
    for name, layers in first.structure.layers.items()
    for i, prefixes in enumerate(layers)
    for path in prefixes
  }
  found = []
  for i in second.sources[theirs]:
    prefix = second.structure.layers[theirs][i][0]
    new = next(p for p in paths if siblings.within(p, (prefix,)))
    old = paths[new]
    found.append(at.get(old[: len(old) - len(new) + len(prefix)]))
  names = {place and place[0] for place in found}
  name = names.pop() if len(names) == 1 else None
  group = first.structure.groups.get(name)
  left = group and len(first.sources.get(name, range(group.size)))
  if left != len(second.structure.layers[theirs]):
    raise ValueError(
      f'{theirs} of the second plan are not all the layers that the first leaves of'
      ' a group: others have other sizes. Keep the two plans.'
    )
  return name, np.array([i for _, i in found])
