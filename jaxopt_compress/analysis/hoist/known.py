"""Values that no data touch, as a graph: how each comes from parameters.

    Given      a parameter
    Constant   an array or a number of the program
    Row        what a turn of a scan gets of a value that the scan goes through
    Result     of a step, an equation whose operands are all known

The same step on the same operands is one node: a table that is cast for a lookup and
again for the logits is cast once.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import numpy as np


class Loop(NamedTuple):
  """A scan: how many scans are around it, and its turns.

  What depends on no data is a function of the number of the turn, and so the same in
  another scan of as many turns: in a backward pass, say.
  """

  depth: int
  times: int


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
  """A value that depends on no data.

  Attributes:
    aval: its type; in a loop, that of one turn.
    number: larger than those of the values it comes from.
    parents: numbers of the parameters that it comes from, none for a constant.
    loops: the scans on whose turns it depends, outermost first.
  """

  aval: Any
  number: int
  parents: frozenset[int] = frozenset()
  loops: tuple[Loop, ...] = ()
  operands = ()

  @property
  def shape(self) -> tuple[int, ...]:
    """With the turns of its loops as first axes."""
    return (*(loop.times for loop in self.loops), *self.aval.shape)


class Given(Known):
  """A parameter."""


@dataclasses.dataclass(frozen=True, eq=False)
class Constant(Known):
  """An array or a number in the program."""

  value: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Row(Known):
  """Of `of`, what a turn of the scan `loop` gets."""

  of: Known = None
  loop: Loop = None
  operands = property(lambda self: (self.of,))


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """An equation on known operands, and what it makes."""

  eqn: Any
  operands: tuple[Known, ...]
  results: list['Result'] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Result(Known):
  """A result of a step."""

  step: Step = None
  operands = property(lambda self: self.step.operands)


class Graph:
  """The known values of a program, each once."""

  def __init__(self):
    self._nodes: dict[Any, Any] = {}
    self._held = []  # what is told apart by its identity
    self._count = 0

  def _number(self) -> int:
    self._count += 1
    return self._count

  def given(self, i: int, aval) -> Given:
    """The parameter of a number."""
    return Given(aval, self._number(), frozenset([i]))

  def constant(self, x) -> Constant:
    """An array of the program: numbers that are equal are one."""
    aval = jax.typeof(x)
    key = id(x)
    if aval.ndim == 0 and not isinstance(x, jax.core.Tracer):
      if not jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        key = str(aval), aval.weak_type, np.asarray(x).tobytes()
    if key not in self._nodes:
      self._held.append(x)
      self._nodes[key] = Constant(aval, self._number(), value=x)
    return self._nodes[key]

  def turns(self, first: int, loop: Loop, reverse: bool, aval) -> Row:
    """The number that a scan counts: `first`, and one more in each turn."""
    key = 'turns', first, loop, reverse, aval.dtype
    if key not in self._nodes:
      numbers = np.arange(first, first + loop.times, dtype=aval.dtype)
      # What is computed in the first turn lies at the end of a reversed scan.
      self._nodes[key] = self.constant(numbers[::-1] if reverse else numbers)
    return self.row(self._nodes[key], loop, aval)

  def row(self, of: Known, loop: Loop, aval) -> Row:
    """What a turn of a scan gets."""
    key = 'row', of, loop
    if key not in self._nodes:
      loops = _nested((*of.loops, loop))
      self._nodes[key] = Row(
        aval, self._number(), of.parents, loops, of=of, loop=loop
      )
    return self._nodes[key]

  def step(self, eqn, operands: Sequence[Known]) -> list[Known]:
    """The results of an equation on known operands."""
    # What nothing reads is not there to be read by others.
    kept = (type(v) for v in eqn.outvars)
    key = (
      eqn.primitive.name,
      *operands,
      *kept,
      *sorted(eqn.params.items()),
    )
    try:
      hash(key)
    except TypeError:  # parameters that cannot be compared
      key = id(eqn), *operands
      self._held.append(eqn)
    if key not in self._nodes:
      self._nodes[key] = step = Step(eqn, tuple(operands))
      parents = frozenset().union(*(x.parents for x in operands))
      loops = _nested(loop for x in operands for loop in x.loops)
      for v in eqn.outvars:
        made = Result(v.aval, self._number(), parents, loops, step=step)
        step.results.append(made)
    return list(self._nodes[key].results)


def _nested(loops: Iterable[Loop]) -> tuple[Loop, ...]:
  return tuple(sorted(set(loops)))  # by their depth


def behind(
  values: Iterable[Known], ends: Callable[[Known], bool]
) -> list[Known]:
  """These values and what they come from, the latter first.

  Args:
    values: where to begin.
    ends: whether what a value comes from is left out.
  """
  found, waiting = set(), list(values)
  while waiting:
    x = waiting.pop()
    if x not in found:
      found.add(x)
      if not ends(x):
        waiting.extend(x.operands)
  return sorted(found, key=lambda x: x.number)
