"""What leaves say of channels, and the importance that it makes.

vote of a leaf      mean of its scores over the entries of each channel
importance          mean of the votes, each over its own mean
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import functools
import inspect
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.core import choices
from jaxopt_compress.pruning.structured import members as members_lib
from jaxopt_compress.pruning.structured import normals

Channels = Callable[[np.ndarray], np.ndarray]


def put_together(
  structure: structure_lib.Structure,
  votes: Iterable[tuple[str, np.ndarray]],
  balanced: bool = True,
  members: str | Channels = 'mean',
  normalize: str | Channels = 'mean',
) -> dict[str, np.ndarray]:
  """The importance of channels, of what they are worth to each leaf.

  Args:
    structure: of the network.
    votes: (group, float [..., size]), one for each leaf and axis that has a say.
    balanced, members, normalize: as for `importance`.

  Raises:
    ValueError: no votes.
  """
  members = named('members', members, members_lib)
  normalize = named('normalize', normalize, normals)
  found: dict[str, list[np.ndarray]] = {}
  for name, values in votes:
    found.setdefault(name, []).append(
      normals.mean(values) if balanced else values
    )
  if not structure.free:
    raise ValueError(
      'No group of the structure may go: print(structure) says what keeps each.'
    )
  if not found:
    raise ValueError(
      f'None of {list(structure.free)[:5]} has a leaf with a score; all other groups'
      ' stay, and print(structure) says why. Give a score to leaves of these, as in'
      " score=[('.*kernel', 'magnitude'), ('.*', None)]."
    )
  return {
    name: normalize(members(np.stack(found[name])))
    for name in structure.free
    if name in found
  }


def by_group(
  structure: structure_lib.Structure,
  path: str,
  values: Any,
  entries: str = 'mean',
  within: str = '.*',
) -> Iterator[tuple[str, np.ndarray]]:
  """(group, float64 [..., size]) of each axis of a leaf: of the values of a channel.

  Args:
    structure: of the network.
    path: of the leaf.
    values: one for each of its entries; axes of size 1 stand for all.
    entries: their 'mean' or 'sum'.
    within: as for `importance`.
  """
  found = []
  for axis, layout in enumerate(structure.axes[path]):
    for name in dict.fromkeys(structure_lib.names(layout)):
      group = structure.groups[name]
      if not group.locked:
        outer = group.within if re.fullmatch(within, name) else ()
        where = structure.coordinates(path, axis, name)[-1 - len(outer) :]
        sizes = [structure.groups[g].size for g in (*outer, name)]
        found.append((name, where, sizes))
  # Axes along which all is of one channel are summed over on the device, in one
  # program for all groups of the leaf.
  along = [
    tuple(i for i, n in enumerate(np.broadcast(*where).shape) if n == 1)
    for _, where, _ in found
  ]
  bad, sums = _reduced(values, tuple(along), entries == 'mean')
  if bad:
    raise ValueError(
      f'{path}: {bad} of {values.size} scores are NaN or infinite. Look for where'
      ' the parameters or gradients are.'
    )
  for (name, where, sizes), x in zip(found, sums, strict=True):
    yield name, _by_channel(np.asarray(x, np.float64), where, sizes, entries)


def _by_channel(sums, where, sizes, entries) -> np.ndarray:
  """The sum or mean of all values of each channel, `where` as from `coordinates`."""
  # An axis may hold a channel several times, and others beside them.
  here = functools.reduce(np.logical_and, [x >= 0 for x in where])
  index = np.ravel_multi_index(where, sizes, mode='clip')
  shape = np.broadcast_shapes(sums.shape, index.shape)
  here, index, sums = (np.broadcast_to(x, shape) for x in (here, index, sums))
  length = math.prod(sizes)
  total = np.bincount(index[here], sums[here], length)
  if entries == 'mean':
    total /= np.bincount(index[here], minlength=length)
  return total.reshape(sizes)


def named(what, word, module) -> Callable:
  """A function, or the one that has this name in a module."""
  if callable(word):
    return word
  names = [
    name
    for name, f in vars(module).items()
    if inspect.isfunction(f) and f.__module__ == module.__name__
  ]
  choices.one_of(what, word, [n for n in names if n[0] != '_'], '=')
  return getattr(module, word)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _reduced(x, axes, mean):
  """(how many are not finite, the sum or mean over each of several sets of axes)."""
  found = []
  for along in axes:
    y = x
    # One axis at a time: a sum of sums of few numbers rounds less.
    for axis in reversed(along):
      y = (jnp.mean if mean else jnp.sum)(y, axis, keepdims=True)
    found.append(y)
  return jnp.sum(~jnp.isfinite(x)), found
