"""How the statistic of one weight is put together from all that it meets.

    seen = see(probe, rows)          one meeting: (how many rows, statistic of them)
    merge, empty, all_reduce         over uses, turns of a loop, branches and devices

The statistic is one for each weight: for each layer of a scan and each expert. Where a
`shard_map` cuts the weight, devices see parts of it, or other data, or the same.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import rows as rows_lib
from jaxopt_compress.core import jaxprs


class Observed(NamedTuple):
  """A statistic of one weight, and how many rows it saw.

  Leading axes of both are those along which there is one weight after the other:
  layers of a scan, outermost first, then experts. A row counts once for each time
  it meets the weight; in a grouped convolution, once for each group.
  """

  count: jax.Array
  state: Any


@dataclasses.dataclass
class Watch:
  """The statistic of one weight, and what is learned about it on the way.

  Attributes:
    name: of the leaf.
    statistic: of what it meets.
    k: how many entries it contracts.
    joined: mesh axes along which data was joined, so that devices have the same.
    layers: mesh axes that cut the leaf along an axis that is gone at the product.
  """

  name: str
  statistic: Any
  k: int = 0
  joined: tuple[str, ...] = ()
  layers: tuple[str, ...] = ()

  def merge(self, a, b):
    """Merges states, one by one along the leading axes."""
    shapes = [[s.shape for s in jax.tree.leaves(seen)] for seen in (a, b)]
    if shapes[0] != shapes[1]:
      raise ValueError(
        f'{self.name} has uses whose statistics cannot be merged: arrays of'
        f' shapes {shapes[0]} and {shapes[1]}. It is contracted along other axes,'
        ' or stacked in one and not in the other. Leave it out with'
        f' (r"{re.escape(self.name)}", None), or observe a function without one.'
      )
    merge = over_stack(a.count.ndim, self.statistic.merge)
    return Observed(a.count + b.count, merge(a.state, b.state))

  def empty(self, like):
    """The state of no rows, of the shapes of `like`."""
    none = Observed(jnp.zeros(()), self.statistic.init(self.k))
    return jax.tree.map(
      lambda x, s: jaxprs.vary(jnp.broadcast_to(x, s.shape), jaxprs.varying(s)),
      none,
      like,
    )

  def all_reduce(self, seen, axes, known):
    """The state over devices along mesh axes; see `context.Monoid`."""
    # Scanned layers that lie on other devices are put behind each other; nothing
    # is left to sum along these axes.
    if self.layers:
      if not seen.count.ndim:
        raise ValueError(
          f'{self.name} is cut along {self.layers} by a shard_map, and indexed'
          ' there, not scanned: which layers were met is not known. Observe this'
          ' function without the shard_map.'
        )
      seen = jax.tree.map(lambda s: rows_lib.joined(s, self.layers, 0), seen)
    gone = {*self.layers, *(() if known else self.joined)}
    self.joined = ()  # the next `shard_map` cuts as it likes
    axes = tuple(a for a in axes if a not in gone)
    if not axes:
      return seen
    reduce = over_stack(
      seen.count.ndim, lambda s: self.statistic.all_reduce(s, axes)
    )
    return Observed(lax.psum(seen.count, axes), reduce(seen.state))

  def see(self, probe, met: rows_lib.Rows) -> Observed:
    """The state of the rows that a probe met, that of the whole leaf."""

    def seen_by_one(x, mask):
      added = self.statistic.add(self.statistic.init(met.k), x, mask)
      return Observed(jnp.sum(mask, dtype=jnp.float32), added)

    seen_by_each = over_stack(met.x.ndim - 2, seen_by_one)
    seen = seen_by_each(met.x.astype(jnp.float32), met.mask)
    cut = dict(probe.cut)
    # Experts that lie on other devices are put beside those here, and what several
    # devices then know alike is not to be summed over them again.
    for i, dim in enumerate(met.stack):
      names = cut.get(probe.pieces[dim][0][0])
      if names:
        seen = jax.tree.map(
          lambda s, i=i, n=names: rows_lib.joined(s, n, i), seen
        )
    for dim in (*met.contracted, *met.stack):
      for axis, _ in probe.pieces[dim]:
        self.joined += cut.get(axis, ())
    self.k = met.k
    self.layers = self._cut_layers(probe)
    return seen

  def _cut_layers(self, probe) -> tuple[str, ...]:
    """The mesh axes that cut the leaf along an axis that a scan has taken since."""
    present = {axis for pieces in probe.pieces for axis, _ in pieces}
    gone = {axis: names for axis, names in probe.cut if axis not in present}
    if gone and set(gone) != {-probe.origin}:
      raise ValueError(
        f'{self.name} is cut along its axes {sorted(gone)} by a shard_map and'
        ' sliced there. Only its first axis, scanned, can be put together again:'
        ' observe this function without the shard_map.'
      )
    return gone.get(-probe.origin, ())


def over_stack(depth: int, f: Callable) -> Callable:
  """`f`, over that many leading axes of its arguments."""
  for _ in range(depth):
    f = jax.vmap(f)
  return f
