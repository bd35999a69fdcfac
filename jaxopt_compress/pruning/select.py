"""The exact k largest of many scores, by bisection on their bits.

    key(x)   an unsigned integer that orders as x does
    t        the largest key with  count(key >= t) >= k      (one bit at a time)
    kept     key > t, and of those with key = t as many as are missing, the
             lowest indices first

Nothing is sorted and nothing is gathered: each of the 32 steps (16 for bfloat16)
compares all keys with one threshold and counts. On sharded scores that costs one
scalar all-reduce a step, where sorting would move the whole array to every device.

Slices of an array can be ranked each by itself, and many arrays can be ranked together,
as if they were concatenated. Counts are exact beyond an int32 (see `counts`).
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.pruning import counts

Number = counts.Number


def top_k_mask(
  scores: jax.Array, k: Number, axes: Sequence[int] | None = None
) -> jax.Array:
  """True at the `k` largest scores; of equal ones, those of the lowest index.

  Args:
    scores: floating array of any shape and dtype. -0 equals 0. NaN ranks below
      -inf, so that it never wins against a number.
    k: how many, 0 <= k <= scores.size; may be traced.
    axes: whose entries are ranked with each other; None is all. Along the others
      each slice is ranked by itself, and k may be an array with size 1 on `axes`.

  Returns:
    Boolean array of the shape of `scores`, True exactly `k` times (in each slice).

  Raises:
    ValueError: not floating, k out of range; or, where the values are known (not
      under jit), a score that is NaN.

  >>> top_k_mask(jnp.array([1., 3., 2., 3.]), 3).tolist()
  [False, True, True, True]
  >>> top_k_mask(jnp.array([[5., 5.], [1., 2.]]), 1, axes=(-1,)).tolist()
  [[True, False], [False, True]]
  """
  scores = jnp.asarray(scores)
  axes = tuple(range(scores.ndim)) if axes is None else axes
  axes = tuple(sorted(a % scores.ndim for a in axes))
  _check([scores], k, math.prod(scores.shape[a] for a in axes))
  return _top_k(scores, counts.of(k), axes)


def top_k_masks(scores: Sequence[jax.Array], k: Number) -> list[jax.Array]:
  """`top_k_mask` of several arrays ranked together, earlier arrays first.

  Args:
    scores: floating arrays, of any shapes and one dtype.
    k: how many of all of them; may be traced.

  Returns:
    A boolean array for each.

  >>> [m.tolist() for m in top_k_masks([jnp.array([1., 4.]), jnp.array([3.])], 2)]
  [[False, True], [True]]
  """
  scores = [jnp.asarray(s) for s in scores]
  _check(scores, k, sum(s.size for s in scores))
  slices = [Slices(s, tuple(range(s.ndim)), 0, s.size) for s in scores]
  return _together(slices, counts.of(k))


class Slices(NamedTuple):
  """An array whose slices have bounds on how many of them are kept.

  Attributes:
    scores: floating array.
    axes: that make up one slice, counted from the front.
    least, most: of each slice that are kept, numbers or arrays with size 1 on
      `axes`.
  """

  scores: jax.Array
  axes: tuple[int, ...]
  least: Number
  most: Number


def together(slices: Sequence[Slices], k: Number) -> list[jax.Array]:
  """One threshold for the slices of all arrays, which keep `k` in all.

  Slices that would keep fewer than their `least` keep their `least` largest, and
  those that would keep more than their `most` keep that many; the threshold is the
  one at which that makes k.

  Args:
    slices: whose scores have one dtype; the sum of what is least is k at most, and
      the sum of what is most k at least.
    k: how many of all; may be traced.

  Returns:
    A boolean array for each.

  >>> loud, soft = jnp.array([8., 9.]), jnp.array([1., 2.])
  >>> ours = [Slices(loud, (0,), 0, 2), Slices(soft, (0,), 1, 2)]
  >>> [m.tolist() for m in together(ours, 2)]
  [[False, True], [False, True]]
  """
  _check([s.scores for s in slices], k, sum(s.scores.size for s in slices))
  return _together(list(slices), counts.of(k))


def ordinal(x: jax.Array) -> jax.Array:
  """Unsigned integers that order as floats do; NaN is 0, below -inf.

  Positive floats order as their bits do, negative ones in reverse. Only bits are
  compared, so subnormal values stay distinct even where the machine's arithmetic
  flushes them to zero.

  Args:
    x: floating array.

  Returns:
    Unsigned integers of the same width and shape.
  """
  bits = jnp.finfo(x.dtype).bits
  unsigned = jnp.dtype(f'uint{bits}')
  sign = np.asarray(1 << (bits - 1), unsigned)
  u = lax.bitcast_convert_type(x, unsigned)
  # The sign bit alone is -0, which must tie with 0.
  u = jnp.where(u == sign, jnp.zeros_like(u), u)
  # Flipping all bits of negative floats reverses their order; setting the top bit
  # of the others puts them above.
  u = jnp.where(u >= sign, ~u, u | sign)
  return jnp.where(jnp.isnan(x), jnp.zeros_like(u), u)


@functools.partial(jax.jit, static_argnames='axes')
def _top_k(scores, k, axes):
  return _kept(ordinal(scores), k, axes)


def _kept(key, k, axes):
  """The k largest keys of each slice."""
  if math.prod(key.shape[a] for a in axes) < 2**31:
    k = counts.narrow(k)
  t = threshold(key, k, axes)
  # Keys equal to the threshold fill what is missing, lowest indices first.
  above = key > t
  missing = k - counts.count(above, axes)
  return above | _first(key == t, missing, axes)


def threshold(key: jax.Array, k: Number, axes: tuple[int, ...]) -> jax.Array:
  """The largest t with count(key >= t) >= k in each slice, with size 1 on `axes`."""
  shape = [1 if a in axes else n for a, n in enumerate(key.shape)]
  return largest(key.dtype, shape, lambda t: counts.count(key >= t, axes) >= k)


def largest(
  dtype: jnp.dtype, shape: Sequence[int], enough: Callable
) -> jax.Array:
  """The largest t that is enough, of all below which are, from its highest bit down.

  Args:
    dtype: an unsigned integer.
    shape: of t, each entry of which is found by itself.
    enough: t -> bool, of its shape; true at 0, or taken to be.

  >>> int(largest(jnp.dtype('uint8'), (), lambda t: t <= 9))
  9
  """
  bits = dtype.itemsize * 8

  # A bit stays set if enough keys reach the threshold with it; lower bits only
  # raise the threshold further, so no bit has to be taken back.
  def one_bit(i, t):
    higher = t | (jnp.ones((), dtype) << jnp.asarray(bits - 1 - i, dtype))
    return jnp.where(enough(higher), higher, t)

  return lax.fori_loop(0, bits, one_bit, jnp.zeros(shape, dtype))


def shares(number: Callable, dtype: jnp.dtype, k: Number) -> list[Number]:
  """How many each slice keeps where one threshold keeps `k` of all.

  Args:
    number: threshold -> [how many of each slice reach it, for each array]: counts,
      or int32 where all of them are less than 2^31. The higher the threshold, the
      fewer; at 0 they are k at least.
    dtype: of the threshold, an unsigned integer.
    k: how many of all.

  Returns:
    A number for each slice of each array. Slices that reach the threshold with several of equal
    rank are filled in their order.
  """

  def enough(t):
    return sum(counts.total(n) for n in number(t)) >= k

  t = largest(dtype, (), enough)
  top = jnp.asarray(jnp.iinfo(dtype).max, dtype)
  above = number(t + jnp.where(t < top, 1, 0).astype(dtype))
  kept, missing = [], k - sum(counts.total(n) for n in above)
  for least, most in zip(above, number(t), strict=True):
    given = _shared(most - least, missing)
    missing -= counts.total(given)
    kept.append(least + given)
  return kept


def _together(slices, k):
  axes = tuple(s.axes for s in slices)
  bounds = [(counts.of(s.least), counts.of(s.most)) for s in slices]
  return _choose([s.scores for s in slices], bounds, k, axes)


@functools.partial(jax.jit, static_argnames='axes')
def _choose(scores, bounds, k, axes):
  keys = [ordinal(s) for s in scores]
  wide = sum(key.size for key in keys) >= 2**31
  form = counts.of if wide else counts.narrow
  bounds = [tuple(map(form, b)) for b in bounds]

  def number(t):
    return [
      counts.clip(form(counts.count(key >= t, a)), *b)
      for key, a, b in zip(keys, axes, bounds, strict=True)
    ]

  kept = shares(number, keys[0].dtype, form(k))
  return [_kept(key, n, a) for key, n, a in zip(keys, kept, axes, strict=True)]


def _shared(room, missing):
  """What each entry of `room` gets of `missing`, the first before the next."""
  shape = room.shape
  if math.prod(shape) == 1:
    return counts.clip(missing, 0, room)
  order = _index(shape, tuple(range(len(shape))))

  def first(n):
    return counts.where(order < n.astype(jnp.int32), room, 0)

  def fits(n):
    return (counts.total(first(n)) <= missing) & (n <= order.size)

  # The first so many get all that they have room for, and the next one the rest.
  full = largest(jnp.dtype(jnp.uint32), (), fits).astype(jnp.int32)
  rest = missing - counts.total(first(full))
  return first(full) + counts.where(order == full, rest, 0)


def _first(tied, missing, axes):
  """The first `missing` of those tied in each slice, in row-major order."""
  inner, outer = counts.split(tied.shape, axes)
  if not outer:
    index = _index(tied.shape, inner)
    return tied & (index < _bound(tied, index, missing, axes))
  # An index of all is no int32: whole rows first, then a part of the next one.
  row, column = _index(tied.shape, outer), _index(tied.shape, inner)
  last = _bound(tied, row, missing, axes) - 1
  whole, part = tied & (row < last), tied & (row == last)
  missing -= counts.count(whole, axes)
  return whole | (part & (column < _bound(part, column, missing, axes)))


def _bound(tied, index, missing, axes):
  """The least b such that `missing` of the tied have an index below b."""
  n = min(math.prod(index.shape[a] for a in axes), 2**31 - 1)

  def halve(bounds):
    low, high = bounds
    middle = low + (high - low) // 2
    enough = counts.count(tied & (index < middle), axes) >= missing
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  # Usually all tied keys are wanted, and the loop ends before its first turn.
  all_wanted = missing >= counts.count(tied, axes)
  low = jnp.where(all_wanted, n, 0).astype(jnp.int32)
  bounds = (low, jnp.full_like(low, n))
  return lax.while_loop(lambda b: (b[0] < b[1]).any(), halve, bounds)[1]


def _index(shape, axes):
  """Row-major indices over some axes, with size 1 on the others."""
  # Built in the shape of the scores, without a reshape, so that indices can be
  # sharded as the scores are. The stride of the last axis is 1.
  index, stride = jnp.zeros(shape, jnp.int32), 1
  for axis in reversed(axes):
    index += stride * lax.broadcasted_iota(jnp.int32, shape, axis)
    stride *= shape[axis]
  return index


def _check(scores, k, n):
  for s in scores:
    if not jnp.issubdtype(s.dtype, jnp.floating):
      raise ValueError(f'Scores are {s.dtype}; give floating ones.')
  if len({s.dtype for s in scores}) != 1:
    raise ValueError(
      f'Scores ranked together have one dtype, not {[s.dtype for s in scores]}.'
      ' Cast them to float32.'
    )
  if isinstance(k, (int, np.integer)) and not 0 <= k <= n:
    raise ValueError(f'k={k} of {n} scores; 0 <= k <= {n} is expected.')
  refuse_nan(scores)


def refuse_nan(scores: Sequence[jax.Array]) -> None:
  """Raises if a score is NaN and known; traced scores pass."""
  bad = sum(jnp.isnan(s).sum() for s in scores)
  # The count is tested, not the scores: under jit it is traced even when they are
  # constants.
  if isinstance(bad, jax.core.Tracer):
    return
  if bad:
    raise ValueError(
      f'{int(bad)} scores are NaN; they have no rank. Find where the weights went'
      ' wrong, or give them a score, as with jnp.nan_to_num.'
    )
