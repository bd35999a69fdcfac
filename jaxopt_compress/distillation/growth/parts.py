"""What every entry of a parameter takes up where a network grows.

    copies     w_j ** power of the shares of its channels, times one factor for all
    gradients  w_j / that: what a unit gets is shared among its copies

Shares w_j are equal, 1 / how many copies there are; random; or all of it is left to the
first of the copies.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.plan import shares as shares_lib
from jaxopt_compress.analysis.structure import structure as structure_lib

# What is said of a group that depends on its size alone.
_NUMBERS = ('has a number for', 'fits their number', 'depends on their size')


class Grown:
  """A plan that widens, and what parameters take up for it.

  Attributes:
    structure: of the network that is there.
    sizes: {group: new size}.
    sources: {group: int [new size]}, of those that grow.
    shares: what is taken up.
    silent: groups of which nothing is written to new channels.
    unread: groups of which nothing reads new channels.
    left: {group: why the function is not kept}.
    constants: {group: what to do}, of those whose number the function has itself.
    alike: {group: why}, of those that a zero start leaves copies that share equally.
  """

  def __init__(
    self,
    plan: plan_lib.Plan,
    zero: bool = False,
    rebuilt: Callable | None = None,
  ):
    self.structure, self.sizes = plan.structure, plan.sizes
    self.sources = shares_lib.widened(plan.structure, plan.sources)
    solved = functools.partial(
      shares_lib.shares, plan.structure, self.sources, rebuilt=rebuilt
    )
    self.shares = copied = solved() if self.sources else None
    self.silent = self.unread = frozenset()
    self.left = dict(copied.left) if copied else {}
    self.constants = copied.constants if copied else {}
    self.alike: dict[str, str] = {}
    if zero and copied:
      self.unread = frozenset(filter(self._may_be_unread, self.sources))
      others = set(self.sources) - self.unread
      whys = copied.reduced | copied.copies | copied.left
      whys |= self._silence(solved, [*filter(self._may_be_silent, others)])
      self.alike = {
        g: whys.get(g, 'not all that reads them can be zero')
        for g in sorted(others - self.silent)
      }
      self.left = dict(self.shares.left)
    self._reads = copied.read if copied else frozenset()
    self._gains = copied.gains if copied else frozenset()
    self._products = copied.products if copied else frozenset()

  def _may_be_unread(self, group) -> bool:
    """Whether all that sums over a group has shares to be zero."""
    found = [v for (_, _, g), v in self.shares.powers.items() if g == group]
    met = self.shares
    known = {*met.copies, *met.left, *met.reduced}
    return group not in known and all(v == 1.0 for v in found)

  def _may_be_silent(self, group) -> bool:
    """Whether zeros in its channels stay zeros, up to numbers for its size.

    What reads them is random: a norm of its own would be another.
    """
    if group in self.shares.reduced:
      return False
    whys = self.structure.groups[group].inexact
    return all(any(n in why for n in _NUMBERS) for why in whys)

  @functools.cached_property
  def apart(self) -> frozenset[str]:
    """Groups of which some weight has random shares of its own for each output."""
    groups = (self.part(p)._alone().values() for p in self.structure.axes)
    return frozenset(g for own in groups for names in own for g in names)

  def _silence(self, solved, groups) -> dict[str, str]:
    """Writes nothing to new channels of groups; {group: why not}, of some."""
    known, whys = self.shares.left, {}
    # All at once, or one by one where zeros change a number that no parameter makes up
    # for, as in mean(x^2) - mean(x)^2.
    for more in (groups, *([g] for g in sorted(groups))):
      tried = solved(silent=self.silent.union(more))
      new = [why for g, why in tried.left.items() if g not in known]
      if not new:
        self.silent, self.shares = self.silent.union(more), tried
      whys |= dict.fromkeys(more, *new[:1])
      if self.silent.issuperset(groups):
        break
    return whys

  def part(self, path: str) -> 'Part':
    """A parameter."""
    return Part(self, path)

  def spot(self, group: str) -> np.ndarray:
    """bool [new size]: the first copy of each channel."""
    source = self.sources[group]
    first = np.zeros(len(source), bool)
    first[np.unique(source, return_index=True)[1]] = True
    return first

  def equal(self, group: str) -> np.ndarray:
    """float [new size]: shares that are alike for all copies of a channel."""
    source = self.sources[group]
    return 1.0 / np.bincount(source)[source]

  def random(self, group: str, key: jax.Array) -> jax.Array:
    """float [new size]: shares that differ, the same wherever the group is."""
    source = self.sources[group]
    own = jax.random.fold_in(key, zlib.crc32(group.encode()))
    drawn = _drawn(own, source.shape)
    return drawn / jax.ops.segment_sum(drawn, source, source.max() + 1)[source]


class Part:
  """A parameter of a network that grows.

  Attributes:
    path: its name.
    new: bool, broadcast to its new shape: entries of a channel that is there again.
    made: bool: entries of a new channel that it does not read.
  """

  def __init__(self, grown: Grown, path: str):
    self._grown, self.path = grown, path
    layouts = grown.structure.axes[path]
    self._ndim = len(layouts)
    # Of each axis that grows: the group, and which of its channels each entry is of.
    self._along = [
      (i, g, grown.structure.channels(layout, g, grown.sizes))
      for i, layout in enumerate(layouts)
      for g in structure_lib.names(layout)
      if g in grown.sources
    ]

  @property
  def product(self) -> bool:
    """Whether it is a weight of a product, or a table."""
    return self.path in self._grown._products

  @property
  def new(self) -> np.ndarray:
    return self._where(lambda i, g: True)

  @property
  def made(self) -> np.ndarray:
    return self._where(lambda i, g: (self.path, i, g) not in self._grown._reads)

  def _where(self, chosen, of=lambda new: new) -> np.ndarray:
    """Entries of new channels of some of its groups."""
    found = np.zeros((1,) * self._ndim, bool)
    for i, g, channels in self._along:
      if chosen(i, g):
        new = (channels >= 0) & ~self._grown.spot(g)[channels]
        found = found | self._at(i, new)
    return found

  def _at(self, i, x):
    return x.reshape([-1 if j == i else 1 for j in range(self._ndim)])

  def _power(self, i, group) -> float:
    return self._grown.shares.powers.get((self.path, i, group), 0.0)

  def _times(self, shares: Callable, powers: Callable) -> dict[int, jax.Array]:
    """For each axis, float [entries]: shares of the groups along it, to some powers."""
    factors: dict[int, np.ndarray] = {}
    for i, g, channels in self._along:
      power = powers(i, g)
      if power:
        own = jnp.where(channels >= 0, shares(g)[channels] ** power, 1.0)
        factors[i] = factors.get(i, 1.0) * own
    return factors

  @property
  def factor(self) -> float:
    """What all of it is multiplied by."""
    shares = self._grown.shares
    return shares.factors.get(self.path, 1.0) if shares else 1.0

  def shared(self, values: jax.Array, key: jax.Array | None) -> jax.Array:
    """Values of copies, divided as the function says; at random with a key."""
    alone = {}
    if key is not None:
      own = jax.random.fold_in(key, zlib.crc32(self.path.encode()))
      alone = self._alone()
      if alone:
        values = values * self._each(values.shape, alone, own)

    def share(g):
      if key is None:
        return self._grown.equal(g)
      return self._grown.random(g, key)

    factors = self._times(
      share, lambda i, g: 0.0 if g in alone.get(i, ()) else self._power(i, g)
    )
    return self._multiplied(values, factors)

  def _multiplied(self, values, factors):
    total = self.factor
    for i, x in factors.items():
      values = values * jnp.asarray(self._at(i, x), jnp.float32)
    return values * total if total != 1.0 else values

  def _alone(self) -> dict[int, set[str]]:
    """{axis: groups of which each output may have shares of its own}."""
    found: dict[int, set[str]] = {}
    for i, g, _ in self._along:
      if (self.path, i, g) in self._grown.shares.reads:
        found.setdefault(i, set()).add(g)
    # Those of one axis sum to one together; of others each has its own shares.
    return dict(list(found.items())[:1])

  def _each(self, shape, alone, key) -> jax.Array:
    """Random shares of each entry, that sum to one over the copies of a channel."""
    ((axis, groups),) = alone.items()
    layout = self._grown.structure.axes[self.path][axis]
    whole = _merged(layout, self._grown, groups)
    # The axis that is read goes first, as segments are summed along the first.
    drawn = jnp.moveaxis(_drawn(key, shape), axis, 0)
    totals = jax.ops.segment_sum(drawn, whole, int(whole.max()) + 1)
    return jnp.moveaxis(drawn / totals[whole], 0, axis)

  def alone(self, values: jax.Array, copies: jax.Array) -> jax.Array:
    """Copies; values for what is new, and zeros where the function asks for them."""
    grown = self._grown
    quiet = grown.unread | grown.silent
    fresh = self._where(lambda i, g: g in quiet)
    zeros = self._where(
      lambda i, g: (
        (g in grown.unread and self._power(i, g) > 0)
        or (g in grown.silent and not self._passes(i, g))
      )
    )
    out = jnp.where(zeros, 0, jnp.where(fresh, values, copies))
    factors = self._times(
      grown.equal, lambda i, g: 0.0 if g in quiet else self._power(i, g)
    )
    return self._multiplied(out, factors)

  def _passes(self, i, group) -> bool:
    """Whether it meets channels that others write to."""
    key = self.path, i, group
    return key in self._grown._reads or key in self._grown._gains

  def moment(
    self,
    x: jax.Array,
    axes: Mapping[int, int],
    order: int,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Copies of what is kept of gradients, as those of the larger network are.

    Args:
      x: array of copies.
      axes: {axis of `x`: axis of the parameter}.
      order: 1 for what goes as gradients do, 2 for their squares.
      key: of random shares of the parameters. Of those that differ from output to
        output the mean is taken.
    """
    grown = self._grown

    def share(g):
      same = key is None or g in grown.apart
      return grown.equal(g) if same else grown.random(g, key)

    quiet = grown.unread | grown.silent
    # Weight and gradient share between them: what reads a copy has its share and the
    # whole gradient, what makes one is whole and has that share of the gradient.
    factors = self._times(
      share, lambda i, g: 0.0 if g in quiet else 1.0 - self._power(i, g)
    )
    back = {i: j for j, i in axes.items()}
    total = self.factor**-order
    for i, own in factors.items():
      if i in back:
        shape = [-1 if j == back[i] else 1 for j in range(x.ndim)]
        x = x * jnp.asarray((own**order).reshape(shape), jnp.float32)
      else:  # of a mean over that axis
        total *= (own**order).mean()
    if order == 1 and len(axes) == self._ndim == x.ndim:
      x = jnp.where(self._where(lambda i, g: g in quiet), 0, x)
    return x * total


def _drawn(key, shape) -> jax.Array:
  return jax.random.uniform(key, shape, minval=0.5, maxval=1.5)


def _merged(layout, grown, groups) -> np.ndarray:
  """int [entries]: alike for entries that are copies by some groups, and by no others."""
  index = np.zeros(1, int)
  for part in layout:
    if isinstance(part, str):
      group = grown.structure.groups[part]
      n = grown.sizes.get(part, group.size)
      inner = grown.sources[part] if part in groups else np.arange(n)
    else:
      terms = [_merged(term, grown, groups) for term in part]
      starts = np.cumsum([0, *(t.max() + 1 for t in terms)])
      inner = np.concatenate(
        [s + t for s, t in zip(starts, terms, strict=False)]
      )
    # As digits of a number: groups further in count fastest, as on the axis.
    index = (index[:, None] * (inner.max() + 1) + inner).ravel()
  return index
