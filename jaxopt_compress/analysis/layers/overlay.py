"""Layers that compute the same, of weights that differ in a number.

One layer is laid over another, operation by operation, from what it gives back to what
it gets. So it also shows where the first layer begins, and where the last one ends.
"""

from jaxopt_compress.analysis.layers import siblings


def kinds(program, family, numbers, ends) -> list[tuple[list[int], set]]:
  """[(layers that compute the same, families of their parameters)].

  Fills in where the first layer begins and where the last one ends.
  """
  found: list[tuple[list[int], set]] = []
  last = len(numbers) - 1
  # Layers in the middle come first: of them both ends are known.
  for i in sorted(range(last + 1), key=lambda i: i in (0, last)):
    for members, also in found:
      match = _laid_over(program, family, numbers, ends, i, members)
      if match is not None:
        members.append(i)
        also |= match
        break
    else:
      found.append(([i], set()))
  return [(sorted(members), also) for members, also in found]


def _laid_over(program, family, numbers, ends, i, members) -> set | None:
  """The families of parameters of layer i, if it computes what others do."""
  begin, gives = ends[i]
  for k in members:
    start, stops = ends[k]
    if gives:
      stops = stops or [z for y in gives for z in _like(program, start, y)]
      pairs = [(y, z) for z in stops for y in gives]
    else:
      pairs = [(y, z) for z in stops for y in _like(program, begin, z)]
    for y, z in pairs:
      laid = _pairs(program, family, numbers[i], numbers[k], y, z, begin, start)
      if laid is not None:
        first, second, also = laid
        ends[i][:], ends[k][:] = [first, [y]], [second, [z]]
        return also
  return None


def _like(program, begin, like) -> list[int]:
  """Values of the type of another one that are computed from `begin`."""
  if begin is None:
    return []
  return program.after(begin).get(program.type(like), [])


def _pairs(program, family, n, m, y, z, begin, start):
  """Lays what leads to y over what leads to z, back to where they begin.

  Returns:
    (beginning of y, beginning of z, families of the parameters), or None where the
    two are not the same program of parameters that differ in the numbers n and m.
  """
  if begin is None and start is None:
    return None
  also, laid, left = set(), {}, [(y, z)]
  while left:
    a, b = left.pop()
    if not (isinstance(a, int) and isinstance(b, int)):
      if isinstance(a, int) or isinstance(b, int):
        return None
      continue
    if a in laid or (a == b and a not in (begin, start)):
      if laid.get(a, a) != b:
        return None
      continue
    laid[a] = b
    if a == begin or b == start:
      if begin is not None and start is not None and (a, b) != (begin, start):
        return None
      begin, start = a, b
      continue
    if a in program.path or b in program.path:
      other = siblings.in_place_of(
        program.path.get(a), program.path.get(b), n, m
      )
      types = program.flat.types
      if other is None or types[a].shape != types[b].shape:
        return None
      also.add(other)
      continue
    (step, i), (twin, j) = (program.made_by.get(x, (None, 0)) for x in (a, b))
    if not _alike(program, step, twin) or i != j:
      constant = a in program.flat.constants and b in program.flat.constants
      if (
        constant and program.flat.types[a].shape == program.flat.types[b].shape
      ):
        continue
      return None
    left += zip(step.inputs, twin.inputs, strict=True)
  reached = begin in laid and laid[begin] == start
  return (begin, start, also) if reached and family in also else None


def _alike(program, step, twin) -> bool:
  if step is None or twin is None or len(step.inputs) != len(twin.inputs):
    return False
  shapes = [
    [program.flat.types[x].shape for x in s.outputs] for s in (step, twin)
  ]
  return step.eqn.primitive is twin.eqn.primitive and shapes[0] == shapes[1]
