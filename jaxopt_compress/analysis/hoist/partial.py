"""Which values of a program no data touch, and which of these meet data.

A value of the walk is a node of the graph (`known`), or `DATA`. An equation on known
values alone gives known values, a scan, a loop or a branch among them as one step.
Any other reads its known operands: these are what must be there when it runs.

A turn of a scan gets rows of the known values that the scan goes through, and what it
computes from rows is known as well: a value for each turn. What a function with a
derivative of its own reads is left as it is, as the derivative reads it, too; so is what
a `shard_map` reads.
"""

from collections.abc import Sequence
from typing import Any

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.hoist import known

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
    self._loop = None

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
    by_platform = at.eqn.params.get('branches_platforms') is not None
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
    self.read(x, 'scan')
    return DATA

  def scanned(self, at, xs):
    self._loop = loop(at)

  def layer(self, x, turn, aval):
    return self.graph.row(x, self._loop, aval) if is_known(x) else DATA

  def stack(self, ys, aval):
    for y in ys:
      self.read(y, 'scan')
    return DATA


def loop(at: walk.At) -> known.Loop:
  """The loop that a scan is."""
  around = [walk.enter(outer.eqn) for outer, _ in at.around]
  depth = sum(isinstance(inside, walk.Scan) for inside in around)
  return known.Loop(depth, walk.enter(at.eqn).times)


def is_known(x: Any) -> bool:
  return isinstance(x, known.Known)
