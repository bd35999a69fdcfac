"""Which axes of which arrays hold the same channels.

An axis is a product of *channels*, the one whose index changes slowest first. What
an operation pairs is tied together, as in a union-find. In one thing a channel is
more than a node of one: it may turn out to be made of others,

    x [t, d]  ->  reshape to [t, h, k]      d = h * k       each head has k channels
    x [t, d]  ->  split into [t, q], [t, k]  d = q + k      as concatenation joins them

and then what is tied to it is made of the same. So the order in which a program
splits, joins and pairs its axes does not matter.

  >>> c = Channels()
  >>> d = c.axis(12)
  >>> head, within = c.split(d, 4)
  >>> c.tie(d, c.axis(12)), c.describe(d)
  (None, '3 * 4')
  >>> whole = c.join([d, c.axis(2)])
  >>> c.describe(whole)
  '(3 * 4 + 2)'
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import itertools
import math

Axis = tuple[int, ...]  # channels by number; () is an axis of size one


class Channels:
  """Channels, what they are made of, and why they have to stay.

  Channels are numbers. A channel that is made of others is a product of channels or
  a sum of axes; one that is not is a *leaf*, and the leaves are the answer.
  """

  def __init__(self):
    self._sizes: list[int] = []
    self._parent: list[int] = []
    self._product: dict[int, Axis] = {}
    self._sum: dict[int, list[Axis]] = {}
    self._locks: dict[int, dict[str, None]] = {}
    # Where in the program what is asked for is asked for: a user of it may say.
    self.where: Callable[[], str] = str

  def axis(self, size: int, why: str = '') -> Axis:
    """An axis of new channels; `why` locks them."""
    if size == 1:
      return ()
    self._sizes.append(int(size))
    self._parent.append(len(self._parent))
    made = (len(self._parent) - 1,)
    if why or not size:
      self.lock(made, why or 'it is empty')
    return made

  def size(self, axis: Axis) -> int:
    """How many entries the axis has."""
    return math.prod(self._sizes[c] for c in axis)

  def lock(self, axis: Axis, why: str) -> None:
    """Keeps all channels of an axis as they are, for a reason."""
    for leaf in self.leaves(axis):
      self._locks.setdefault(leaf, {})[why] = None

  def lock_mixed(self, *axes: Axis) -> None:
    """Keeps channels of which an operation makes two products or sums."""
    where = self.where()
    for axis in axes:
      self.lock(axis, f'its parts do not fit each other{where and ": "}{where}')

  def locks(self, leaf: int) -> tuple[str, ...]:
    """Why a leaf has to stay as it is; () if it may go."""
    return tuple(self._locks.get(self._find(leaf), ()))

  # ------------------------------------------------------------------- reading

  def factors(self, axis: Iterable[int]) -> list[int]:
    """The channels that an axis is a product of: leaves and sums."""
    found = []
    for c in map(self._find, axis):
      inside = self._product.get(c)
      found += [c] if inside is None else self.factors(inside)
    return found

  def terms(self, channel: int) -> list[Axis] | None:
    """The axes that a channel is the sum of, or None for a leaf."""
    return self._sum.get(self._find(channel))

  def leaves(self, axis: Iterable[int]) -> Iterator[int]:
    """The leaves that an axis is made of."""
    for c in self.factors(axis):
      if c not in self._sum:
        yield c
      for term in self._sum.get(c, ()):
        yield from self.leaves(term)

  def describe(self, axis: Axis) -> str:
    """What an axis is made of, in sizes of leaves."""
    words = []
    for c in self.factors(axis):
      terms = self._sum.get(c)
      inside = ' + '.join(map(self.describe, terms or ()))
      words.append(f'({inside})' if terms else f'{self._sizes[c]}')
    return ' * '.join(words) or '1'

  # ------------------------------------------------------------------ changing

  def tie(self, a: Axis, b: Axis) -> None:
    """Says that two axes of one size hold the same channels."""
    left, right = self.factors(a), self.factors(b)
    while left and right:
      x, y = left.pop(), right.pop()
      if x == y:
        continue
      if self._sizes[x] == self._sizes[y]:
        self._unite(x, y)
        # Uniting may have split what is still to be compared.
        left, right = self.factors(left), self.factors(right)
        continue
      if self._sizes[x] < self._sizes[y]:
        left, right, x, y = right, left, y, x
      parts = self._split_channel(x, self._sizes[y])
      if parts is None:
        self.lock_mixed((*left, x), (*right, y))
        return
      major, minor = parts
      left = self.factors((*left, *major, *minor))
      right = self.factors((*right, y))

  def split(self, axis: Axis, size: int) -> tuple[Axis, Axis] | None:
    """(major, minor) parts of an axis, the minor one of this size.

    None where channels would be torn apart; they are locked.
    """
    left, minor = self.factors(axis), []
    while size > 1:
      if not left:
        break
      c = left.pop()
      if size % self._sizes[c] == 0:
        minor = [c, *minor]
        size //= self._sizes[c]
        continue
      parts = self._split_channel(c, size)
      if parts is None:
        break
      left += self.factors(parts[0])
      minor = [*self.factors(parts[1]), *minor]
      size = 1
    if size > 1:
      self.lock_mixed(axis)
      return None
    return tuple(left), tuple(minor)

  def cut(self, axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    """The pieces of an axis, of these sizes, one after the other.

    None where channels would be torn apart; they are locked.
    """
    if len(sizes) == 1:
      return [axis]
    first, *rest = self.factors(axis)
    stride = self.size(tuple(rest))
    pieces = None
    if all(n % stride == 0 for n in sizes):
      pieces = self._cut_channel(first, [n // stride for n in sizes])
    if pieces is None:
      self.lock_mixed(axis)
      return None
    return [(*piece, *rest) for piece in pieces]

  def join(self, axes: Sequence[Axis]) -> Axis:
    """The axis that holds one axis after the other."""
    if len(axes) == 1:
      return axes[0]
    (made,) = self.axis(sum(map(self.size, axes)))
    self._sum[made] = list(axes)
    return (made,)

  # -------------------------------------------------------------------- inside

  def _find(self, c: int) -> int:
    while self._parent[c] != c:
      self._parent[c] = c = self._parent[self._parent[c]]
    return c

  def _inherit(self, c: int) -> None:
    """Passes the locks of a channel on to what it is made of."""
    for why in self._locks.pop(c, ()):
      self.lock((c,), why)

  def _unite(self, x: int, y: int) -> None:
    """Makes one of two channels of one size, leaves or sums."""
    if x not in self._sum:
      x, y = y, x
    others = self._sum.pop(y, None)
    self._parent[y] = x
    for why in self._locks.pop(y, ()):
      self.lock((x,), why)
    if others is not None:
      self._tie_sums(x, others)

  def _tie_sums(self, x: int, others: list[Axis]) -> None:
    """Ties the sum that x is to another sum of that size."""
    mine = self._sum[x]
    sizes = _common_pieces(
      [list(map(self.size, terms)) for terms in (mine, others)]
    )
    both = []
    # Of a sum that stays, what meets it stays. What is shifted along itself would
    # be cut to pieces of one.
    tears = len(sizes) > max(len(mine), len(others))
    if not (tears and self._stays_or_shifts(mine, others)):
      both = [self._cut_terms(terms, sizes) for terms in (mine, others)]
    if not both or None in both:
      self.lock_mixed(*mine, *others)
      return
    for a, b in zip(*both, strict=True):
      self.tie(a, b)

  def _stays_or_shifts(self, mine: list[Axis], others: list[Axis]) -> bool:
    leaves = [[*itertools.chain(*map(self.leaves, t))] for t in (mine, others)]
    if any(all(map(self.locks, ls)) for ls in leaves):
      return True
    return bool(set(leaves[0]) & set(leaves[1]))

  def _split_channel(self, c: int, size: int) -> tuple[Axis, Axis] | None:
    """Splits a leaf or a sum; None where that tears channels."""
    terms = self._sum.get(c)
    if self._sizes[c] % size:
      return None
    if terms is None:
      major, minor = self.axis(self._sizes[c] // size), self.axis(size)
    elif any(self.size(term) % size for term in terms):
      return None
    else:
      parts = [self.split(term, size) for term in terms]
      if any(p is None for p in parts):
        return None
      minor = parts[0][1]
      for other in parts[1:]:
        self.tie(minor, other[1])
      del self._sum[c]
      major = self.join([p[0] for p in parts])
    self._product[c] = (*major, *minor)
    self._inherit(c)
    return major, minor

  def _cut_channel(self, c: int, sizes: Sequence[int]) -> list[Axis] | None:
    """Cuts a leaf or a sum."""
    if len(sizes) == 1:
      return [(c,)]
    if c not in self._sum:
      self._sum[c] = [self.axis(n) for n in sizes]
      self._inherit(c)
      return list(self._sum[c])
    ends = _common_pieces([list(map(self.size, self._sum[c])), list(sizes)])
    pieces = self._cut_terms(self._sum[c], ends)
    if pieces is None:
      return None
    self._sum[c] = pieces
    out, left = [], iter(zip(pieces, ends, strict=True))
    for n in sizes:
      taken = []
      while n > 0:
        piece, size = next(left)
        taken.append(piece)
        n -= size
      out.append(self.join(taken))
    return out

  def _cut_terms(self, terms, sizes) -> list[Axis] | None:
    """Cuts axes that follow each other into smaller pieces of these sizes."""
    out, left = [], list(sizes)
    for term in terms:
      n, here = self.size(term), []
      while sum(here) < n:
        here.append(left.pop(0))
      pieces = self.cut(term, here)
      if pieces is None:
        return None
      out += pieces
    return out


def _common_pieces(rows: Sequence[Sequence[int]]) -> list[int]:
  """The sizes between all ends of several rows of sizes.

  >>> _common_pieces([[2, 4], [3, 3]])
  [2, 1, 3]
  """
  ends = sorted(set().union(*(itertools.accumulate(row) for row in rows)))
  return [b - a for a, b in zip([0, *ends], ends)]
