"""Sizes that a program has itself, and numbers that depend on them.

    y.reshape(5, 2, 4)      does not run with one channel more: `Group.fixed`
    y / 768                 runs, and divides by another number: `Group.inexact`

A program is traced again with one channel more, and with far fewer. It must make the
same groups, of these sizes; and if it then has other numbers, they depend on the size.
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
  kinds = _kinds(structure)
  groups, here = dict(structure.groups), list(_computing(closed))

  def ask(sizes, said=''):
    """Traces with other sizes: (why the program is another one, its numbers)."""
    try:
      other, (again, _) = traced(sizes)
    except Exception as e:  # whatever the model raises
      return raised.said(e), ()
    apart = _groups_apart(structure, again, sizes, said)
    return apart, _numbers_apart(closed, here, other, said)

  def more(alike):
    each = zip(alike, _more(), strict=False)
    return {name: groups[name].size + n for kind, n in each for name in kind}

  def few(alike):
    return {name: _few(groups[name]) for kind in alike for name in kind}

  def loud(alike: list[list[str]], sizes: Callable) -> Iterator[list[str]]:
    """The kinds of which the program has sizes or numbers, found by halves."""
    if len(alike) < 2:
      yield from alike
    elif any(ask(sizes(alike))):
      yield from loud(alike[: len(alike) // 2], sizes)
      yield from loud(alike[len(alike) // 2 :], sizes)

  quiet = _quiet(structure, perhaps, kinds)
  asked = [kind for kind in kinds if kind not in quiet]
  answers = {
    kind[0]: ask(more([kind]), 'one channel more')
    for kind in (*asked, *loud(quiet, more))
  }
  # n // 4 may be as large with one more: what passed is asked with few.
  passed = [k for k in kinds if not any(answers.get(k[0], ()))]
  for kind in loud(passed, few):
    answers[kind[0]] = ask(few([kind]), f'{_few(groups[kind[0]])} channels')
  for kind in kinds:
    fixed, numbers = answers.get(kind[0], ('', ()))
    for name in kind:
      fit = perhaps.get(name, ()) if fixed else ()
      groups[name] = _said_of(groups[name], fixed, (*numbers, *fit))
  return dataclasses.replace(structure, groups=groups)


def _kinds(structure) -> list[list[str]]:
  # Layers that are alike are so in this, too: one question for all of them.
  kinds = collections.defaultdict(list)
  for name, group in structure.free.items():
    kinds[re.sub(r'\d+(?=.*:)', '#', name), group.size].append(name)
  return [*kinds.values()]


def _said_of(group, fixed, numbers):
  inexact = tuple(dict.fromkeys((*group.inexact, *numbers)))
  return dataclasses.replace(group, fixed=fixed, inexact=inexact)


def _quiet(structure, perhaps, kinds) -> list[list[str]]:
  """The kinds of groups that a program hardly has sizes of."""
  # What shares an axis is often reshaped, to sizes that the program may have itself.
  shared = {
    name
    for layouts in structure.axes.values()
    for layout in layouts
    for name in (layout if len(layout) > 1 else ())
  }
  suspect = shared.union(name for name, numbers in perhaps.items() if numbers)
  return [kind for kind in kinds if suspect.isdisjoint(kind)]


def _few(group) -> int:
  """A size at which what is counted with another one shows."""
  few = max(group.size // 4, group.least, 2)
  return few if few < group.size else 2 * group.size


def _more() -> Iterator[int]:
  """How many channels more each kind gets: 1, then primes.

  All differ, so that what is equal comes apart, and none is divided by what a program
  divides a size by: as one channel more would, each shows what the program expects.
  """
  yield 1
  yield from (
    n for n in itertools.count(67, 2) if all(n % d for d in range(3, n, 2))
  )


def _groups_apart(structure, other, sizes, said) -> str:
  got = {name: group.size for name, group in other.groups.items()}
  want = {name: group.size for name, group in structure.groups.items()} | sizes
  if other.axes == structure.axes and got == want:
    return ''
  apart = [n for n in want if got.get(n) != want[n]]
  return f'with {said} it has other groups ({", ".join(apart[:3])})'


def _numbers_apart(a, here, b, said) -> tuple[str, ...]:
  """Where programs differ in the numbers in them; `here`: the equations of a."""
  there = list(_computing(b))
  if [at.path for at in here] != [at.path for at in there]:
    return (f'with {said} it has other operations',)
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
