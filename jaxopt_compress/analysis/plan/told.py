"""What a plan prints: the sizes that change, what stays, and what is then another one.

 8 ->     16  up/kernel:-1
              not kept: reduce_sum at model.py:12 counts every copy
64            head/kernel:-1 stays: the size of a result
"""

from collections.abc import Mapping
import math

import numpy as np

from jaxopt_compress.analysis.plan import shares as shares_lib
from jaxopt_compress.analysis.structure import structure as structure_lib

_INDENT = f'{"":18}'


def of(
  structure: structure_lib.Structure,
  sources: Mapping[str, np.ndarray],
  asked: Mapping[str, int],
  shapes: Mapping[str, tuple[int, ...]],
) -> str:
  """The text of a plan.

  Args:
    structure, sources, asked: of the plan.
    shapes: {path: shape} that it makes.
  """
  before = sum(map(math.prod, structure.shapes.values()))
  after = sum(map(math.prod, shapes.values()))
  lines = [f'{before:,} -> {after:,} parameters']
  wider, rest = _wider(structure, sources)
  for name, source in sources.items():
    group, n = structure.groups[name], source.shape[-1]
    want = asked.get(name, n)
    rounded = '' if want == n else f'  (asked for {want})'
    lines.append(f'{group.size:6} -> {n:6}  {name}{rounded}')
    if name in wider:
      lines += [f'{_INDENT}not kept: {why}' for why in wider[name]]
    elif n != group.size:
      lines += [f'{_INDENT}not exact: {why}' for why in group.inexact]
    if n != group.size and group.fixed:
      # Heads, or groups of a norm: with as many as before it is another network.
      outer = any(name in g.within for g in structure.groups.values())
      own = n > group.size and (outer or 'it has other groups' in group.fixed)
      said = shares_lib.to_set(structure, name, n) if own else group.fixed
      lines.append(f'{_INDENT}{"" if own else "build the model again: "}{said}')
  return '\n'.join(lines + rest)


def _wider(structure, sources) -> tuple[dict[str, list[str]], list[str]]:
  """({group that grows: why the function is not kept}, lines of a plan that widens)."""
  try:
    grown = shares_lib.widened(structure, sources)
  except ValueError as e:
    return {}, [f'not for jc.grow: {e}']
  if not grown:
    return {}, []
  stays = [
    f'{group.size:6} {"":9}  {name} stays: {_stays(structure, group, grown)}'
    for name, group in structure.groups.items()
    if name not in sources
  ]
  if structure.program is None:
    return dict.fromkeys(grown, []), stays
  found = shares_lib.shares(structure, grown)
  whys = {g: [found.left[g]] if g in found.left else [] for g in grown}
  others = [
    f'not kept: {why}' for g, why in found.left.items() if g not in whys
  ]
  others += [
    f'kept up to {near}: what it is added to is another' for near in found.near
  ]
  others += [f'taken to go with it: {said}' for said in found.assumed]
  return whys, others + stays


def _stays(structure, group, grown) -> str:
  if group.locked:
    return group.locked[0]
  if structure.ordered(group.name):
    return 'its channels are layers, or lie in an order'
  beside = [
    g
    for layouts in structure.axes.values()
    for layout in layouts
    if group.name in layout
    for g in layout[: layout.index(group.name)]
  ]
  outside = [g for g in (*group.within, *beside) if g in grown]
  if outside:
    return (
      f'it lies within {outside[-1]}, which grows; sizes={{...}} widens both'
    )
  return 'it is not asked for'
