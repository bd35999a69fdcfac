"""The exact k largest of many scores, by bisection on their bits.

    key(x)   an unsigned integer that orders as x does
    t        the largest key with  count(key >= t) >= k      (one bit at a time)
    kept     key > t, and of those with key = t as many as are missing, the
             lowest indices first

Nothing is sorted and nothing is gathered: each of the 32 steps (16 for bfloat16)
compares all keys with one threshold and counts. On sharded scores that costs one
scalar all-reduce a step, where sorting would move the whole array to every device.

Many arrays can be ranked together, as if they were concatenated.
"""

from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def top_k_mask(scores: jax.Array, k: int | jax.Array) -> jax.Array:
  """True at the `k` largest scores; of equal ones, those of the lowest index.

  Args:
    scores: floating array of any shape and dtype. -0 equals 0. NaN ranks below
      -inf, so that it never wins against a number.
    k: how many, 0 <= k <= scores.size; may be traced.

  Returns:
    Boolean array of the shape of `scores`, True exactly `k` times.

  Raises:
    ValueError: not floating, k out of range, too many scores to count; or, where
      the values are known (not under jit), a score that is NaN.

  >>> top_k_mask(jnp.array([1., 3., 2., 3.]), 3).tolist()
  [False, True, True, True]
  >>> top_k_mask(jnp.array([5., 5., 5.]), 2).tolist()
  [True, True, False]
  """
  return top_k_masks([scores], k)[0]


def top_k_masks(
  scores: Sequence[jax.Array], k: int | jax.Array
) -> list[jax.Array]:
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
  _check(scores, k)
  return _top_k_masks(scores, jnp.asarray(k, jnp.int32))


def portion(n: int | jax.Array, fraction: float | jax.Array) -> int | jax.Array:
  """round(fraction * n), halves to even; exactly n at fraction 1.

  For plain Python numbers the result is an int, and exact. If either is traced,
  the product is float32, and below 2^24 the result is off by one at most.

  >>> portion(10, 0.29), portion(10, 1.)
  (3, 10)
  """
  if isinstance(n, int) and isinstance(fraction, (int, float)):
    return round(fraction * n)
  fraction = jnp.asarray(fraction, jnp.float32)
  rounded = jnp.round(fraction * n).astype(jnp.int32)
  return jnp.where(fraction >= 1, n, rounded)


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


@jax.jit
def _top_k_masks(scores, k):
  keys = [ordinal(s) for s in scores]
  t = _threshold(keys, k)
  # Keys equal to the threshold fill what is missing, lowest indices first.
  missing = k - _count([key > t for key in keys])
  indices = _indices([key.shape for key in keys])
  tied = [key == t for key in keys]
  end = _index_bound(tied, indices, missing)
  return [
    (key > t) | (tie & (i < end))
    for key, tie, i in zip(keys, tied, indices, strict=True)
  ]


def _threshold(keys, k):
  """The largest t with count(key >= t) >= k, from its highest bit down."""
  dtype = keys[0].dtype
  bits = dtype.itemsize * 8

  # A bit stays set if enough keys reach the threshold with it; lower bits only
  # raise the threshold further, so no bit has to be taken back.
  def one_bit(i, t):
    higher = t | (jnp.ones((), dtype) << jnp.asarray(bits - 1 - i, dtype))
    enough = _count([key >= higher for key in keys]) >= k
    return jnp.where(enough, higher, t)

  return lax.fori_loop(0, bits, one_bit, jnp.zeros((), dtype))


def _index_bound(tied, indices, missing):
  """The least b such that `missing` of the tied have an index below b."""
  n = sum(i.size for i in indices)

  def halve(bounds):
    low, high = bounds
    middle = low + (high - low) // 2
    below = [tie & (i < middle) for tie, i in zip(tied, indices, strict=True)]
    enough = _count(below) >= missing
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  # Usually all tied keys are wanted, and the loop ends before its first turn.
  all_wanted = _count(tied) == missing
  low = jnp.where(all_wanted, n, 0).astype(jnp.int32)
  bounds = (low, jnp.full_like(low, n))
  return lax.while_loop(lambda b: b[0] < b[1], halve, bounds)[1]


def _count(masks):
  return sum(jnp.sum(m, dtype=jnp.int32) for m in masks)


def _indices(shapes):
  """Row-major indices into the arrays as if concatenated."""
  out, begin = [], 0
  for shape in shapes:
    # Built in the shape of the scores, without a reshape, so that indices can be
    # sharded as the scores are. The stride of the last axis is 1.
    index = jnp.full(shape, begin, jnp.int32)
    stride = 1
    for axis in reversed(range(len(shape))):
      index += stride * lax.broadcasted_iota(jnp.int32, shape, axis)
      stride *= shape[axis]
    out.append(index)
    begin += stride
  return out


def _check(scores, k):
  for s in scores:
    if not jnp.issubdtype(s.dtype, jnp.floating):
      raise ValueError(f'Scores are {s.dtype}; give floating ones.')
  if len({s.dtype for s in scores}) != 1:
    raise ValueError(
      f'Scores ranked together have one dtype, not {[s.dtype for s in scores]}.'
      ' Cast them to float32.'
    )
  n = sum(s.size for s in scores)
  if n >= 2**31:
    raise ValueError(
      f'{n} scores are ranked together, more than an int32 counts. Rank leaf by'
      ' leaf.'
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
