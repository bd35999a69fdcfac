"""The operations of a program whose groups of channels have other sizes.

    program = resized(apply)(params, x)
    program.flops({'mlp/up/kernel:-1': 128})

The program is traced once. The walk of `structure` knows of which groups each axis of
each value is made, so the shapes of all operations follow from the sizes of the groups:
also where the code has sizes of its own, and runs with other parameters only after the
model is built again.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from types import MappingProxyType
from typing import Any

import jax

from jaxopt_compress.analysis import flops as flops_lib
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.layers import layers as layers_lib
from jaxopt_compress.analysis.structure import numbers as structure_numbers
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.analysis.structure import tied
from jaxopt_compress.core import array

# An axis: groups by name, numbers for what is no parameter's, and, in place of
# either, a list of axes, of which it is the sum.
Layout = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Variable:
  """What stands for a variable of a program."""

  aval: jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Operation:
  """An equation at some sizes; `flops` counts it as one of a program.

  Attributes:
    primitive, params: of the equation. Sizes among these are as they were.
    invars, outvars: of the shapes that it has now.
    times: how often it runs.
  """

  primitive: Any
  params: Mapping[str, Any]
  invars: tuple[Variable, ...]
  outvars: tuple[Variable, ...]
  times: int


@dataclasses.dataclass(frozen=True)
class Equation:
  """An equation of the program, and the layouts of all that it meets.

  Attributes:
    eqn: the equation.
    ins, outs: of each operand and result, the layout of each axis.
    loops: how often each loop around it turns, as layouts.
    layer: (group, number) of the layer that it is in, of those with names of their
      own; None for others.
  """

  eqn: Any
  ins: tuple[tuple[Layout, ...], ...]
  outs: tuple[tuple[Layout, ...], ...]
  loops: tuple[Layout, ...]
  layer: tuple[str, int] | None = None

  @functools.cached_property
  def groups(self) -> frozenset[str]:
    """The groups that it depends on."""
    axes = [*self.loops, *(x for v in (*self.ins, *self.outs) for x in v)]
    return frozenset(g for x in axes for g in _names(x))

  def copies(self, layers: Mapping[str, Sequence[int]]) -> int:
    """How many times the equation is there, where these layers are."""
    group, i = self.layer or (None, 0)
    return list(layers[group]).count(i) if group in layers else 1

  def at(self, sizes: Mapping[str, int]) -> Operation:
    """The equation where groups have these sizes."""

    def resized(variables, layouts):
      return tuple(
        Variable(
          jax.ShapeDtypeStruct(
            tuple(_size(x, sizes) for x in axes), v.aval.dtype
          )
        )
        for v, axes in zip(variables, layouts, strict=True)
      )

    return Operation(
      self.eqn.primitive,
      self.eqn.params,
      resized(self.eqn.invars, self.ins),
      resized(self.eqn.outvars, self.outs),
      math.prod(_size(x, sizes) for x in self.loops),
    )


@dataclasses.dataclass(frozen=True)
class Resized:
  """A program that can be asked at other sizes.

  Attributes:
    axes: {path: the layout of each axis}, as those of its `Structure`.
    sizes: {group: its size}, as it is, without groups of layers.
    equations: all that compute.
    now: how many operations it takes as it is, as `flops` counts them.
  """

  axes: dict[str, tuple[Layout, ...]]
  sizes: dict[str, int]
  equations: tuple[Equation, ...]
  now: int

  def flops(
    self,
    sizes: Mapping[str, int],
    layers: Mapping[str, Sequence[int]] = MappingProxyType({}),
  ) -> int:
    """How many operations it takes where groups have other sizes.

    Args:
      sizes: {group: size}, of those that change.
      layers: {group of layers: the layers that there are}, of those that change.
    """
    changed = {g for g, n in sizes.items() if n != self.sizes[g]}
    known, counted, before = self.sizes | dict(sizes), 0, 0
    for equation, count in zip(self.equations, self._each, strict=True):
      before += count
      if changed & equation.groups:
        count = _count(equation.at(known))
      counted += count * equation.copies(layers)
    # All branches of a choice are among these: they count in proportion.
    return round(self.now * counted / max(before, 1))

  @functools.cached_property
  def _each(self) -> list[int]:
    return [_count(e.at(self.sizes)) for e in self.equations]


def _count(operation: Operation) -> int:
  return operation.times * flops_lib.of_equation(operation)


def resized(fun: Callable) -> Callable[..., Resized]:
  """A program that can be counted at other sizes.

  Args:
    fun: the function that a `Structure` was, or would be, found for.

  Returns:
    A function of the same arguments that returns a `Resized`. Nothing is computed:
    arguments may be abstract.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: jnp.split(x @ p['a'], 2, -1)[0] @ p['b']
  >>> p = {'a': jnp.ones((2, 8)), 'b': jnp.ones((4, 3))}
  >>> program = resized(f)(p, jnp.ones((1, 2)))
  >>> program.flops({}), program.flops({'a:-1': 2})
  (56, 36)
  """

  def found(params, *args, **kwargs):
    params = array.materialize(params)
    closed, arrays = walk.trace(fun, params, args, kwargs)
    asked = Recorded(structure_numbers.RULES)
    axes = structure_lib.follow(asked, closed, arrays)
    named = structure_lib.leaf_names(asked.channels, axes)
    layout = functools.partial(_layout, asked.channels, named)
    sizes = {g: asked.channels.size((leaf,)) for leaf, g in named.items()}

    def layouts(values):
      return tuple(tuple(map(layout, axes)) for axes in values)

    live = set(_live(closed))
    inside = layers_lib.operations(closed, [path for path, _ in arrays])
    equations = tuple(
      Equation(
        at.eqn,
        layouts(ins),
        layouts(outs),
        tuple(map(layout, loops)),
        _layer(at, inside),
      )
      for at, ins, outs, loops in asked.equations()
      if live.issuperset(at.place)
    )
    now = flops_lib.of_program(closed).total
    return Resized(
      dict(zip(axes, layouts(axes.values()))), sizes, equations, now
    )

  return found


class Recorded(tied.Tied):
  """Ties channels, and keeps the equations that tie them.

  Attributes:
    seen: {place of an equation: (it, axes of its operands, axes of its results)}.
  """

  def __init__(self, rules):
    super().__init__(rules)
    self.seen = {}

  def apply(self, at, inputs):
    outs = super().apply(at, inputs)
    # A loop is walked until its carry is known: the last time counts.
    self.seen[at.place] = at, [x.axes for x in inputs], [x.axes for x in outs]
    return outs

  def equations(self):
    """(place, axes of operands, of results, of the loops around) of each."""
    for at, ins, outs in self.seen.values():
      yield at, ins, outs, [self._turned(outer) for outer, _ in at.around]

  def _turned(self, outer):
    """An axis of as many entries as an equation runs its programs."""
    if outer in self._turns:
      return self._turns[outer]
    return self.channels.axis(walk.enter(outer.eqn).times or 1, 'a loop')


def _live(jaxpr) -> Iterator[int]:
  """The equations whose results are read, by identity."""
  for eqn in walk.live(jaxpr):
    yield id(eqn)
    inside = walk.enter(eqn)
    for body in inside.bodies if inside else ():
      yield from _live(body)


def _layer(at, inside) -> tuple[str, int] | None:
  """The layer that an equation is in, or the loop around it."""
  places = [outer.place for outer, _ in at.around] + [at.place]
  return next((inside[x] for x in places if x in inside), None)


def _layout(channels, named, axis) -> Layout:
  parts = []
  for c in channels.factors(axis):
    terms = channels.terms(c)
    if terms is None:
      parts.append(named.get(c, channels.size((c,))))
    else:
      parts.append(tuple(_layout(channels, named, term) for term in terms))
  return tuple(parts)


def _size(layout, sizes) -> int:
  return math.prod(
    sizes[g]
    if isinstance(g, str)
    else g
    if isinstance(g, int)
    else sum(_size(term, sizes) for term in g)
    for g in layout
  )


def _names(layout) -> Iterator[str]:
  for g in layout:
    if isinstance(g, str):
      yield g
    elif not isinstance(g, int):
      for term in g:
        yield from _names(term)
