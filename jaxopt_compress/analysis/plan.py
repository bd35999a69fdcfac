"""A network of other widths, made from one that is there.

A `Plan` says, for groups of channels, which channel of the network that is there each
channel of the new one is a copy of:

    sources {'mlp/up/kernel:-1': [0, 2, 3]}       channel 1 goes: the network shrinks
    sources {'mlp/up/kernel:-1': [0, 1, 1, 2]}    channel 1 is there twice: it grows

Groups that are not named stay as they are. `apply` is a gather: of parameters, and of
whatever has their shape, such as statistics of an optimizer.
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
    sources: {group: int [new size], the source channel of every target channel}.

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
      checked[name] = _checked(self.structure.groups[name], source)
    object.__setattr__(self, 'sources', checked)

  def index(self, layout: structure_lib.Layout) -> np.ndarray:
    """int [new size]: the source entry of every entry of an axis."""
    index = np.zeros(1, int)
    for part in layout:
      if isinstance(part, str):
        n = self.structure.groups[part].size
        inner = self.sources.get(part, np.arange(n))
      else:
        sizes = [self.structure.size(term) for term in part]
        starts = np.cumsum([0, *sizes[:-1]])
        terms = zip(starts, part, strict=True)
        n = sum(sizes)
        inner = np.concatenate(
          [start + self.index(term) for start, term in terms]
        )
      index = (index[:, None] * n + inner).ravel()
    return index

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
    return {name: source.size for name, source in self.sources.items()}

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
      indices = map(self.index, self.structure.axes[path])
      moves = {
        i: index
        for i, index in enumerate(indices)
        if not np.array_equal(index, np.arange(x.shape[i]))
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
      keep = jnp.ones((), bool)
      for i, layout in enumerate(self.structure.axes[path]):
        kept = np.isin(np.arange(x.shape[i]), self.index(layout))
        if not kept.all():
          keep &= kept.reshape([-1 if j == i else 1 for j in range(x.ndim)])
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


def _checked(group, source) -> np.ndarray:
  source = np.asarray(source)
  if source.size == 0 or source.ndim != 1:
    raise ValueError(
      f'{group.name}: the sources have shape {source.shape}; a list of channels, one'
      ' at least, is expected. To remove a layer, remove it from the model.'
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
    x = jnp.take(x, index, axis=i)
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
