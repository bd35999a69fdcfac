"""Which axes of attention are batch, heads, places and features.

    y[b, t, n g, m] = sum_s softmax_s(q[b, t, n g, d] k[b, s, n, d]) v[b, s, n, m]

A program may have any number of axes in any order. Those that keys have, too, are
batches b or heads n; those that only queries have are places t, or heads g that share
a key. Semantically it is all the same; what is chosen is what needs no value moved.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import itertools

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.kernels.attends import axes

# Orders of axes in memory that the kernel takes, the first where values are moved.
ORDERS = dict(
  query=('bthd', 'bhtd'),
  key=('bthd', 'bhtd', 'bhdt'),
  value=('bthd', 'bhtd'),
  out=('bthd', 'bhtd'),
)


@dataclasses.dataclass(frozen=True)
class Roles:
  """The parts of axes by what they are for, outermost first.

  Attributes:
    batch, heads, group, places, keys, features, results: b, n, g, t, s, d and m
      above.
  """

  batch: tuple[int, ...]
  heads: tuple[int, ...]
  group: tuple[int, ...]
  places: tuple[int, ...]
  keys: tuple[int, ...]
  features: tuple[int, ...]
  results: tuple[int, ...]

  def axes_of(self, name: str) -> dict[str, tuple[int, ...]]:
    """{letter of an order: parts} of an operand or of the result."""
    alone = name in ('key', 'value')
    return {
      'b': self.batch,
      'h': self.heads if alone else self.heads + self.group,
      't': self.keys if alone else self.places,
      'd': self.results if name in ('value', 'out') else self.features,
    }

  def order(self, name: str, flat: Sequence[int]) -> str | None:
    """The order in which an operand lies there already; None if it does not."""
    letters = self.axes_of(name)
    for word in ORDERS[name]:
      if tuple(flat) == sum((letters[c] for c in word), ()):
        return word
    return None

  def as_it_is(self, name: str, layout: axes.Layout) -> bool:
    """Whether an operand has the four axes of its order already.

    XLA copies a cache that is written in place and read in another shape.
    """
    letters = self.axes_of(name)
    word = self.order(name, sum(layout, ()))
    return word is not None and tuple(letters[c] for c in word) == layout


@dataclasses.dataclass(frozen=True)
class Shapes:
  """What is known of the axes of attention.

  Attributes:
    parts: of all axes.
    index: parts of scores other than keys, in order.
    query, key, value, out: their parts in order.
    beside: parts of each bias and mask.
    diagonal: parts of places that a causal mask compares, or None.
    layouts: of query, key, value and out, the parts of each axis.
  """

  parts: axes.Parts
  index: tuple[int, ...]
  query: tuple[int, ...]
  key: tuple[int, ...]
  value: tuple[int, ...]
  out: tuple[int, ...]
  beside: tuple[tuple[int, ...], ...]
  diagonal: tuple[int, ...] | None = None
  layouts: tuple[axes.Layout, ...] = ()


def choose(s: Shapes, keys: Iterable[int], contracted: Iterable[int]):
  """The `Roles` that cost least; None for what is no attention.

  Args:
    s: what is known.
    keys: parts that the softmax goes over.
    contracted: parts that scores are summed over.
  """
  keys, contracted = {*keys}, {*contracted}
  # Axes that keys or values have are batches and heads; the queries' own are places,
  # and heads that share a key.
  shared = {p for p in s.index if p in s.key or p in s.value}
  alone = [p for p in s.index if p not in shared]
  results = [p for p in s.value if p not in keys and p not in shared]
  whole = (
    keys <= {*s.key}
    and keys <= {*s.value}
    and contracted <= {*s.key}
    and contracted <= {*s.query}
    and {*alone} <= {*s.query}
    and {*s.out} == {*s.index, *results}
  )
  if not whole:
    return None

  def fixed(batch_heads, places):
    return dict(
      places=tuple(places),
      group=tuple(p for p in alone if p not in places),
      keys=tuple(p for p in s.key if p in keys),
      features=tuple(p for p in s.key if p in contracted),
      results=tuple(results),
    )

  order = sorted(shared, key=lambda p: _places(s, p))
  found = [
    Roles(order[:i], order[i:], **fixed(order, places))
    for i in range(len(order), -1, -1)
    for places in _runs([p for p in s.query if p in alone])
  ]
  found = [
    dataclasses.replace(r, batch=tuple(r.batch), heads=tuple(r.heads))
    for r in found
  ]
  return min(found, key=lambda r: _cost(s, r))


def _places(s, p):
  """Where a part comes in the first value that has it."""
  for i, flat in enumerate((s.key, s.value, s.query)):
    if p in flat:
      return i, flat.index(p)
  return 3, 0


def _runs(flat) -> Iterator[tuple[int, ...]]:
  """All runs of parts that follow each other."""
  if not flat:
    yield ()
  for i, j in itertools.combinations(range(len(flat) + 1), 2):
    yield tuple(flat[i:j])


def _cost(s: Shapes, r: Roles):
  """How many numbers are moved, and then what is less usual."""
  cost = 0
  for name in ORDERS:
    flat = getattr(s, name)
    if r.order(name, flat) is None:
      cost += s.parts.size(sum(r.axes_of(name).values(), ()))
  for flat in s.beside:
    cost += s.parts.size(sum(_present(r, flat), ()))
  if s.diagonal is not None and s.diagonal != r.places:
    cost += s.parts.size((*r.places, *r.keys))
  # One shared axis is a batch; of several, one is usually heads.
  usual = min(1, max(len(r.batch) + len(r.heads) - 1, 0))
  seen = sum(
    not r.as_it_is(name, layout)
    for name, layout in zip(ORDERS, s.layouts, strict=False)
  )
  return cost, seen, len(r.heads) != usual, -s.parts.size(r.places)


def _present(r: Roles, flat) -> list[tuple[int, ...]]:
  """Of batch, heads, places and keys all parts, or none if a bias has none."""
  groups = r.batch, r.heads + r.group, r.places, r.keys
  return [g if {*g} & {*flat} else () for g in groups]


# ------------------------------------------------------------------- in arrays


def as_operand(
  x: jax.Array, flat: Sequence[int], r: Roles, name: str, parts: axes.Parts
) -> tuple[jax.Array, str]:
  """(x with the four axes of an operand, their order)."""
  letters = r.axes_of(name)
  word = r.order(name, flat) or ORDERS[name][0]
  return _moved(x, flat, [letters[c] for c in word], parts), word


def as_scores(
  x: jax.Array, flat: Sequence[int], r: Roles, parts: axes.Parts
) -> jax.Array:
  """x as [batch or 1, heads or 1, places or 1, keys or 1]."""
  return _moved(x, flat, _present(r, flat), parts)


def _moved(x, flat, groups, parts):
  """x, whose axes are `flat`, as an array with an axis for each group of parts."""
  wanted = [p for group in groups for p in group]
  x = x.reshape([parts.size((p,)) for p in flat])
  here = [p for p in wanted if p in flat]
  # The parts it has are put in the order wanted first; those it lacks are axes of one,
  # spread, and last the parts of each group become one axis.
  x = lax.transpose(x, [flat.index(p) for p in here])
  # Parts that it does not have are those along which it is the same.
  absent = [i for i, p in enumerate(wanted) if p not in flat]
  shape = [parts.size((p,)) for p in wanted]
  x = jnp.broadcast_to(jnp.expand_dims(x, absent), shape)
  return x.reshape([parts.size(group) for group in groups])


def from_result(
  y: jax.Array, word: str, flat: Sequence[int], r: Roles, parts: axes.Parts
) -> jax.Array:
  """A result in an order as an array with an axis for each part of `flat`."""
  letters = r.axes_of('out')
  # The kernel's four axes come apart into their parts, which go where the program
  # has them.
  lies = sum((letters[c] for c in word), ())
  y = y.reshape([parts.size((p,)) for p in lies])
  return lax.transpose(y, [lies.index(p) for p in flat])
