"""A network of other widths, made from one that is there.

A `Plan` says, for groups of channels, which channel of the network that is there each
channel of the new one is a copy of:

    sources {'mlp/up/kernel:-1': [0, 2, 3]}       channel 1 goes: the network shrinks
    sources {'mlp/up/kernel:-1': [0, 1, 1, 2]}    channel 1 is there twice: it grows

Groups that are not named stay as they are. Where a group lies within another, each
channel of that may keep its own: of 2 key heads with 3 query heads each

    sources {'q:-2': [[0, 2], [1, 2]]}            the first keeps 0 and 2, the other 1 and 2

`apply` is a gather: of parameters, and of whatever has their shape, such as statistics
of an optimizer.
"""

from collections.abc import Mapping
import dataclasses
import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis.layers import renumbered
from jaxopt_compress.analysis.layers import siblings
from jaxopt_compress.analysis.plan import composed
from jaxopt_compress.analysis.plan import gathered as gathered_lib
from jaxopt_compress.analysis.plan import kept_axes
from jaxopt_compress.analysis.plan import sources as sources_lib
from jaxopt_compress.analysis.plan import told
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib


@dataclasses.dataclass(frozen=True)
class Plan:
  """Other widths for a network.

  Attributes:
    structure: of the network that is there.
    sources: {group: int [new size], the source channel of every target channel}. Of
      a group that lies within others also int [*sizes of `Group.within`, new size]:
      one row for each channel of these, as they are in the network that is there; a
      size of 1 stands for all. So scanned layers may keep channels of their own, and
      key heads query heads of their own, each as many as the others.
    asked: {group: the size that was asked for}, where sizes were then rounded.

  Raises:
    ValueError: a group that is not in the structure or that is locked, no channel,
      or a channel that does not exist.
  """

  structure: structure_lib.Structure
  sources: Mapping[str, np.ndarray]
  asked: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    checked = {}
    for name, source in self.sources.items():
      choices.one_of('group', name, tuple(self.structure.groups))
      checked[name] = sources_lib.checked(
        self.structure, self.structure.groups[name], source
      )
    object.__setattr__(self, 'sources', checked)

  def index(self, layout: structure_lib.Layout) -> np.ndarray:
    """int [new size]: the source entry of every entry of an axis.

    Raises:
      KeyError: it is another one for each channel of a group on another axis.
    """
    return self._index(layout, {})[0]

  def indices(self, path: str) -> dict[int, np.ndarray]:
    """{axis: the source entry of every entry} of a leaf.

    The arrays have the axes of the leaf, of size 1 where all are alike. Axes that
    others depend on come first: gathered in this order, rows are of what is new.
    """
    layouts, known, found = self.structure.axes[path], {}, {}
    outer = [self._outer(layout) for layout in layouts]
    for i in sorted(range(len(layouts)), key=lambda i: len(outer[i])):
      # The axis comes last while it is unfolded, and then back to its place.
      beside = {
        g: np.moveaxis(c, i, -1) for g, c in known.items() if g in outer[i]
      }
      index, channels = self._index(layouts[i], beside)
      found[i] = _at(index, i, len(layouts))
      known |= {g: _at(c, i, len(layouts)) for g, c in channels.items()}
    return found

  def _outer(self, layout) -> set[str]:
    """The groups of other axes that one has a row of sources for each channel of."""
    groups = self.structure.groups
    within = {
      outer
      for g in structure_lib.names(layout)
      if np.ndim(self.sources.get(g, ())) > 1
      for outer in groups[g].within
    }
    return within.difference(structure_lib.names(layout))

  def _index(self, layout, outer):
    """(index [..., n], {group: the source channel [..., n] of each entry}).

    `outer` has the channels of groups outside, [..., 1].
    """
    index, outer = np.zeros(1, int), dict(outer)
    for part in layout:
      beside = {g: c[..., None] for g, c in outer.items()}
      inner, n = self._inner(part, beside)
      sizes = index.shape[-1], inner.shape[-1]
      index = _merged(index[..., None] * n + inner, sizes)
      outer = {g: _merged(c, sizes) for g, c in beside.items()}
      if isinstance(part, str):
        outer[part] = _merged(inner, sizes)
    return index, outer

  def _inner(self, part, beside):
    """(index [..., new size], size) of a part of an axis."""
    if isinstance(part, str):
      group = self.structure.groups[part]
      source = self.sources.get(part, np.arange(group.size))
      rows = tuple(
        beside[g][..., 0] if n > 1 else 0
        for g, n in zip(group.within, source.shape[:-1], strict=False)
      )
      return source[rows], group.size
    sizes = [self.structure.size(term) for term in part]
    starts = np.cumsum([0, *sizes[:-1]])
    terms = [
      start + self._index(term, beside)[0]
      for start, term in zip(starts, part, strict=True)
    ]
    lead = np.broadcast_shapes(*(t.shape[:-1] for t in terms))
    terms = [np.broadcast_to(t, (*lead, t.shape[-1])) for t in terms]
    return np.concatenate(terms, -1), sum(sizes)

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """{new path: new shape} of every leaf."""
    shapes = self.resized
    return {new: shapes[old] for new, old in self.origins.items()}

  @property
  def origins(self) -> dict[str, str]:
    """{new path of every leaf: path of what it is made from}."""
    return renumbered.paths(list(self.structure.shapes), self._order)

  @property
  def resized(self) -> dict[str, tuple[int, ...]]:
    """{path: new shape} of every leaf under the name that it has now."""
    sizes = self.sizes
    return {
      path: tuple(self.structure.size(layout, sizes) for layout in layouts)
      for path, layouts in self.structure.axes.items()
    }

  @property
  def _order(self) -> renumbered.Order:
    """How layers that have names of their own are numbered."""
    structure = self.structure
    return renumbered.order(structure.shapes, structure.layers, self.sources)

  @property
  def sizes(self) -> dict[str, int]:
    """{group: size} of the groups that it names, changed or not."""
    return {name: source.shape[-1] for name, source in self.sources.items()}

  @property
  def leading(self) -> 'Plan':
    """The plan of the same sizes that takes the first channels of each group.

    Of parameters that are sorted by importance these are the ones that matter most.
    Layers, tokens and classes, which sorting leaves in order, are those of this plan.
    """
    sources = {
      name: source
      if self.structure.ordered(name)
      else np.arange(source.shape[-1])
      for name, source in self.sources.items()
    }
    return dataclasses.replace(self, sources=sources)

  def then(self, other: 'Plan') -> 'Plan':
    """This plan and, of the network that it makes, another: one of the two.

    Raises:
      ValueError: `other` is of another network, or no single plan says both.
    """
    sources, names = composed.sources(self, other, self.origins)
    asked = {names.get(name, name): n for name, n in other.asked.items()}
    changed = {names[name] for name in other.sources}
    kept = {n: k for n, k in self.asked.items() if n not in changed}
    return Plan(self.structure, sources, kept | asked)

  def apply(self, tree: Any) -> Any:
    """The network of the new widths.

    Args:
      tree: parameters, or any tree with subtrees of their form: statistics, averages,
        the state of an optimizer. What is no copy of a parameter stays.

    Returns:
      The same tree; arrays [..., n, ...] are [..., new size, ...]. Shardings are
      kept, and compressed leaves stay what they are.

    Raises:
      ValueError: the tree is of another network, or entries of a leaf that share a
        scale do not stay together.
    """

    def gathered(path, x, indices):
      moves = {
        i: index
        for i, index in indices.items()
        if index.shape[i] != x.shape[i]
        or (np.moveaxis(index, i, -1) != np.arange(x.shape[i])).any()
      }
      try:
        return gathered_lib.taken(x, moves)
      except ValueError as e:
        raise ValueError(f'{path}: {e}') from e

    out = self._map(gathered, tree)
    if not self._order:
      return out
    of = functools.partial(named, names=names_of(self.structure.shapes))
    return renumbered.tree(out, self._order, of)

  def mask(self, tree: Any) -> Any:
    """The network as it is, zero at the channels that go; `tree` as for `apply`.

    Where a group is exact, it computes what `apply` makes of it does: so it can be
    trained before channels are cut.
    """

    gone = renumbered.gone(self.structure.layers, self.sources)
    names = names_of(self.structure.shapes)

    def masked(path, x, indices):
      if array.is_compressed(x):
        raise ValueError(
          f'{path} is {x.describe()}, and arrays are expected: mask what it was made'
          ' from, or pass jc.materialize(tree).'
        )
      if gone and siblings.within(named(path, names)[0], gone):
        return jnp.zeros_like(x)
      keep = jnp.ones((), bool)
      for i in indices:
        stays = kept(indices, i, x.shape)
        if not stays.all():
          keep &= stays
      return jnp.where(keep, x, jnp.zeros((), x.dtype))

    return self._map(masked, tree)

  def _map(self, f, tree):
    """`f(path, leaf, {axis: index})` of what has name and axes of a parameter."""
    shapes, resized, met = self.structure.shapes, self.resized, set()
    changes = {p for p in shapes if resized[p] != shapes[p]}
    every = sum(map(math.prod, shapes.values()))
    names = names_of(shapes)

    def mapped(path, x):
      if not hasattr(x, 'shape'):
        return x
      mine, rest = named(path, names)
      if mine is None:
        if changes and x.shape == (every,) and len(shapes) > 1:
          raise ValueError(
            f'{path} holds all {every} parameters in one array, as optax.flatten'
            ' makes them. Start this state anew from the parameters that the plan'
            ' makes.'
          )
        return x
      axes = kept_axes.of(x.shape, shapes[mine], rest, resized[mine])
      if axes is None or (path == mine and tuple(x.shape) != shapes[mine]):
        if path == mine:
          raise ValueError(
            f'{path} has shape {tuple(x.shape)}, not {shapes[mine]}: the plan is for'
            ' parameters of another network. Make it from these: jc.structure.'
          )
        # Optimizers keep numbers and parts under the names of parameters, too.
        if x.size > 1 and mine in changes:
          raise ValueError(
            f'{path} has shape {tuple(x.shape)}, and {mine} has {shapes[mine]}: which'
            ' of its axes these are is not known. Start this state anew from the'
            ' parameters that the plan makes.'
          )
        return x
      met.add(mine)
      return f(path, x, _placed(self.indices(mine), axes, x.ndim))

    out = rules_lib.map_named(mapped, tree)
    # A state that only counts steps has none, rightly.
    if not met and any(np.size(x) > 1 for x in jax.tree.leaves(tree)):
      raise ValueError(
        f'No leaf of the tree is one of the plan, such as {list(shapes)[:3]}.'
      )
    return out

  def to_json(self) -> str:
    """As text, from which `from_json` makes it again."""
    sources = {name: source.tolist() for name, source in self.sources.items()}
    structure = json.loads(self.structure.to_json())
    return json.dumps(
      {'structure': structure, 'sources': sources, 'asked': dict(self.asked)}
    )

  @classmethod
  def from_json(cls, text: str) -> 'Plan':
    """The inverse of `to_json`."""
    read = json.loads(text)
    structure = structure_lib.Structure.from_json(json.dumps(read['structure']))
    return cls(structure, read['sources'], read['asked'])

  def __str__(self) -> str:
    """The sizes that change, and where the network then computes something else."""
    return told.of(self.structure, self.sources, self.asked, self.shapes)


def kept(indices, i, shape) -> np.ndarray:
  """Which entries of axis i stay: bool of the axes of a leaf, 1 where all are alike.

  Args:
    indices: what `Plan.indices` returned.
    i: an axis, from the start.
    shape: of the leaf.
  """
  # What is kept may differ along other axes: those are marked together.
  along = [n > 1 or j == i for j, n in enumerate(indices[i].shape)]
  found = np.zeros(np.where(along, shape, 1), bool)
  found[tuple(indices[j] if a else 0 for j, a in enumerate(along))] = True
  return found


def _merged(x, sizes):
  """[..., so far, inner] -> [..., so far * inner]."""
  x = np.broadcast_to(x, np.broadcast_shapes(x.shape, sizes))
  return x.reshape(*x.shape[:-2], -1)


def _at(x, axis, ndim):
  """[..., n] with the axis n at its place, and `ndim` axes."""
  return np.moveaxis(x.reshape((1,) * (ndim - x.ndim) + x.shape), -1, axis)


def names_of(shapes: Mapping[str, Any]) -> dict[str, str]:
  """{name: parameter}: its path, and that without the collection that it is in."""
  names = {}
  for path in shapes:
    inside = path.partition('/')[2]
    names[inside] = None if inside in names else path
  # Two collections may have a leaf of one name: then it says nothing.
  names = {name: path for name, path in names.items() if name and path}
  return names | {path: path for path in shapes}


def named(path, names) -> tuple[str | None, str]:
  """The parameter that a path ends with, or else has inside, and what follows."""
  words = path.split('/')
  n = len(words)
  spans = [(i, n) for i in range(n)]
  spans += [(i, i + k) for k in range(n - 1, 0, -1) for i in range(n - k)]
  for i, j in spans:
    found = names.get('/'.join(words[i:j]))
    if found is not None:  # a tree of one leaf has '' for its name
      return found, '/'.join(words[j:])
  return None, ''


def _placed(indices, axes, ndim) -> dict[int, np.ndarray]:
  """The indices of a parameter as those of an array that has some of its axes."""
  found = {}
  order = sorted(axes)
  for j, index in indices.items():
    depends = {k for k, n in enumerate(index.shape) if n > 1} - {j}
    for i in (i for i, of in axes.items() if of == j):
      if not depends <= {*axes.values()}:
        raise ValueError(
          'Channels that differ from row to row, and an array that has not all axes'
          ' of its parameter: start it anew from the parameters of the plan.'
        )
      here = [axes[k] if axes[k] != j or k == i else None for k in order]
      rest = [k for k in range(index.ndim) if k not in here]
      kept = [k for k in here if k is not None]
      moved = index.transpose([*rest, *kept]).reshape(
        [index.shape[k] for k in kept]
      )
      shape = [1] * ndim
      for k, of in zip(order, here, strict=True):
        shape[k] = 1 if of is None else index.shape[of]
      found[i] = moved.reshape(shape)
  return found


def shrink(plan: Plan, tree: Any) -> Any:
  """The network of a plan: `plan.apply`, under the name of what it is mostly for.

  Args:
    plan: what `jc.select` returned.
    tree: parameters, compressed or not, or any tree that has their form: statistics
      of norms, averages, the state of an optimizer. So training goes on at once. Of
      an NNX module arrays change, and numbers beside them (out_features) do not.

  Raises:
    ValueError: a group grows.

  Example:

      params, opt_state = jc.shrink(plan, (params, opt_state))

  >>> import jaxopt_compress as jc
  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.array([[1., 2., 3.]]), 'b': jnp.array([[4.], [5.], [6.]])}
  >>> plan = Plan(jc.structure(f)(p, jnp.ones((1, 1))), {'a:-1': [0, 2]})
  >>> {name: x.tolist() for name, x in shrink(plan, p).items()}
  {'a': [[1.0, 3.0]], 'b': [[4.0], [6.0]]}
  """
  groups = plan.structure.groups
  more = [n for n, k in plan.sizes.items() if k > groups[n].size]
  if more:
    raise ValueError(
      f'{more[0]} has {groups[more[0]].size} channels, and the plan'
      f' {plan.sizes[more[0]]}: copies have to share what is read of them. Grow with'
      ' jc.grow(plan, tree); plan.apply(tree) makes the copies alone.'
    )
  return plan.apply(tree)
