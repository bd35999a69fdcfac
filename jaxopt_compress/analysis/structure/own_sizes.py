"""Sizes that a program has itself, and numbers that depend on them.

    y.reshape(5, 2, 4)      does not run with one channel more: `Group.fixed`
    y / 768                 runs, and divides by another number: `Group.inexact`

A program is traced again with one channel more. It must make the same groups, one
larger; and if it then has other numbers, they depend on the size.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import re
from typing import Any

import numpy as np

from jaxopt_compress.analysis import raised
from jaxopt_compress.analysis import walk
from jaxopt_compress.core import jaxprs

# From which operand on there are indices.
_INDICES = {'dynamic_slice': 1, 'dynamic_update_slice': 2, 'gather': 1}


def compared(
  closed: Any,
  structure: Any,
  perhaps: Mapping[str, Sequence[str]],
  traced: Callable,
) -> Any:
  """The structure of a program, with what it says itself of the sizes of its groups.

  Args:
    closed: the program.
    structure: what was found of it.
    perhaps: {group: numbers of the program that fit its size}.
    traced: a function of other sizes `{group: size}` that returns the program of these
      and what is found of it.
  """
  # Layers that are alike are so in this, too: one question for all of them.
  kinds = collections.defaultdict(list)
  for name, group in structure.free.items():
    kinds[re.sub(r'\d+(?=.*:)', '#', name), group.size].append(name)
  groups = dict(structure.groups)
  here = list(_computing(closed))

  def ask(alike: Sequence[list[str]]):
    """Traces with more channels of some kinds: (the program, apart, numbers)."""
    more = zip(alike, _more(), strict=False)
    sizes = {name: groups[name].size + n for kind, n in more for name in kind}
    try:
      other, (again, _) = traced(sizes)
    except Exception as e:  # whatever the model raises
      return None, raised.said(e), ()
    apart = _groups_apart(structure, again, sizes)
    return other, apart, _numbers_apart(closed, here, other)

  def loud(alike: list[list[str]]) -> Iterator[list[str]]:
    """The kinds of which the program has sizes or numbers, found by halves."""
    if len(alike) < 2:
      yield from alike
    elif any(ask(alike)[1:]):
      yield from loud(alike[: len(alike) // 2])
      yield from loud(alike[len(alike) // 2 :])

  # What shares an axis is often reshaped, to sizes that the program may have itself.
  shared = {
    name
    for layouts in structure.axes.values()
    for layout in layouts
    for name in (layout if len(layout) > 1 else ())
  }
  suspect = shared.union(name for name, numbers in perhaps.items() if numbers)
  quiet = [kind for kind in kinds.values() if suspect.isdisjoint(kind)]
  asked = [kind for kind in kinds.values() if kind not in quiet]
  for alike in (*asked, *loud(quiet)):
    other, fixed, numbers = ask([alike])
    for name in alike:
      more = perhaps.get(name, ()) if other is None or fixed else ()
      inexact = tuple(dict.fromkeys((*groups[name].inexact, *numbers, *more)))
      groups[name] = dataclasses.replace(
        groups[name], fixed=fixed, inexact=inexact
      )
  return dataclasses.replace(structure, groups=groups)


def _more() -> Iterator[int]:
  """How many channels more each kind gets: 1, then primes.

  All differ, so that what is equal comes apart, and none is divided by what a program
  divides a size by: as one channel more would, each shows what the program expects.
  """
  yield 1
  yield from (
    n for n in itertools.count(67, 2) if all(n % d for d in range(3, n, 2))
  )


def _groups_apart(structure, other, sizes) -> str:
  got = {name: group.size for name, group in other.groups.items()}
  want = {name: group.size for name, group in structure.groups.items()} | sizes
  if other.axes == structure.axes and got == want:
    return ''
  apart = [n for n in want if got.get(n) != want[n]]
  return f'with one channel more it has other groups ({", ".join(apart[:3])})'


def _numbers_apart(a, here, b) -> tuple[str, ...]:
  """Where programs differ in the numbers in them; `here`: the equations of a."""
  there = list(_computing(b))
  if [at.path for at in here] != [at.path for at in there]:
    return ('with one channel more it has other operations',)
  apart = {}
  for at, other in zip(here, there, strict=True):
    for v, w in zip(at.eqn.invars, other.eqn.invars, strict=True):
      if _number(v) != _number(w):
        name = at.eqn.primitive.name
        apart[
          f'{name} has a number for their size at {at.source or at.path}'
        ] = 1
  scalars = [
    [float(x) for x in jaxprs.opened(c)[1] if np.shape(x) == () and _real(x)]
    for c in (a, b)
  ]
  if scalars[0] != scalars[1]:
    apart['a constant of the program depends on their size'] = 1
  return tuple(apart)


def _computing(jaxpr, outer: walk.At | None = None) -> Iterator[walk.At]:
  """The equations inside of which there is no program, without those of indices.

  Where a slice begins is counted with sizes of axes, whatever it begins at.
  """
  jaxpr, _ = jaxprs.opened(jaxpr)
  needed = {v for v in jaxpr.outvars if jaxprs.is_var(v)}
  for eqn in reversed(jaxpr.eqns):
    if not (eqn.effects or any(v in needed for v in eqn.outvars)):
      continue
    values = eqn.invars[: _INDICES.get(eqn.primitive.name)]
    needed.update(v for v in values if jaxprs.is_var(v))
    at, inside = walk.At(eqn, outer), walk.enter(eqn)
    if inside is None or isinstance(inside, walk.Opaque):
      yield at
      continue
    for body in inside.bodies:
      yield from _computing(body, at)


def _number(v):
  # As text: NaN is not itself.
  return '' if jaxprs.is_var(v) or np.shape(v.val) else str(v.val)


def _real(x) -> bool:
  return hasattr(x, 'dtype') and np.issubdtype(x.dtype, np.number)
