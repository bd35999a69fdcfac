"""Values through which all goes that earlier layers hand to later ones.

    x0 -> layer 0 -> x1 -> layer 1 -> x2

Which operations belong to a layer is known from the parameters that they read. Of all
that is made by layers up to i, and read by later ones, a cut is the only one.
"""

import collections


class Program:
  """A flat program, and what of it is computed from parameters alone.

  `paths` are those of its first inputs, or {input: path}.
  """

  def __init__(self, flat, paths):
    if not isinstance(paths, dict):
      paths = dict(zip(flat.inputs, paths, strict=False))
    self.flat, self.path = flat, paths
    self.made_by = {
      x: (step, i) for step in flat.steps for i, x in enumerate(step.outputs)
    }
    self.pure = {*self.path, *flat.constants}
    self.leaves = {x: {path} for x, path in self.path.items()}
    for step in flat.steps:
      values = [x for x in step.inputs if isinstance(x, int)]
      if all(x in self.pure for x in values):
        self.pure.update(step.outputs)
        leaves = set().union(*(self.leaves.get(x, ()) for x in values))
        self.leaves.update(dict.fromkeys(step.outputs, leaves))

    # Asked for each family of siblings anew.
    self.values = [frozenset(_values(step)) for step in flat.steps]
    self.active = [values - self.pure for values in self.values]
    self._read = [
      set().union(*(self.leaves.get(x, ()) for x in values)) if active else ()
      for values, active in zip(self.values, self.active, strict=True)
    ]
    self._after: dict[int, dict[tuple, list[int]]] = {}

  def uses(self, of) -> list[int]:
    """Of each step, the last layer of which it reads parameters beside data, or -1."""
    return [
      max((m for m in map(of, leaves) if m is not None), default=-1)
      for leaves in self._read
    ]

  def activations(self, step) -> list[int]:
    """The operands that depend on data."""
    return [x for x in step.inputs if isinstance(x, int) and x not in self.pure]

  def type(self, x) -> tuple:
    """What tells values of one shape and dtype from others."""
    return self.flat.types[x].shape, self.flat.types[x].dtype

  def after(self, begin) -> dict[tuple, list[int]]:
    """{type: the values that are computed from one}, in order."""
    if begin not in self._after:
      reached, found = {begin}, collections.defaultdict(list)
      for step, values in zip(self.flat.steps, self.values, strict=True):
        if not reached.isdisjoint(values):
          reached.update(step.outputs)
          for x in step.outputs:
            found[self.type(x)].append(x)
      self._after[begin] = found
    return self._after[begin]


def _values(step) -> list[int]:
  return [x for x in step.inputs if isinstance(x, int)]


def between(program, of, n) -> list[list[int]]:
  """Values through which all goes from each layer to the next, the last one first."""
  steps, cuts = program.flat.steps, []
  uses = program.uses(of)
  last_used, next_used = _reach(program, uses)
  # The last layer that needs each step.
  until = [
    max(
      use,
      *(next_used.get(x, -1) for x in step.outputs),
      # What is added to a loss is no stream.
      *(
        last_used[x]
        for x in step.outputs
        if x in last_used and program.flat.types[x].size > 1
      ),
    )
    for step, use in zip(steps, uses, strict=True)
  ]
  for i in range(n - 1):
    # How many steps that later layers need have still to read each value.
    left, live, cut = collections.Counter(), set(), []
    needed = [k for k, last in enumerate(until) if last > i]
    for k in needed:
      left.update(program.values[k])
    for k in needed:
      outs = [
        x
        for x in steps[k].outputs
        if 0 <= last_used.get(x, -1) <= i < next_used.get(x, -1)
      ]
      if not outs:
        continue
      for x in program.values[k]:
        left[x] -= 1
        if not left[x]:
          live.discard(x)
      live |= {x for x in outs if left[x]}
      if len(live) == 1 and live <= set(outs) and last_used[outs[0]] == i:
        cut = [*live, *cut]
    cuts.append(cut)
  return cuts


def _reach(program, uses):
  """{value: last layer that made it}, {value: last layer that reads it}."""
  steps = program.flat.steps
  made, read = {}, {}
  for step, use, active in zip(steps, uses, program.active, strict=True):
    last = max([use, *(made[x] for x in active if x in made)])
    if last >= 0:
      made.update(dict.fromkeys(step.outputs, last))
  backwards = map(reversed, (steps, uses, program.active))
  for step, use, active in zip(*backwards, strict=True):
    last = max([use, *(read[x] for x in step.outputs if x in read)])
    if last >= 0:
      read.update((x, last) for x in active if read.get(x, -1) < last)
  return made, read


def bypassed(program, begin, end) -> bool:
  """Whether what a layer gets also meets, later on, what it gave."""
  around, after = {begin}, {end}
  for step, values in zip(program.flat.steps, program.values, strict=True):
    if around.isdisjoint(values) and after.isdisjoint(values):
      continue
    if values & after and values & (around - after):
      if any(program.flat.types[x].size > 1 for x in step.outputs):
        return True
    if values & around and end not in step.outputs:
      around.update(step.outputs)
    if values & after:
      after.update(step.outputs)
  return False
