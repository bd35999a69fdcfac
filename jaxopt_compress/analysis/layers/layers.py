"""Layers that can go: numbered siblings that pass one value on.

    blocks/0, blocks/1, blocks/2      x0 -> x1 -> x2 -> x3

Parameters tell which siblings there are: names that differ in a number. The program
tells whether they are layers: all that goes from one to the next is one value, and what
they compute is the same program of other weights. No name of a module is known.

A value between two layers is found as a cut: of all that earlier layers made, it alone
is read by later ones. Where the first layer begins and the last one ends is found by
laying another layer over it, operation by operation.
"""

import dataclasses
import functools

from jaxopt_compress.analysis.layers import cuts as cuts_lib
from jaxopt_compress.analysis.layers import flat as flat_lib
from jaxopt_compress.analysis.layers import overlay
from jaxopt_compress.analysis.layers import siblings
from jaxopt_compress.analysis.structure import numbers as structure_numbers
from jaxopt_compress.analysis.structure import tied


@dataclasses.dataclass(frozen=True)
class Layers:
  """Layers of one kind.

  Attributes:
    prefixes: of each layer, the paths that its parameters begin with: several where
      they are kept apart, as kernels and statistics are.
    streams: the values that each layer gets and gives, by number in the flat program.
    locked, inexact: as in `structure.Group`.
  """

  prefixes: tuple[tuple[str, ...], ...]
  streams: tuple[tuple[int, int], ...]
  locked: tuple[str, ...] = ()
  inexact: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    return f'{self.prefixes[0][0]}:layers'


def found(closed, paths: list[str]) -> list[Layers]:
  """The layers of a program of which the first inputs are leaves with these paths."""
  families = siblings.families(paths)
  if not families:
    return []
  program = cuts_lib.Program(flat_lib.flatten(closed), paths)
  done, covered = [], set()
  for family, members in families.items():
    if family not in covered and len(members) > 1:
      for layers, others in _of_family(program, family, members):
        done.append(layers)
        covered |= others
  return done


def operations(
  closed, paths: list[str]
) -> dict[tuple[int, ...], tuple[str, int]]:
  """{place: (kind of layers, number)} of the operations that one layer alone has."""
  program = cuts_lib.Program(flat_lib.flatten(closed), paths)
  inside: dict[tuple[int, ...], set[tuple[str, int]]] = {}
  for kind in found(closed, paths):
    for i, (begin, end) in enumerate(kind.streams):
      for step in _from(program, begin, end):
        inside.setdefault(step.at.place, set()).add((kind.name, i))
  return {at: min(who) for at, who in inside.items() if len(who) == 1}


def _of_family(program, family, numbers):
  """(layers, families that they cover), for each kind of layers in a family."""
  place = {n: i for i, n in enumerate(numbers)}

  @functools.cache
  def of(path):
    n = siblings.member(path, family)
    return None if n is None else place[n]

  if not _repeats(program, family):
    return
  cuts = cuts_lib.between(program, of, len(numbers))
  if not any(cuts):
    return
  # What a layer gets, and what it may give. What follows it before the next one,
  # such as what makes an image smaller, is in no layer.
  begins = [None, *(c[0] if c else None for c in cuts)]
  ends = [list(pair) for pair in zip(begins, [*cuts, []], strict=True)]
  kinds = overlay.kinds(program, family, numbers, ends)
  alike = [
    (members, also)
    for members, also in kinds
    if len(members) > 1
    and _one_after_another(program, ends, members)
    and _weighs(program, {family, *also}, numbers[members[0]])
  ]
  for members, also in alike:
    prefixes = tuple(
      tuple(
        siblings.prefix(f, numbers[i])
        for f in _heaviest_first(program, {family, *also}, numbers[members[0]])
      )
      for i in members
    )
    streams = tuple(
      (begin, end) for begin, (end,) in map(ends.__getitem__, members)
    )
    apart = [
      why
      for i in members
      if (
        why := _resized(program, siblings.prefix(family, numbers[i]), *ends[i])
      )
    ]
    made = Layers(prefixes, streams, tuple(apart))
    yield dataclasses.replace(made, inexact=_moves(program, made)), also
  stay = {*range(len(numbers))}.difference(*(members for members, _ in alike))
  for i in sorted(stay) if alike else ():
    path = siblings.prefix(family, numbers[i])
    why = _resized(program, path, *ends[i])
    yield (
      Layers(((path,),), (), (why or 'no other layer computes the same',)),
      set(),
    )


def _repeats(program, family) -> bool:
  """Whether two siblings have a parameter of one name and shape."""
  met = set()
  for x, path in program.path.items():
    n = siblings.member(path, family)
    if n is not None:
      own = siblings.prefix(family, n)
      what = path.removeprefix(own), program.flat.types[x].shape
      if what in met:
        return True
      met.add(what)
  return False


def _resized(program, path, begin, gives) -> str:
  """Says so if a layer gives something of another shape than it gets."""
  if begin is None or not gives:
    return ''
  a, b = (program.flat.types[x] for x in (begin, gives[0]))
  if (a.shape, a.dtype) == (b.shape, b.dtype):
    return ''
  return f'{path} takes {a.str_short()} and gives {b.str_short()}'


def _one_after_another(program, ends, members) -> bool:
  """Whether layers pass on all that they give, and nothing lies between them."""
  for i in members:
    begin, gives = ends[i]
    if len(gives) != 1 or cuts_lib.bypassed(program, begin, *gives):
      return False
    if i + 1 in members and ends[i + 1][0] != gives[0]:
      return False
  return True


def _heaviest_first(program, families, n) -> list[siblings.Family]:
  """Families of which a sibling has a matrix come first, and name the layers."""
  return sorted(families, key=lambda f: (not _weighs(program, [f], n), f))


def _weighs(program, families, n) -> bool:
  """Whether a sibling has a matrix: a norm alone is no layer."""
  inside = tuple(siblings.prefix(f, n) for f in families)
  return any(
    sum(m > 1 for m in program.flat.types[x].shape) > 1
    for x, path in program.path.items()
    if siblings.within(path, inside)
  )


# ------------------------------------------------------------------ without one


def _moves(program, layers) -> tuple[str, ...]:
  """Why a layer of zeros does not give what it gets; () if it does."""
  begin, end = layers.streams[-1]
  names = layers.prefixes[-1]
  asked = tied.Tied(structure_numbers.RULES)
  known, same = {}, {begin}

  def read(x):
    if not isinstance(x, int):
      return asked.constant(x.val)
    if x not in known:
      if x in program.flat.constants:
        known[x] = asked.constant(program.flat.constants[x])
      else:
        zero = x in program.path and siblings.within(program.path[x], names)
        known[x] = asked.plain(program.flat.types[x])._replace(
          zeros=tied.everywhere if zero else tied.nowhere
        )
    return known[x]

  for step in _from(program, begin, end):
    values = [read(x) for x in step.inputs]
    outs = asked.apply(step.at, values)
    known.update(zip(step.outputs, outs, strict=True))
    if _passes(program, step, values, same, begin):
      same.add(step.outputs[0])
  if end in same:
    return ()
  return (
    f'{names[0]} with weights of zero does not give what it gets, so a mask is not'
    ' the network without it',
  )


def _from(program, begin, end) -> list[flat_lib.Step]:
  """The steps that lead from one value to another, and what they need."""
  needed, found = {end}, []
  for step in reversed(program.flat.steps):
    if needed.intersection(step.outputs):
      found.append(step)
      needed.update(x for x in step.inputs if x != begin and isinstance(x, int))
  return found[::-1]


def _passes(program, step, values, same, begin) -> bool:
  """Whether a step gives the value that the layer got."""
  name, types = step.eqn.primitive.name, program.flat.types
  here = [isinstance(x, int) and x in same for x in step.inputs]
  if not any(here):
    return False
  if types[step.outputs[0]].shape != types[next(iter(same))].shape:
    return False
  rest = [v for v, mine in zip(values, here, strict=True) if not mine]
  zero = all(v.zeros is tied.everywhere for v in rest)
  if name in ('add', 'add_any'):
    return len(rest) == 1 and zero
  if name == 'sub':
    return here[0] and zero
  if name == 'max':
    # What is positive already: it came out of another maximum with zero.
    return zero and _is_positive(program, begin)
  return name in ('copy', 'stop_gradient', 'optimization_barrier', 'name')


def _is_positive(program, x) -> bool:
  step, _ = program.made_by.get(x, (None, 0))
  return (
    step is not None
    and step.eqn.primitive.name == 'max'
    and any(not isinstance(v, int) and not v.val for v in step.inputs)
  )
