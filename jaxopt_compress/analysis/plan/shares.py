"""Which parameters make up for channels that a plan repeats.

    x W1 -> h, W2 -> y     of two copies of a channel of h: W2 takes one half each

The walk of `copied` collects what has to hold; here it is solved. Of the parameters
that could take the shares of a group up, those that read it do first, then gains and
biases: so the weights that make a channel are copies, as in Net2Net.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import raised
from jaxopt_compress.analysis.plan import copied
from jaxopt_compress.analysis.plan import copied_rules
from jaxopt_compress.analysis.plan import resized
from jaxopt_compress.analysis.plan import scaled
from jaxopt_compress.analysis.structure import numbers as structure_numbers
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.analysis.structure import tied

# Who takes something up, the first of these first: unknowns of loops; weights that
# read a group, and are used for nothing else; gains and biases; all others.
_LOOP, _READS, _VECTOR, _OTHER = range(4)


@dataclasses.dataclass(frozen=True)
class Shares:
  """What parameters take up where channels are repeated.

  Attributes:
    powers: {(path, axis, group): the power of the shares of the group that entries
      along the axis are multiplied by}.
    factors: {path: what all of a parameter is multiplied by}.
    reads: the (path, axis, group) where a weight alone takes the shares of what it
      reads up: there each output may have shares of its own.
    read, gains: the axes that weights are read along, of those that do nothing else;
      those of what multiplies.
    products: the weights of products, and tables.
    reduced: {group: where parameters alone are summed over it}: new channels that hold
      anything but copies change that.
    copies: {group: why its new channels have to be copies}.
    left: {group: why the network of the plan computes something else}; '' for what is
      of no one group.
    near: small numbers that are added to what is another now: exact up to these.
    assumed: numbers of the program that were taken to go with a size.
    constants: {group: what to do}, where the function runs with the new sizes but has
      as many channels as before, and so is another one.
  """

  powers: dict[copied.Power, float]
  factors: dict[str, float]
  reads: frozenset[copied.Power]
  read: frozenset[copied.Power]
  gains: frozenset[copied.Power]
  products: frozenset[str]
  reduced: dict[str, str]
  copies: dict[str, str]
  left: dict[str, str]
  near: tuple[str, ...] = ()
  assumed: tuple[str, ...] = ()
  constants: dict[str, str] = dataclasses.field(default_factory=dict)


def shares(
  structure: structure_lib.Structure,
  sources: Mapping[str, np.ndarray],
  *,
  silent: frozenset[str] = frozenset(),
  rebuilt: Callable | None = None,
) -> Shares:
  """Solves for what parameters take up.

  Args:
    structure: of the network that is there.
    sources: {group: int [new size], the source channel of each}, of groups that grow.
    silent: groups of which new channels are zero, not copies.
    rebuilt: the function of the model that is built of the new sizes, where the
      program has sizes of its own.

  Raises:
    ValueError: the structure was read from text, so there is no program.
  """
  if structure.program is None:
    raise ValueError(
      'This structure was read from text, which does not hold the program, and what'
      ' copies do is asked of that. Find it again: jc.structure(apply)(params, x).'
    )
  closed, arrays = structure.program({})
  sizes = {g: len(s) for g, s in sources.items()}
  program = _followed(closed, arrays)
  ratios, assumed = _numbers(structure, program, sizes, rebuilt)
  layouts = _layouts(program, set(sources) - silent)
  asked = copied.Copied(copied_rules.RULES, layouts, ratios)
  inputs = [
    asked.parameter(path, x, _of_axes(structure, path, set(sources) - silent))
    for path, x in arrays
  ]
  others = closed.jaxpr.invars[len(inputs) :]
  inputs += [asked.plain(v.aval) for v in others]
  for out in algebra.evaluate(asked, closed, inputs):
    asked.plain_copy(out, [{*axis} for axis in out.axes], None)
  counts = {g: np.unique(np.bincount(s)) for g, s in sources.items()}
  even = {g: math.log(c[0]) for g, c in counts.items() if len(c) == 1}
  found = _Solver(asked, _widths(structure, arrays), even).solved(assumed)
  own = _constants(structure, sizes, rebuilt)
  return dataclasses.replace(found, constants=own)


def to_set(structure: structure_lib.Structure, group: str, n: int) -> str:
  """What to do where the number of a group is a constant of the user's model."""
  size = structure.groups[group].size
  inner = {
    g.name: g.size * n // size
    for g in structure.free.values()
    if group in g.within and g.size * n % size == 0
  }
  keeps = f', or keep {size} and grow by sizes={inner}' if inner else ''
  return (
    f'{size} become {n}: set that number in your model, and pass jc.grow the function'
    f' as rebuilt={keeps}'
  )


def _constants(structure, sizes, rebuilt) -> dict[str, str]:
  """`Shares.constants`: of what the program with the new sizes has as before."""
  fixed = [g for g in sizes if structure.groups[g].fixed]
  if not fixed:
    return {}
  try:
    program = _followed(*structure.program(sizes, rebuilt))
  except Exception:  # what does not run is no other network by accident
    return {}
  channels = program.asked.channels
  got = {name: channels.size((leaf,)) for leaf, name in program.named.items()}
  return {
    g: to_set(structure, g, sizes[g])
    for g in fixed
    if got.get(g) == structure.groups[g].size
  }


def widened(
  structure: structure_lib.Structure, sources: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """{group: int [new size]}: the source of each channel, of those that grow in width.

  Raises:
    ValueError: channels go, or there are other sources from row to row.
  """
  found = {}
  for name, source in sources.items():
    group = structure.groups[name]
    rows = source.reshape(-1, source.shape[-1])
    if structure.ordered(name) or np.array_equal(
      rows[0], np.arange(group.size)
    ):
      continue
    if (rows != rows[0]).any():
      raise ValueError(
        f'{name} has other sources for each channel of {group.within}: grow with one'
        ' list for all of them.'
      )
    if len(np.unique(rows[0])) < group.size:
      raise ValueError(
        f'{name}: some of its {group.size} channels go. What grows keeps all; shrink'
        ' first, by jc.shrink, and find the structure of what is left.'
      )
    found[name] = rows[0]
  return found


def _of_axes(structure, path, groups):
  return [
    groups.intersection(structure_lib.names(layout))
    for layout in structure.axes[path]
  ]


def _widths(structure, arrays) -> dict[str, list[int]]:
  """{path: the sizes of the axes of a parameter, without that of a loop}."""
  loops = {g for g, x in structure.groups.items() if tied.LOOP in x.inexact}
  return {
    path: [
      n
      for n, layout in zip(x.shape, structure.axes[path], strict=True)
      if not loops.intersection(structure_lib.names(layout))
    ]
    for path, x in arrays
  }


class _Program(NamedTuple):
  """A program, the walk that found its groups, and the name of each of these."""

  closed: Any
  asked: resized.Recorded
  named: dict[int, str]


def _followed(closed, arrays) -> _Program:
  asked = resized.Recorded(structure_numbers.RULES)
  axes = structure_lib.follow(asked, closed, arrays)
  return _Program(closed, asked, structure_lib.leaf_names(asked.channels, axes))


def _layouts(program, groups):
  """{place: the groups that grow, of each axis of operands and of results}."""
  channels = program.asked.channels
  wanted = {leaf: g for leaf, g in program.named.items() if g in groups}

  def of(values):
    return [
      [{wanted[c] for c in channels.leaves(axis) if c in wanted} for axis in x]
      for x in values
    ]

  seen = program.asked.seen.items()
  return {place: (of(ins), of(outs)) for place, (_, ins, outs) in seen}


def _numbers(structure, program, sizes, rebuilt):
  """({id of an equation: {operand: log of its new number over the old}}, assumed)."""
  if not rebuilt and any(structure.groups[g].fixed for g in sizes):
    # With parameters of these sizes it may run, and is another program then.
    return _fitting(structure, program, sizes)
  try:
    other, _ = structure.program(sizes, rebuilt)
  except Exception as e:  # whatever a model raises
    if rebuilt:
      raise ValueError(
        f'The function that was built again does not run: {raised.said(e)}. Build it'
        ' of the sizes that the plan prints.'
      ) from e
    return _fitting(structure, program, sizes)
  return scaled.ratios(program.closed, other), ()


def _fitting(structure, program, sizes):
  """As `_numbers`, where numbers that fit a size are taken to go with it."""
  found, assumed, asked = {}, {}, program.asked
  for fit in asked.size_numbers.found:
    leaves = [program.named.get(c) for c in asked.channels.leaves(fit.axis)]
    logs = [
      math.log(sizes[g] / structure.groups[g].size)
      for g in leaves
      if g in sizes
    ]
    # Axes that are summed over come first: what else fits is by chance.
    place = found.setdefault(id(fit.eqn), {})
    if fit.operand not in place:
      place[fit.operand] = fit.power * sum(logs)
      if logs:
        assumed[fit.said] = None
  return found, tuple(assumed)


class _Solver:
  """Elimination: each equation gives one unknown in terms of the others."""

  def __init__(self, asked, widths, even):
    self.asked, self.widths, self.even = asked, widths, even
    self.solved_for: dict[Any, copied.Form] = {}
    self.left: dict[str, str] = dict(asked.broken)
    self.copies: dict[str, str] = dict(asked.repeats)
    self.vectors = {p for p, ns in widths.items() if sum(n > 1 for n in ns) < 2}

  def solved(self, assumed) -> Shares:
    for form, group, why in self.asked.powers:
      if self.equate(form) is False:
        self.left.setdefault(group, f'{why} needs plain copies')
    off = {('sum', i): self.sum(s) for i, s in enumerate(self.asked.sums)}
    for form, why in self.asked.logs:
      if self.equate(self.settled(form, off)) is False:
        self.left.setdefault('', f'{why} has a number for a size')
    # What is left to choose: a mean square that a small number is added to stays as it
    # was, where all that writes to it can take a factor up.
    near = [
      why
      for form, why in self.asked.near
      if self.equate(self.settled(form, off)) is False
    ]
    values = self.values()
    powers = {
      k: v for k, v in values.items() if isinstance(k, tuple) and len(k) == 3
    }
    powers = {k: v for k, v in powers.items() if k[0] in self.widths}
    factors = {
      k: math.exp(v)
      for k, v in values.items()
      if isinstance(k, str) and abs(v) > 1e-6
    }
    alone = {
      k
      for k, v in powers.items()
      if abs(v - 1) < 1e-9 and self.cost(k) == _READS
    }
    places = self.asked.places
    return Shares(
      powers,
      factors,
      frozenset(alone),
      frozenset(k for k in places.reads if self.cost(k) == _READS),
      frozenset(places.gains),
      frozenset(places.products),
      places.reduced,
      self.copies,
      self.left,
      tuple(dict.fromkeys(near)),
      assumed,
    )

  def settled(self, form, off) -> copied.Form:
    """A form with the numbers of sums that are off."""
    known = sum(v * off[k] for k, v in form.items() if k in off)
    form = {k: v for k, v in form.items() if k not in off}
    return scaled.plus(form, {'': known})

  def cost(self, key) -> int:
    """Who takes up first."""
    if isinstance(key, str):
      return _VECTOR if key in self.vectors else _OTHER
    if key[0] not in self.widths:
      return _LOOP
    if (
      key in self.asked.places.reads
      and len(self.asked.places.uses[key[0]]) == 1
    ):
      return _READS
    return _VECTOR if key[0] in self.vectors else _OTHER

  def best(self, form):
    """The unknown of a form that takes up first, or None."""
    return min(form.keys() - {''}, key=self._order, default=None)

  def _order(self, key):
    return self.cost(key), self.size(key), str(key)

  def size(self, key) -> int:
    path = key if isinstance(key, str) else key[0]
    return math.prod(self.widths[path]) if path in self.widths else 0

  def reduced(self, form) -> copied.Form:
    """A form without the unknowns that are solved for."""
    while key := next((k for k in form if k in self.solved_for), None):
      rest = {k: v for k, v in form.items() if k != key}
      form = scaled.plus(rest, self.solved_for[key], form[key])
    return form

  def equate(self, form) -> bool:
    """Makes a form zero; False where it cannot be."""
    form = self.reduced(form)
    key = self.best(form)
    if key is None:
      return abs(form.get('', 0.0)) < 1e-6
    share = form.pop(key)
    self.solved_for[key] = {k: -v / share for k, v in form.items()}
    return True

  def sum(self, met: copied.Sum) -> float:
    """Settles a sum over a group; returns the logarithm by which it is off."""
    form, g = self.reduced(met.total), met.group
    key = self.best(form)
    # Where there is a choice, a norm is over plain copies.
    first = key is not None and (met.product or self.cost(key) <= _VECTOR)
    if (first or g not in self.even) and self.equate(
      scaled.plus(form, {'': -1.0})
    ):
      return 0.0
    if g in self.even and self.equate(form):
      self.copies.setdefault(g, f'{met.why} is over all of them')
      return self.even[g]
    if not self.equate(scaled.plus(form, {'': -1.0})):
      self.left.setdefault(g, f'{met.why} counts every copy')
    return 0.0

  def values(self) -> dict[Any, float]:
    """The unknowns that are not zero."""
    found = {}
    for key in self.solved_for:
      value = self.reduced({key: 1.0}).get('', 0.0)
      if abs(value) > 1e-9:
        found[key] = value
    return found
