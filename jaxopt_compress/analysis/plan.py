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
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import structure as structure_lib
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

  Raises:
    ValueError: a group that is not in the structure or that is locked, no channel,
      or a channel that does not exist.
  """

  structure: structure_lib.Structure
  sources: Mapping[str, np.ndarray]

  def __post_init__(self):
    checked = {}
    for name, source in self.sources.items():
      choices.one_of('group', name, tuple(self.structure.groups))
      checked[name] = _checked(
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
    """The groups that an axis has a row of sources for each channel of."""
    groups = self.structure.groups
    return {
      outer
      for g in structure_lib.names(layout)
      if np.ndim(self.sources.get(g, ())) > 1
      for outer in groups[g].within
    }

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
    """{path: new shape} of every leaf."""
    sizes = self.sizes
    return {
      path: tuple(self.structure.size(layout, sizes) for layout in layouts)
      for path, layouts in self.structure.axes.items()
    }

  @property
  def sizes(self) -> dict[str, int]:
    """{group: new size} of the groups that change."""
    return {name: source.shape[-1] for name, source in self.sources.items()}

  def apply(self, tree: Any) -> Any:
    """The network of the new widths.

    Args:
      tree: parameters, or any tree with subtrees of their form: statistics, averages,
        the state of an optimizer. What is no copy of a parameter stays.

    Returns:
      The same tree; arrays [..., n, ...] are [..., new size, ...]. Shardings are kept.

    Raises:
      ValueError: the tree is of another network, or a leaf is compressed.
    """

    def gathered(path, x):
      moves = {
        i: index
        for i, index in self.indices(path).items()
        if not np.array_equal(index.ravel(), np.arange(x.shape[i]))
      }
      sharding = getattr(x, 'sharding', None)
      cut = isinstance(sharding, jax.sharding.NamedSharding)
      if cut and moves and not isinstance(x, jax.core.Tracer):
        return _placed(_taken(_whole(x, sharding, moves), moves), x)
      return _taken(jnp.asarray(x), moves)

    return self._map(gathered, tree)

  def mask(self, tree: Any) -> Any:
    """The network as it is, zero at the channels that go.

    Where a group is exact, it computes what `apply` makes of it does: so it can be
    trained before channels are cut.

    Args:
      tree: as for `apply`.
    """

    def masked(path, x):
      keep, indices = jnp.ones((), bool), self.indices(path)
      for i, index in indices.items():
        # What is kept may differ along other axes: those are marked together.
        along = [n > 1 or j == i for j, n in enumerate(index.shape)]
        kept = np.zeros(np.where(along, x.shape, 1), bool)
        kept[tuple(indices[j] if a else 0 for j, a in enumerate(along))] = True
        if not kept.all():
          keep &= kept
      return jnp.where(keep, x, jnp.zeros((), x.dtype))

    return self._map(masked, tree)

  def _map(self, f, tree):
    """`f(path, leaf)` of what has the name and the shape of a parameter."""
    shapes, resized, met = self.structure.shapes, self.shapes, set()

    def mapped(path, x):
      mine = _named(path, shapes)
      if mine is None or not hasattr(x, 'shape'):
        return x
      if array.is_compressed(x):
        raise ValueError(
          f'{path} is {x.describe()}, and arrays are expected: shrink first, then'
          ' quantise; or pass jc.materialize(tree).'
        )
      if tuple(x.shape) != shapes[mine]:
        if path == mine:
          raise ValueError(
            f'{path} has shape {tuple(x.shape)}, not {shapes[mine]}: the plan is for'
            ' parameters of another network. Make it from these: jc.structure.'
          )
        # Optimizers keep numbers and parts under the names of parameters, too.
        if x.size > 1 and resized[mine] != shapes[mine]:
          raise ValueError(
            f'{path} has shape {tuple(x.shape)}, and {mine} has {shapes[mine]}: which'
            ' of its axes these are is not known. Start this state anew from the'
            ' parameters that the plan makes.'
          )
        return x
      met.add(mine)
      return f(mine, x)

    out = rules_lib.map_named(mapped, tree)
    missing = [p for p in shapes if p not in met]
    if not met and jax.tree.leaves(tree):
      raise ValueError(
        f'No leaf of the tree is one of the plan, such as {missing[:3]}.'
      )
    return out

  def to_json(self) -> str:
    """As text, from which `from_json` makes it again."""
    sources = {name: source.tolist() for name, source in self.sources.items()}
    return json.dumps(
      {'structure': json.loads(self.structure.to_json()), 'sources': sources}
    )

  @classmethod
  def from_json(cls, text: str) -> 'Plan':
    """The inverse of `to_json`."""
    read = json.loads(text)
    structure = structure_lib.Structure.from_json(json.dumps(read['structure']))
    return cls(structure, read['sources'])

  def __str__(self) -> str:
    before = sum(map(math.prod, self.structure.shapes.values()))
    after = sum(map(math.prod, self.shapes.values()))
    lines = [f'{before:,} -> {after:,} parameters']
    for name, n in self.sizes.items():
      lines.append(f'{self.structure.groups[name].size:6} -> {n:6}  {name}')
    return '\n'.join(lines)


def _checked(structure, group, source) -> np.ndarray:
  source = np.asarray(source)
  if source.size == 0 or source.ndim not in (1, 1 + len(group.within)):
    raise ValueError(
      f'{group.name}: the sources have shape {source.shape}; a list of channels, one'
      f' at least, is expected{_rows(group)}. To remove a layer, remove it from the'
      ' model.'
    )
  rows = [structure.groups[g].size for g in group.within]
  for n, outer, want in zip(
    source.shape[:-1], group.within, rows, strict=False
  ):
    if n not in (1, want):
      raise ValueError(
        f'{group.name}: the sources have {n} rows for {outer}, which has {want}'
        ' channels: one for each is expected, or one for all.'
      )
  if not np.issubdtype(source.dtype, np.integer):
    raise ValueError(f'{group.name}: sources are {source.dtype}, not integers.')
  if source.min() < 0 or source.max() >= group.size:
    raise ValueError(
      f'{group.name} has channels 0 to {group.size - 1}, and the plan takes channels'
      f' {source.min()} to {source.max()}.'
    )
  if group.locked and not np.array_equal(source, np.arange(group.size)):
    raise ValueError(
      f'{group.name} has to stay as it is: {"; ".join(group.locked)}.'
    )
  return source


def _rows(group) -> str:
  if not group.within:
    return ''
  return (
    f', or lists of one size for each channel of {" and ".join(group.within)}'
  )


def _merged(x, sizes):
  """[..., so far, inner] -> [..., so far * inner]."""
  x = np.broadcast_to(x, np.broadcast_shapes(x.shape, sizes))
  return x.reshape(*x.shape[:-2], -1)


def _at(x, axis, ndim):
  """[..., n] with the axis n at its place, and `ndim` axes."""
  return np.moveaxis(x.reshape((1,) * (ndim - x.ndim) + x.shape), -1, axis)


def _named(path, shapes) -> str | None:
  """The parameter that a path ends with."""
  names = path.split('/')
  for i in range(len(names)):
    name = '/'.join(names[i:])
    if name in shapes:
      return name
  return None


def _taken(x, moves):
  for i, index in moves.items():
    if index.size == index.shape[i]:
      x = jnp.take(x, index.ravel(), axis=i)
    else:
      x = jnp.take_along_axis(x, jnp.asarray(index), axis=i)
  return x


def _whole(x, sharding, axes):
  """The array, not cut along some axes."""
  spec = [*sharding.spec, *[None] * (x.ndim - len(sharding.spec))]
  spec = [None if i in axes else s for i, s in enumerate(spec)]
  return jax.device_put(
    x, sharding.update(spec=jax.sharding.PartitionSpec(*spec))
  )


def _placed(out, x):
  """On the devices that `x` lies on, cut as it is."""
  try:
    return jax.device_put(out, x.sharding)
  except ValueError as e:
    raise ValueError(
      f'Of shape {out.shape}, what had shape {x.shape} cannot be cut as'
      f' {x.sharding.spec} any more. Take multiples of the number of devices, or'
      ' replicate it first.'
    ) from e
