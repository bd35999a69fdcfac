"""Which channels of a network go together.

    y = relu(x W1 + b) W2       column c of W1, entry c of b and row c of W2: one channel

`structure(apply)(params, x)` finds the groups of channels of a program, in all leaves
that hold them: statistics of norms, residual streams, heads, tied embeddings. No layer
is known by its name, and what nobody knows locks what it meets. What to do with
groups is a `plan.Plan`.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import json
import math
import re
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.layers import layers as layers_lib
from jaxopt_compress.analysis.structure import next_steps
from jaxopt_compress.analysis.structure import numbering
from jaxopt_compress.analysis.structure import numbers as structure_numbers
from jaxopt_compress.analysis.structure import own_sizes
from jaxopt_compress.analysis.structure import tied
from jaxopt_compress.analysis.structure import within as within_lib
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib

# An axis as it is kept: the groups that it is a product of, by name, the one whose
# index changes slowest first; in place of a group, a list of axes is their sum.
Layout = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Group:
  """Channels that go together: entry i of every axis that has the group.

  Attributes:
    name: the first leaf and axis that have it, as in 'mlp/up/kernel:-1'.
    size: how many channels there are.
    locked: why they have to stay; () if they may go.
    inexact: why the network without some of them is not the one in which these are
      masked; () if it is. Norms over the group, for example, divide by its size. Of
      what is `fixed`, any number that fits its size counts as one that depends on it.
    fixed: why the program does not run, or becomes another one, with parameters of
      another size; '' if it takes the size from them. A model that has sizes of its
      own is to be built again: `Plan.sizes` says with which.
    within: the groups that these channels lie inside of, outermost first: as query
      heads inside their key head, or channels of a scanned layer inside the layer.
      Each channel of those may keep other channels of this one (`Plan.sources`).
    least: how many have to be left: as many as a router chooses, for example.
    repeats: whether it may be there more often though it is locked: a layer that gives
      what it gets if it is told to, and that no other one is like.
  """

  name: str
  size: int
  locked: tuple[str, ...] = ()
  inexact: tuple[str, ...] = ()
  fixed: str = ''
  within: tuple[str, ...] = ()
  least: int = 1
  repeats: bool = False

  @property
  def at_boundary(self) -> bool:
    """Whether it is locked, and only as the program takes or gives as many.

    `Structure.opened` lets such a group go.
    """
    return bool(self.locked) and set(self.locked) <= set(numbering.BOUNDARY)

  @property
  def remarks(self) -> tuple[str, ...]:
    """What `print(structure)` says of it: what removing some of them asks for."""
    inexact = () if self.locked else self.inexact
    again = (f'build the model again: {self.fixed}',) if self.fixed else ()
    return *(f'not exact: {why}' for why in inexact), *again


@dataclasses.dataclass(frozen=True)
class Structure:
  """The groups of channels of a network.

  Attributes:
    shapes: {path: shape} of the leaves that it was found for.
    groups: {name: Group}, in the order of the tree.
    axes: {path: layout of each axis}.
    layers: {group: the paths that the parameters of each layer begin with}, of groups
      of layers that have names of their own. Layers of a loop are channels of an axis.
    passing: {group of layers: {path: 'zeros' or 'identity'}}: parameters that, as
      what they say, make a layer give what it gets; see `layers.passing`. Of a group
      that is not here none do.
    program: `({group: size}, fun=None)` -> (closed jaxpr, [(path, leaf)]), as from
      `walk.trace`: the program again, where groups have other sizes, or that of another
      function of such parameters. Text does not hold it: None after `from_json`.
  """

  shapes: dict[str, tuple[int, ...]]
  groups: dict[str, Group]
  axes: dict[str, tuple[Layout, ...]]
  layers: dict[str, tuple[tuple[str, ...], ...]] = dataclasses.field(
    default_factory=dict
  )
  passing: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
  program: Callable[..., tuple[Any, list]] | None = dataclasses.field(
    default=None, repr=False, compare=False
  )

  def members(self, name: str) -> list[tuple[str, int]]:
    """The (path, axis counted from the end) that have a group."""
    return [
      (path, i - len(layouts))
      for path, layouts in self.axes.items()
      for i, layout in enumerate(layouts)
      if name in names(layout)
    ]

  def size(self, layout: Layout, sizes: Mapping[str, int] = {}) -> int:
    """How many entries an axis has, if some groups have other sizes."""
    return math.prod(
      sizes.get(g, self.groups[g].size)
      if isinstance(g, str)
      else sum(self.size(term, sizes) for term in g)
      for g in layout
    )

  def channels(
    self, layout: Layout, name: str, sizes: Mapping[str, int] = {}
  ) -> np.ndarray:
    """int [entries]: the channel of a group that each entry of an axis is of, or -1.

    Args:
      layout: of the axis.
      name: the group.
      sizes: {group: size}, where some groups have other sizes.
    """
    index = np.full(1, -1)
    for part in layout:
      if isinstance(part, str):
        n = sizes.get(part, self.groups[part].size)
        inner = np.arange(n) if part == name else np.full(n, -1)
      else:
        inner = np.concatenate(
          [self.channels(term, name, sizes) for term in part]
        )
      index = np.where(inner >= 0, inner, index[:, None]).ravel()
    return index

  def coordinates(self, path: str, axis: int, name: str) -> list[np.ndarray]:
    """Of which channels the entries of a leaf are: of what is outside, and inside.

    Args:
      path, axis: one of `members(name)`.
      name: a group.

    Returns:
      int arrays with the axes of the leaf, of size 1 where all are alike: the channel
      of each group of `within`, then that of the group itself, or -1.
    """
    layouts = self.axes[path]
    here = axis % len(layouts)
    found = []
    for group in (*self.groups[name].within, name):
      # It is on the same axis, or else on another one.
      order = [here, *range(len(layouts))]
      at = next(i for i in order if group in names(layouts[i]))
      shape = [-1 if i == at else 1 for i in range(len(layouts))]
      found.append(self.channels(layouts[at], group).reshape(shape))
    return found

  def ordered(self, name: str) -> bool:
    """Whether the order of its channels has a meaning, as that of layers and tokens."""
    meant = {tied.LOOP, *numbering.BOUNDARY}
    return name in self.layers or bool(meant & {*self.groups[name].inexact})

  @property
  def free(self) -> dict[str, Group]:
    """The groups that are not locked."""
    return {n: g for n, g in self.groups.items() if not g.locked}

  def opened(self, *names: str) -> 'Structure':
    """The structure of a program that takes or gives fewer of some groups.

    Args:
      *names: groups that are locked by arguments and results alone, such as the
        classes of a classifier, or the tokens of a vocabulary. If some go, their
        results go; and what numbered them among the arguments must be renumbered.

    Raises:
      ValueError: the program locks a group itself.
    """
    groups = dict(self.groups)
    for name in names:
      choices.one_of('group', name, tuple(groups))
      group = groups[name]
      inside = [w for w in group.locked if w not in numbering.BOUNDARY]
      if inside:
        raise ValueError(
          f'{next_steps.said(name, tuple(inside))} What arguments and results alone'
          ' lock can be opened.'
        )
      groups[name] = dataclasses.replace(
        group, locked=(), inexact=(*group.inexact, *group.locked)
      )
    return dataclasses.replace(self, groups=groups)

  def to_json(self) -> str:
    """As text, from which `from_json` makes it again."""
    told = dataclasses.asdict(dataclasses.replace(self, program=None))
    del told['program']
    return json.dumps(told)

  @classmethod
  def from_json(cls, text: str) -> 'Structure':
    """The inverse of `to_json`."""
    read = json.loads(text)
    groups = {
      name: Group(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in g.items()}
      )
      for name, g in read['groups'].items()
    }
    axes = {
      path: tuple(map(_layout, layouts))
      for path, layouts in read['axes'].items()
    }
    shapes = {path: tuple(shape) for path, shape in read['shapes'].items()}
    layers = {
      name: tuple(map(tuple, prefixes))
      for name, prefixes in read['layers'].items()
    }
    return cls(shapes, groups, axes, layers, read['passing'])

  def __str__(self) -> str:
    """The groups that may go, then those that stay, and why; one line for many alike."""
    alike: dict[tuple, list[Group]] = {}
    for group in sorted(self.groups.values(), key=lambda g: bool(g.locked)):
      alike.setdefault(self._kind(group), []).append(group)
    lines = ['  size  leaves  group']
    for (_, _, members, *_), (group, *others) in alike.items():
      more = f'  and {len(others)} like it' if others else ''
      lines.append(f'{group.size:6}  {len(members):6}  {group.name}{more}')
      if group.within:
        lines.append(f'{"":16}lies within {", ".join(group.within)}')
      for why in group.locked[:1]:
        step = next_steps.of(group.name, why)
        lines.append(f'{"":16}stays: {why}; {step}')
      lines += [f'{"":16}{line}' for line in group.remarks]
    return '\n'.join(lines)

  def _kind(self, group: Group) -> tuple:
    """What a group shares with those of other layers that are alike."""
    members = tuple(
      sorted((_numberless(p), a) for p, a in self.members(group.name))
    )
    said = tuple(map(_numberless, (*group.inexact, group.fixed)))
    name = _numberless(group.name)
    # Why it stays is told in full: another line is another reason.
    return name, group.size, members, group.locked[:1], said


def _numberless(text: str) -> str:
  return re.sub(r'\d+', '#', text)


def names(layout: Layout) -> Iterator[str]:
  """The groups of an axis."""
  for g in layout:
    if isinstance(g, str):
      yield g
    else:
      for term in g:
        yield from names(term)


def _layout(read) -> Layout:
  return tuple(
    g if isinstance(g, str) else tuple(map(_layout, g)) for g in read
  )


def structure(fun: Callable) -> Callable[..., Structure]:
  """The groups of channels of `fun(params, *args)`, in all leaves of `params`.

  Args:
    fun: a function of parameters and further arguments. What is in its first
      argument may shrink: so statistics of norms belong there, too. The sizes of
      the other arguments and of the results stay.

  Returns:
    A function of the same arguments that returns the `Structure`. The program is not
    run; arguments may be abstract. It is traced again with one channel more for each
    kind of group, and with a quarter, which shows sizes that it has itself, and
    numbers that depend on them; what a Python `if` does at yet another size, or what
    is rounded to the same at all of these, stays unseen.

  >>> import jax, jax.numpy as jnp
  >>> f = lambda p, x: jax.nn.relu(x @ p['a'] + p['b']) @ p['c']
  >>> p = {'a': jnp.ones((3, 4)), 'b': jnp.ones((1, 4)), 'c': jnp.ones((4, 2))}
  >>> found = structure(f)(p, jnp.ones((5, 3)))
  >>> list(found.free), found.members('a:-1')
  (['a:-1'], [('a', -1), ('b', -1), ('c', -2)])
  """

  def found(params, *args, **kwargs):
    # What traces again later holds no arrays.
    params, args, kwargs = walk.abstract((params, args, kwargs))

    def program(sizes, other=None):
      leaves = [
        _resized(x, made, path, sizes) if sizes else x
        for path, x in rules_lib.named_leaves(params)
      ]
      resized = jax.tree.unflatten(jax.tree.structure(params), leaves)
      return walk.trace(other or fun, resized, args, kwargs)

    def traced(sizes):
      """The program, and what is found of it, with other sizes of some groups."""
      closed, arrays = program(sizes)
      return closed, _found(closed, arrays)

    closed, (made, perhaps) = traced({})
    compared = own_sizes.compared(closed, made, perhaps, traced)
    layered = _with_layers(closed, compared)
    return dataclasses.replace(layered, program=program)

  return found


def _found(closed, arrays) -> tuple[Structure, dict[str, list[str]]]:
  """(structure, the numbers of the program that may be sizes of each group)."""
  asked = tied.Tied(structure_numbers.RULES)
  axes = follow(asked, closed, arrays)
  return _collected(asked, {p: tuple(x.shape) for p, x in arrays}, axes)


def follow(
  asked: tied.Tied, closed: Any, arrays: list[tuple[str, Any]]
) -> dict[str, tuple[tied.Axis, ...]]:
  """Ties the channels of a program: {path: the channels of each axis}.

  Args:
    asked: what is told of them; `leaf_names` gives their names.
    closed, arrays: as from `walk.trace`.
  """
  axes = {path: tuple(map(asked.channels.axis, x.shape)) for path, x in arrays}
  inputs = [
    tied.Value(a, frozenset(c for axis in a for c in axis))
    for a in axes.values()
  ]
  others = closed.jaxpr.invars[len(inputs) :]
  inputs += [asked.given(v.aval) for v in others]
  for out in algebra.evaluate(asked, closed, inputs):
    asked.give(out)
  return axes


def _collected(asked, shapes, axes):
  """Names the leaves of the union-find, and says of what every axis is made."""
  channels, remarks, least = asked.channels, asked.remarks(), asked.taken()
  named = leaf_names(channels, axes)
  inside = within_lib.within(channels, [*axes.values(), *asked.met])

  def layout(axis):
    parts = ((c, channels.terms(c)) for c in channels.factors(axis))
    return tuple(
      named[c] if terms is None else tuple(map(layout, terms))
      for c, terms in parts
    )

  groups = {
    name: Group(
      name,
      channels.size((leaf,)),
      channels.locks(leaf),
      tuple(remarks.get(leaf, ())),
      within=tuple(named[c] for c in inside.get(leaf, ()) if c in named),
      least=least.get(leaf, 1),
    )
    for leaf, name in named.items()
  }
  layouts = {path: tuple(map(layout, mine)) for path, mine in axes.items()}
  perhaps = {named[c]: w for c, w in asked.perhaps().items() if c in named}
  return Structure(shapes, groups, layouts), perhaps


def leaf_names(channels, axes) -> dict[int, str]:
  """{leaf: name}, in the order of the tree."""
  # A kernel says more than its bias: matrices give their names first.
  order = sorted(axes.items(), key=lambda item: len(item[1]) < 2)
  wanted = {}
  for path, mine in order:
    for i, axis in enumerate(mine):
      for leaf in channels.leaves(axis):
        wanted.setdefault(leaf, f'{path}:{i - len(mine)}')
  times = collections.Counter()
  named = {}
  for leaf, name in wanted.items():
    named[leaf] = f'{name}.{times[name]}' if times[name] else name
    times[name] += 1
  return named


def _with_layers(closed, structure) -> Structure:
  """Adds the layers that have names of their own, as groups."""
  groups, layers, alone = dict(structure.groups), {}, {}
  for kind in layers_lib.found(closed, list(structure.shapes)):
    layers[kind.name] = kind.prefixes
    alone[kind.name] = kind.passing
    groups[kind.name] = Group(
      kind.name,
      len(kind.prefixes),
      kind.locked,
      kind.inexact,
      'layers are called by name; of an NNX module, shrink the module itself',
      repeats=bool(kind.locked and kind.passing),
    )
  alone |= layers_lib.in_loops(closed, structure)
  return dataclasses.replace(
    structure,
    groups=groups,
    layers=layers,
    passing={name: found for name, found in alone.items() if found},
  )


def _resized(x, structure, path, sizes):
  if path not in structure.axes:
    return x
  shape = [structure.size(layout, sizes) for layout in structure.axes[path]]
  return jax.ShapeDtypeStruct(tuple(shape), x.dtype)
