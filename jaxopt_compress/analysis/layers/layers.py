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

from jaxopt_compress.analysis.layers import alone
from jaxopt_compress.analysis.layers import cuts as cuts_lib
from jaxopt_compress.analysis.layers import flat as flat_lib
from jaxopt_compress.analysis.layers import overlay
from jaxopt_compress.analysis.layers import passing
from jaxopt_compress.analysis.layers import siblings
from jaxopt_compress.analysis.structure import tied


@dataclasses.dataclass(frozen=True)
class Layers:
  """Layers of one kind.

  Attributes:
    prefixes: of each layer, the paths that its parameters begin with: several where
      they are kept apart, as kernels and statistics are.
    streams: the values that each layer gets and gives, by number in the flat program.
    locked, inexact: as in `structure.Group`.
    passing: {path: as what it makes its layer give what that gets}, of all layers;
      see `passing.settings`.
  """

  prefixes: tuple[tuple[str, ...], ...]
  streams: tuple[tuple[int, int], ...]
  locked: tuple[str, ...] = ()
  inexact: tuple[str, ...] = ()
  passing: dict[str, str] = dataclasses.field(default_factory=dict)

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
  return _with_alone(program, families, done)


def operations(
  closed, paths: list[str]
) -> dict[tuple[int, ...], tuple[str, int]]:
  """{place: (kind of layers, number)} of the operations that one layer alone has."""
  program = cuts_lib.Program(flat_lib.flatten(closed), paths)
  inside: dict[tuple[int, ...], set[tuple[str, int]]] = {}
  for kind in found(closed, paths):
    for i, (begin, end) in enumerate(kind.streams):
      for step in passing.steps(program, begin, end):
        inside.setdefault(step.at.place, set()).add((kind.name, i))
  return {at: min(who) for at, who in inside.items() if len(who) == 1}


def in_loops(closed, structure) -> dict[str, dict[str, str]]:
  """{group: `Layers.passing`} of the layers of loops over stacked parameters."""
  loops = [n for n, g in structure.groups.items() if tied.LOOP in g.inexact]
  if not loops:
    return {}
  paths = list(structure.shapes)
  program = cuts_lib.Program(flat_lib.flatten(closed), paths)
  return dict(passing.of_loops(program, loops, structure))


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
    made = dataclasses.replace(made, passing=_settings(program, made))
    yield dataclasses.replace(made, inexact=_moves(program, made)), also
  stay = {*range(len(numbers))}.difference(*(members for members, _ in alike))
  for i in sorted(stay) if alike else ():
    path = siblings.prefix(family, numbers[i])
    why = _resized(program, path, *ends[i]) or _ALONE
    yield Layers(((path,),), (), (why,)), set()


# Such a layer stays, and may be there more often.
_ALONE = 'no other layer computes the same'


def _with_alone(program, families, done) -> list[Layers]:
  """The layers, and those that no other one is like but that pass a value on."""
  named = {kind.prefixes[0][0]: kind for kind in done}
  streams = alone.Streams(program)
  for family, numbers in families.items():
    for n in numbers:
      path = siblings.prefix(family, n)
      kind = named.get(path, Layers(((path,),), (), (_ALONE,)))
      inner = any(
        siblings.within(path, p) for k in named.values() for p in k.prefixes
      )
      if kind.locked != (_ALONE,) or (inner and path not in named):
        continue
      kind = _repeatable(program, streams, kind)
      if kind.passing or kind.locked != (_ALONE,):
        named[path] = kind
  return list(named.values())


def _repeatable(program, streams, kind) -> Layers:
  """A layer of which it is known how it gives what it gets."""
  ((path,),) = kind.prefixes
  stream = streams.of(path)
  if stream is None:
    return kind
  prefixes = streams.prefixes(path, *stream)
  mine = inside(program, prefixes)
  found = passing.settings(program, *stream, mine)
  if {*found.values()} != {passing.ZEROS}:
    return kind
  beside = streams.beside(prefixes, *stream)
  if beside:
    why = f'one part of a block, as {beside[0]} is'
    return dataclasses.replace(kind, locked=(why,))
  return dataclasses.replace(kind, prefixes=(prefixes,), passing=found)


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
  if passing.passes(program, begin, end, inside(program, names)):
    return ()
  return (
    f'{names[0]} with weights of zero does not give what it gets, so a mask is not'
    ' the network without it',
  )


def _settings(program, layers) -> dict[str, str]:
  """`Layers.passing`: of the last layer, as all compute the same."""
  begin, end = layers.streams[-1]
  last = layers.prefixes[-1]
  mine = inside(program, last)
  found = passing.settings(program, begin, end, mine)
  return {
    new + path.removeprefix(old): word
    for path, word in found.items()
    for prefixes in layers.prefixes
    for new, old in zip(prefixes, last, strict=True)
    if siblings.within(path, (old,))
  }


def inside(program, prefixes) -> tuple[int, ...]:
  """The parameters of a layer, by number."""
  return tuple(
    x for x, path in program.path.items() if siblings.within(path, prefixes)
  )
