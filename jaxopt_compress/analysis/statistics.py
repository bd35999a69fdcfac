"""Statistics of what weights meet, as monoids.

    state = init(k);  state = add(state, x);  merge(add(s, x), add(t, y))
                                                = add(merge(s, t), [x; y])

`x` [n, k] has a row for each time a weight was used and a column for each of its
contracted entries. Because merging is associative, statistics of several batches,
layers of a loop and devices are those of all the data.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

State = Any


class Statistic(NamedTuple):
  """A statistic of matrices [n, k].

  Attributes:
    init: k -> the state of no rows.
    add: (state, x [n, k] float32, mask [n] bool) -> state; rows where the mask is
      False do not count.
    merge: (state, state) -> state.
    all_reduce: (state, axis name) -> the state merged over devices.
    per: 'channel' if there is one result for each of the k entries, or pair of
      them; 'tensor' if entries are all alike.
  """

  init: Callable[[int], State]
  add: Callable[[State, jax.Array, jax.Array], State]
  merge: Callable[[State, State], State]
  all_reduce: Callable[[State, Any], State]
  per: str = 'channel'


class Range(NamedTuple):
  """Least and largest entries."""

  low: jax.Array
  high: jax.Array


def absmax(per: str = 'channel') -> Statistic:
  """Largest magnitude: [k], or scalar per tensor."""
  return Statistic(
    init=lambda k: jnp.zeros(_size(k, per)),
    add=lambda s, x, mask: jnp.maximum(
      s, jnp.max(jnp.where(mask[:, None], jnp.abs(x), 0), _axes(per), initial=0)
    ),
    merge=jnp.maximum,
    all_reduce=lax.pmax,
    per=per,
  )


def minmax(per: str = 'channel') -> Statistic:
  """Least and largest entry, as a `Range`; infinite where there were no rows."""

  def add(s, x, mask):
    low = jnp.where(mask[:, None], x, jnp.inf)
    high = jnp.where(mask[:, None], x, -jnp.inf)
    return Range(
      jnp.minimum(s.low, jnp.min(low, _axes(per), initial=jnp.inf)),
      jnp.maximum(s.high, jnp.max(high, _axes(per), initial=-jnp.inf)),
    )

  return Statistic(
    init=lambda k: Range(
      jnp.full(_size(k, per), jnp.inf, jnp.float32),
      jnp.full(_size(k, per), -jnp.inf, jnp.float32),
    ),
    add=add,
    merge=lambda a, b: Range(
      jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high)
    ),
    all_reduce=lambda s, axis: Range(
      lax.pmin(s.low, axis), lax.pmax(s.high, axis)
    ),
    per=per,
  )


def total(
  f: Callable[[jax.Array], jax.Array], shape=lambda k: (k,)
) -> Statistic:
  """The sum of `f(x)` over rows, f of x with unwanted rows zero: [k]."""
  return Statistic(
    init=lambda k: jnp.zeros(shape(k), jnp.float32),
    add=lambda s, x, mask: s + f(jnp.where(mask[:, None], x, 0)),
    merge=jnp.add,
    all_reduce=lax.psum,
  )


def sums() -> Statistic:
  """Sum of the entries: [k]. Over the count, the mean."""
  return total(lambda x: jnp.sum(x, 0))


def sum_abs() -> Statistic:
  """Sum of magnitudes: [k]."""
  return total(lambda x: jnp.sum(jnp.abs(x), 0))


def sum_squares() -> Statistic:
  """Sum of squares: [k]."""
  return total(lambda x: jnp.sum(jnp.square(x), 0))


class Moments(NamedTuple):
  """Sums of the entries, and of the products of pairs of them."""

  sums: jax.Array
  gram: jax.Array


def moments() -> Statistic:
  """`sums` and `gram` of the same rows, as `Moments`."""
  both = Moments(sums(), gram())
  return Statistic(
    init=lambda k: Moments(*(s.init(k) for s in both)),
    add=lambda state, x, mask: Moments(
      *(s.add(mine, x, mask) for s, mine in zip(both, state, strict=True))
    ),
    merge=lambda a, b: jax.tree.map(jnp.add, a, b),
    all_reduce=lax.psum,
  )


def gram() -> Statistic:
  """X^T X: [k, k]."""
  return total(_exact_gram, shape=lambda k: (k, k))


def _exact_gram(x):
  # Accelerators round the operands of a product unless told not to.
  return jnp.matmul(x.T, x, precision=lax.Precision.HIGHEST)


def _size(k, per):
  return () if per == 'tensor' else (k,)


def _axes(per):
  return (0, 1) if per == 'tensor' else 0
