"""Which channels of a network are there several times in a wider one.

    channel      0 1 2   0 1 2      each twice: balanced
                 0 1 2   2 0 2      the new ones drawn: Net2WiderNet

Chen, Goodfellow and Shlens 2016, https://arxiv.org/abs/1511.05641, eq. 1 draws the new
ones. Where each channel is there equally often, means and variances over all of them
stay what they are: so norms go on computing the same.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import zlib

import jax
import numpy as np

from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.core import choices
from jaxopt_compress.distillation.growth import depth as depth_lib
from jaxopt_compress.distillation.growth import starts


def widen(
  structure: structure_lib.Structure,
  factor: float | None = None,
  *,
  sizes: Mapping[str, int] | None = None,
  multiple: int = 1,
  key: jax.Array | None = None,
  depth: float | Mapping[str, int | Sequence[int]] | None = None,
  where: str = 'uniform',
) -> plan_lib.Plan:
  """A plan of a wider, or deeper, network, for `jc.grow`.

  Args:
    structure: what `jc.structure(apply)(params, x)` returned.
    factor: every group that can grow has so many times as many channels: hidden units,
      heads, residual streams. What the program takes or gives, layers and experts stay;
      and what lies within a group that grows, as features of a head or the query heads
      of a key head, so that an axis grows by the factor once. None: none but those of
      `sizes`.
    sizes: {group: channels}, of groups that get another number of them, or keep theirs.
    multiple: sizes that `factor` says are rounded up to one of this.
    key: consumed to draw which channels are there again. None: all in turn.
    depth: how many times as many layers, of those that pass one value on; or {group:
      number of layers, or which layer each is a copy of}.
    where: the copies of a layer come 'uniform', behind it, or 'stacked', behind all.

  Returns:
    A `Plan`. The first channels are those that are there; print it to see which grow,
    which stay and why, and where the wider network computes something else.

  Raises:
    ValueError: neither factor, sizes nor depth; a size below the present one; a group
      that is not there or has to stay; no layers, or a part of one.

  >>> import jax.numpy as jnp
  >>> import jaxopt_compress as jc
  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
  >>> plan = jc.widen(jc.structure(f)(p, jnp.ones((1, 3))), factor=2)
  >>> {name: source.tolist() for name, source in plan.sources.items()}
  {'a:-1': [0, 1, 2, 3, 0, 1, 2, 3]}
  """
  if factor is None and not sizes and depth is None:
    raise ValueError(
      'Nothing says how wide: pass factor=2, depth=2, or sizes={group: channels} with'
      f' the groups that can grow: {list(free(structure))}.'
    )
  if factor is not None and not factor >= 1:
    raise ValueError(
      f'factor is {factor}; a wider network has a factor of 1 or more. For a narrower'
      ' one, jc.select(structure, scores, ...) says which channels stay.'
    )
  if multiple < 1 or multiple != int(multiple):
    raise ValueError(
      f'multiple is {multiple}; a whole number from 1 on is expected.'
    )
  starts.check(key)
  asked = {}
  if factor is not None:
    asked = {
      name: round(factor * g.size) for name, g in free(structure).items()
    }
  wanted = {name: -(-n // multiple) * multiple for name, n in asked.items()}
  for name, n in (sizes or {}).items():
    choices.one_of('group', name, tuple(structure.groups))
    if n < structure.groups[name].size or n != int(n):
      raise ValueError(
        f'{name} has {structure.groups[name].size} channels, and {n} are asked for; a'
        ' whole number that is no smaller is expected.'
      )
    wanted[name] = int(n)
    asked[name] = int(n)
  sources = {
    name: _source(name, structure.groups[name].size, n, key)
    for name, n in wanted.items()
    if n != structure.groups[name].size
  }
  rounded = {
    name: asked[name] for name in sources if asked[name] != wanted[name]
  }
  if depth is not None:
    sources |= depth_lib.sources(structure, depth, where)
  return plan_lib.Plan(structure, sources, rounded)


def free(
  structure: structure_lib.Structure,
) -> dict[str, structure_lib.Group]:
  """The groups that a factor widens: the outermost of those that can grow."""
  able = {
    name: group
    for name, group in structure.free.items()
    if not structure.ordered(name) and not _chosen(group)
  }
  layouts = [x for mine in structure.axes.values() for x in mine]
  inside = set().union(*(_inside(layout, able.keys()) for layout in layouts))
  return {
    name: group
    for name, group in able.items()
    if name not in inside and not able.keys() & {*group.within}
  }


def _inside(layout, able) -> set[str]:
  """The groups of an axis that lie inside of another one of it that can grow."""
  found, outer = set(), False
  for part in layout:
    if not isinstance(part, str):
      for term in part:
        found |= _inside(term, able)
        found |= able & {*structure_lib.names(term)} if outer else set()
    elif part in able:
      found |= {part} if outer else set()
      outer = True
  return found


def _chosen(group) -> bool:
  """Whether channels are chosen among, as experts are."""
  return any(
    'chooses' in why or 'group of rows' in why for why in group.inexact
  )


def _source(name, n, wanted, key) -> np.ndarray:
  first = np.arange(n)
  if key is None:
    return np.arange(wanted) % n
  own = jax.random.fold_in(key, zlib.crc32(name.encode()))
  return np.concatenate([first, jax.random.randint(own, (wanted - n,), 0, n)])
