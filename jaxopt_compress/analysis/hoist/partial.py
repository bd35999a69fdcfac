"""Which values of a program no data touch, and which of these meet data.

A value of the walk is a node of the graph (`known`), or `DATA`. An equation on known
values alone gives known values, a scan, a loop or a branch among them as one step.
Any other reads its known operands: these are what must be there when it runs.

A turn of a scan gets rows of the known values that the scan goes through, and what it
computes from rows is known as well: a value for each turn. So is what a `fori_loop` takes
by the number of the turn. What a function with a
derivative of its own reads is left as it is, as the derivative reads it, too; so is what
a `shard_map` reads.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.hoist import known
from jaxopt_compress.core import jaxprs

DATA = None

# {a value: the primitives that read it}
Reads = dict[known.Known, dict[str, bool]]

_RANDOM = ('random_', 'threefry', 'rng_')


class Partial(algebra.Algebra):
  """Goes through a program with data that are not there.

  Attributes:
    graph: its known values.
    reads: those that meet data, or are a result of the program.
    reads_in: {place of an equation: the known values that its programs read}.
    results: {place of an equation with programs inside: its results}.
  """

  def __init__(self):
    self.graph = known.Graph()
    self.reads: Reads = {}
    self.reads_in: dict[tuple[int, ...], Reads] = {}
    self.results: dict[tuple[int, ...], list] = {}

  def run(self, closed: Any, avals: Sequence[Any]) -> list:
    """Goes through a program, of which the first inputs are parameters.

    Args:
      closed: the program.
      avals: types of the parameters.

    Returns:
      A value for each input of the program.
    """
    inputs = [self.graph.given(i, x) for i, x in enumerate(avals)]
    inputs += [DATA] * (len(closed.jaxpr.invars) - len(inputs))
    for x in algebra.evaluate(self, closed, inputs):
      self.read(x, 'a result')
    return inputs

  def read(self, x: Any, primitive: str) -> None:
    """Notes that a value meets data."""
    if is_known(x) and not isinstance(x, known.Constant):
      self.reads.setdefault(x, {})[primitive] = True

  def plain(self, aval):
    return DATA

  def constant(self, x):
    return self.graph.constant(x)

  def apply(self, at, inputs):
    name = at.eqn.primitive.name
    if all(map(is_known, inputs)) and not at.eqn.effects:
      if name == 'optimization_barrier':
        return inputs
      # Of a key among the parameters nothing is computed once.
      if not name.startswith(_RANDOM):
        return self.graph.step(at.eqn, inputs)
    for x in inputs:
      self.read(x, name)
    return [DATA for _ in at.eqn.outvars]

  def enter(self, at, inside, inputs):
    if self.as_it_is(at, inside, inputs):
      return self.apply(at, inputs)
    around, self.reads = self.reads, {}
    if isinstance(inside, walk.Scan):
      outs = self._through_scan(at, inside, inputs)
    else:
      outs = super().enter(at, inside, inputs)
    self.reads_in[at.place], self.results[at.place] = self.reads, outs
    for x, by in self.reads.items():
      around[x] = around.get(x, {}) | by
    self.reads = around
    return outs

  def as_it_is(self, at: walk.At, inside: walk.Inside, inputs: list) -> bool:
    """Whether an equation is taken as one, with all that is inside."""
    custom = at.eqn.primitive.name.startswith('custom_')
    if isinstance(inside, walk.Call):
      return custom
    # Which branch is for which platform only the equation itself says.
    by_platform = isinstance(inside, walk.Cond) and inside.by_platform
    left = isinstance(inside, walk.ShardMap) or by_platform
    return left or all(map(is_known, inputs))

  def decide(self, x):
    self.read(x, 'cond')

  def join(self, cases, aval):
    if is_known(cases[0]) and all(x is cases[0] for x in cases):
      return cases[0]
    for x in cases:
      self.read(x, 'cond')
    return DATA

  def carry(self, x, aval):
    self.read(x, 'while')
    return DATA

  def _through_scan(self, at, scan, inputs):
    n, whole = scan.num_consts, scan.num_consts + scan.num_carry
    carry, xs = inputs[n:whole], inputs[whole:]
    starts, stays = self.starts(at, scan, carry)
    ends = self.turn(at, scan, inputs[:n], starts, xs)
    for x in [
      x for x, stay in zip([*carry, *ends], [*stays, *stays]) if not stay
    ]:
      self.read(x, 'scan')
    for y in ends[len(carry) :]:
      self.read(y, 'scan')
    last = [x if stay else DATA for x, stay in zip(carry, stays, strict=True)]
    return [*last, *(DATA for _ in ends[len(carry) :])]

  def starts(self, at, scan: walk.Scan, carry: list) -> tuple[list, list[bool]]:
    """What a turn of a scan knows of what is carried, and what all turns leave.

    A value that all turns leave as it is, and the number of the turn, are known.
    """
    variables = algebra.carried(scan.body, scan.num_consts, len(carry))
    stays = [
      stay and is_known(x)
      for x, (_, stay) in zip(carry, variables, strict=True)
    ]
    starts = [x if stay else DATA for x, stay in zip(carry, stays, strict=True)]
    for i in _counted(scan):
      x = carry[i]
      if isinstance(x, known.Constant) and not isinstance(
        x.value, jax.core.Tracer
      ):
        first = int(x.value)
        starts[i] = self.graph.turns(
          first, loop(at), scan.reverse, variables[i][0]
        )
    return starts, stays

  def turn(self, at, scan: walk.Scan, consts: list, carry: list, xs: list):
    """The results of the body of a scan."""
    parts = jaxprs.opened(scan.body)[0].invars[len(consts) + len(carry) :]
    here = [
      self.graph.row(x, loop(at), v.aval) if is_known(x) else x
      for x, v in zip(xs, parts, strict=True)
    ]
    return algebra.evaluate(self, scan.body, [*consts, *carry, *here], at)


def _counted(scan: walk.Scan) -> Iterator[int]:
  """The carried integers to which a scan adds one in each turn."""
  jaxpr, _ = jaxprs.opened(scan.body)
  n = scan.num_consts
  before = jaxpr.invars[n : n + scan.num_carry]
  adds = {
    eqn.outvars[0]: eqn for eqn in jaxpr.eqns if eqn.primitive.name == 'add'
  }
  for i, (v, out) in enumerate(zip(before, jaxpr.outvars)):
    eqn = adds.get(out) if jaxprs.is_var(out) else None
    if (
      eqn is None or v.aval.shape or not np.issubdtype(v.aval.dtype, np.integer)
    ):
      continue
    others = [x for x in eqn.invars if x is not v]
    if len(others) == 1 and not jaxprs.is_var(others[0]) and others[0].val == 1:
      yield i


def loop(at: walk.At) -> known.Loop:
  """The loop that a scan is."""
  around = [walk.enter(outer.eqn) for outer, _ in at.around]
  depth = sum(isinstance(inside, walk.Scan) for inside in around)
  return known.Loop(depth, walk.enter(at.eqn).times)


def is_known(x: Any) -> bool:
  return isinstance(x, known.Known)
