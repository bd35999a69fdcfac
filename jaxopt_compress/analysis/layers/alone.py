"""What a layer gets and gives that has no other one to be compared with.

    stem -> x -> [ the steps that read its parameters ] -> y -> head

Both are values through which all goes, of one type: x the last one before these steps,
y the last one behind them that comes before another parameter is read.
"""

import collections

from jaxopt_compress.analysis.layers import cuts as cuts_lib
from jaxopt_compress.analysis.layers import flat as flat_lib
from jaxopt_compress.analysis.layers import passing
from jaxopt_compress.analysis.layers import siblings


class Streams:
  """The values of a program through which all goes, for one layer after another."""

  def __init__(self, program: cuts_lib.Program):
    self.program = program
    self._steps = flat_lib.live(program.flat, program.flat.outputs)
    self._read = [_read(program, step) for step in self._steps]
    self._cuts = _cuts(program, self._steps)

  def of(self, prefix: str) -> tuple[int, int] | None:
    """(what a layer gets, what it gives), or None where it changes its form."""
    own = [
      i
      for i, paths in enumerate(self._read)
      if any(siblings.within(path, (prefix,)) for path in paths)
    ]
    if not own:
      return None
    others = (i for i in range(own[-1] + 1, len(self._steps)) if self._read[i])
    behind = next(others, len(self._steps))
    before = [x for i, x in self._cuts if i < own[0]]
    after = [x for i, x in self._cuts if own[-1] <= i < behind]
    of_type = self.program.type
    alike = [y for y in after if before and of_type(y) == of_type(before[-1])]
    return (before[-1], alike[-1]) if alike else None

  def prefixes(self, prefix: str, begin: int, end: int) -> tuple[str, ...]:
    """Where the parameters of a layer are: kernels here, statistics there."""
    word, found = prefix.rpartition('/')[2], {prefix: None}
    for step in passing.steps(self.program, begin, end):
      for path in sorted(_read(self.program, step)):
        words = path.split('/')
        if word in words and not siblings.within(path, found):
          found['/'.join(words[: words.index(word) + 1])] = None
    return tuple(found)

  def beside(self, prefixes, begin: int, end: int) -> list[str]:
    """Parameters of other names that this layer alone reads."""
    own = {id(step) for step in passing.steps(self.program, begin, end)}
    inside, outside = set(), set()
    for step, paths in zip(self._steps, self._read, strict=True):
      (inside if id(step) in own else outside).update(paths)
    return sorted(
      p for p in inside - outside if not siblings.within(p, prefixes)
    )


def _read(program, step) -> set[str]:
  """The parameters that a step reads beside data."""
  values = [x for x in step.inputs if isinstance(x, int)]
  if all(x in program.pure for x in values):
    return set()
  return set().union(*(program.leaves.get(x, ()) for x in values))


def _cuts(program, steps) -> list[tuple[int, int]]:
  """[(step, the one value of data that is read after it)]."""
  left = collections.Counter(
    x
    for step in steps
    for x in {v for v in step.inputs if isinstance(v, int)} - program.pure
  )
  left.update(x for x in program.flat.outputs if isinstance(x, int))
  alive = {x for x in program.flat.inputs if left[x] and x not in program.pure}
  found = []
  for i, step in enumerate(steps):
    for x in {v for v in step.inputs if isinstance(v, int)} - program.pure:
      left[x] -= 1
      if not left[x]:
        alive.discard(x)
    alive |= {x for x in step.outputs if left[x] and x not in program.pure}
    if len(alive) == 1:
      found.append((i, *alive))
  return found
