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
    self._read = [
      (
        [x for x in step.inputs if isinstance(x, int) and x not in self.pure],
        set().union(*(self.leaves.get(x, ()) for x in _values(step))),
      )
      for step in flat.steps
    ]

  def uses(self, of) -> list[int]:
    """Of each step, the last layer of which it reads parameters beside data, or -1."""
    return [
      max((m for m in map(of, leaves) if m is not None), default=-1)
      if data and leaves
      else -1
      for data, leaves in self._read
    ]

  def activations(self, step) -> list[int]:
    """The operands that depend on data."""
    return [x for x in step.inputs if isinstance(x, int) and x not in self.pure]


def _values(step) -> list[int]:
  return [x for x in step.inputs if isinstance(x, int)]


def between(program, of, n) -> list[list[int]]:
  """Values through which all goes from each layer to the next, the last one first."""
  steps, cuts = program.flat.steps, []
  uses = program.uses(of)
  last_used, next_used = _reach(program, uses)
  for i in range(n - 1):

    def handed(x, i=i):
      made, read = last_used.get(x, -1), next_used.get(x, -1)
      return 0 <= made <= i and read > i

    # How many steps that later layers need have still to read each value.
    left, live, cut = collections.Counter(), set(), []
    needed = [
      step
      for step, use in zip(steps, uses, strict=True)
      if use > i
      or any(
        next_used.get(x, -1) > i
        or last_used.get(x, -1) > i
        and program.flat.types[x].size
        > 1  # what is added to a loss is no stream
        for x in step.outputs
      )
    ]
    for step in needed:
      left.update(set(_values(step)))
    for step in needed:
      outs = [x for x in step.outputs if handed(x)]
      if not outs:
        continue
      for x in set(_values(step)):
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
  for step, use in zip(steps, uses, strict=True):
    before = [made.get(x, -1) for x in program.activations(step)]
    last = max([use, *before])
    if last >= 0:
      made.update(dict.fromkeys(step.outputs, last))
  for step, use in zip(reversed(steps), reversed(uses), strict=True):
    last = max([use, *(read.get(x, -1) for x in step.outputs)])
    for x in program.activations(step):
      read[x] = max(last, read.get(x, -1))
  return made, read


def bypassed(program, begin, end) -> bool:
  """Whether what a layer gets also meets, later on, what it gave."""
  around, after = {begin}, {end}
  for step in program.flat.steps:
    values = set(_values(step))
    if values & after and values & (around - after):
      if any(program.flat.types[x].size > 1 for x in step.outputs):
        return True
    if values & around and end not in step.outputs:
      around.update(step.outputs)
    if values & after:
      after.update(step.outputs)
  return False
