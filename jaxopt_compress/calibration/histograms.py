"""Histograms that merge exactly, and the ranges that are read from them.

    bin i counts  i * 2^e <= x < (i + 1) * 2^e,   -bins / 2 <= i < bins / 2

Bins are a power of two wide and double when a value falls outside, so the bins of
a wider histogram are unions of those of a narrower one: the histogram of some data
does not depend on its order or on how it was split. Zeros do not count: every range
holds them exactly, and a layer that meets little else has the range of the rest.
Reading a range is done in numpy, once the counts are there; of nothing but zeros it
is (0, 0), and (nan, nan) where values were not finite.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import statistics
from jaxopt_compress.quantization import spec as spec_lib

_FLOAT = np.finfo(np.float32)
# Exponent of the first bins. Smaller numbers are subnormal, zeros to XLA on CPUs.
_LEAST = int(_FLOAT.minexp)


class Histogram(NamedTuple):
  """Counts of values other than zero.

  Attributes:
    counts: [bins] int32, the last 16 bits of how many there are.
    carried: [bins] int32, the others.
    exponent: int32, bins are 2^exponent wide.
    bad: int32, how many values were not finite.
  """

  counts: jax.Array
  carried: jax.Array
  exponent: jax.Array
  bad: jax.Array


def histogram(bins: int = 4096) -> statistics.Statistic:
  """The histogram of all entries that are not zero.

  Args:
    bins: an even number; the wider half may be empty, so at least a quarter of
      them resolve the data.
  """

  def add(s, x, mask):
    mask = jnp.broadcast_to(mask[:, None], x.shape)
    bad = jnp.sum(mask & ~jnp.isfinite(x), dtype=jnp.int32)
    finite = jnp.isfinite(x) & (jnp.abs(x) >= _FLOAT.tiny) & mask
    largest = jnp.max(jnp.where(finite, jnp.abs(x), 0), initial=0)
    # A width of 2^e makes two histograms mergeable without loss: the finer one's bins
    # lie whole in those of the coarser. The smallest e with largest < bins / 2 * 2^e.
    _, e = jnp.frexp(largest)
    needed = jnp.where(largest > 0, e - (bins // 2).bit_length() + 1, _LEAST)
    exponent = jnp.maximum(needed.astype(jnp.int32), _LEAST)
    index = jnp.floor(jnp.ldexp(jnp.where(finite, x, 0), -exponent))
    index = index.astype(jnp.int32) + bins // 2
    counts = jnp.zeros((bins,), jnp.int32)
    counts = counts.at[index.ravel()].add(finite.ravel().astype(jnp.int32))
    return merge(s, _carried(Histogram(counts, 0 * counts, exponent, bad)))

  def at(s, exponent):
    shift = jnp.minimum(exponent - s.exponent, 31)
    # Bins are counted from zero in the middle; an arithmetic shift rounds down, also
    # below zero, as the floor that made them did.
    index = (jnp.arange(bins) - bins // 2) >> shift

    def move(n):
      return jnp.zeros_like(n).at[index + bins // 2].add(n)

    return Histogram(move(s.counts), move(s.carried), exponent, s.bad)

  def merge(a, b):
    exponent = jnp.maximum(a.exponent, b.exponent)
    a, b = at(a, exponent), at(b, exponent)
    counts, carried = a.counts + b.counts, a.carried + b.carried
    return _carried(Histogram(counts, carried, exponent, a.bad + b.bad))

  def all_reduce(s, axes):
    wide = at(s, lax.pmax(s.exponent, axes))
    counts, carried, bad = lax.psum((wide.counts, wide.carried, s.bad), axes)
    return _carried(Histogram(counts, carried, wide.exponent, bad))

  return statistics.Statistic(
    init=lambda k: Histogram(
      jnp.zeros((bins,), jnp.int32),
      jnp.zeros((bins,), jnp.int32),
      jnp.int32(_LEAST),
      jnp.int32(0),
    ),
    add=add,
    merge=merge,
    all_reduce=all_reduce,
    per='tensor',
  )


def _carried(s: Histogram) -> Histogram:
  """The same with 16 bits in `counts`: sums of 4096 bins twice fit in 32."""
  return s._replace(
    counts=s.counts & 0xFFFF, carried=s.carried + (s.counts >> 16)
  )


def _bins(s: Histogram) -> tuple[np.ndarray, np.ndarray]:
  """Edges [bins + 1] and counts [bins], float64."""
  counts = np.asarray(s.counts, np.float64) + 2.0**16 * np.asarray(s.carried)
  n = len(counts)
  edges = np.ldexp(np.arange(n + 1) - n / 2, int(s.exponent))
  # The last bins of the largest numbers end beyond them.
  return np.clip(edges, _FLOAT.min, _FLOAT.max), counts


def _no_range(s: Histogram) -> tuple[float, float] | None:
  """What is read where values have no range; None where they have one."""
  if s.bad:
    return np.nan, np.nan
  return None if _bins(s)[1].any() else (0.0, 0.0)


def percentile(s: Histogram, percent: float, symmetric: bool):
  """(low, high), to a bin: the part of the range that holds `percent`."""
  if none := _no_range(s):
    return none
  edges, counts = _bins(s)
  if symmetric:
    reach, folded = _folded(s)
    high = _quantile(reach, folded, percent / 100)
    return -high, high
  rest = (1 - percent / 100) / 2
  total = np.cumsum(counts)
  low = edges[np.searchsorted(total, rest * total[-1], side='right')]
  return low, _quantile(edges[1:], counts, 1 - rest)


def _quantile(uppers, counts, fraction):
  total = np.cumsum(counts)
  # A hair less, so that a fraction of all is reached in spite of rounding.
  return uppers[np.searchsorted(total, fraction * total[-1] * (1 - 1e-12))]


def _folded(s: Histogram) -> tuple[np.ndarray, np.ndarray]:
  """Upper edges and counts of the magnitudes."""
  edges, counts = _bins(s)
  half = len(counts) // 2
  return edges[half + 1 :], counts[half:] + counts[:half][::-1]


def _span(s: Histogram) -> tuple[float, float]:
  """The outer edges of the bins that are not empty, with zero between them."""
  edges, counts = _bins(s)
  (filled,) = np.nonzero(counts)
  return min(edges[filled[0]], 0.0), max(edges[filled[-1] + 1], 0.0)


def least_squares(s: Histogram, spec: spec_lib.Spec, steps: int = 100):
  """The range, of `steps` shrunk ones, of least squared rounding error."""
  if none := _no_range(s):
    return none
  edges, counts = _bins(s)
  centers = (edges[1:] + edges[:-1]) / 2
  low, high = _span(s)
  if spec.symmetric:
    low, high = -max(-low, high), max(-low, high)
  best = (np.inf, low, high)
  for shrink in 1 - np.arange(steps) / steps:
    error = _squared_error(centers, counts, shrink * low, shrink * high, spec)
    if error < best[0]:
      best = (error, shrink * low, shrink * high)
  return best[1:]


def _squared_error(x, counts, low, high, spec):
  fmt = spec.numbers
  if high <= low:
    return np.inf
  scale = (high - low) / 2 / fmt.bound
  zero = 0.0
  if not spec.symmetric:
    zero = (fmt.highest + fmt.lowest) / 2 - (high + low) / 2 / scale
    zero = np.round(zero) if fmt.integer and fmt.bits > 2 else zero
  numbers = np.asarray(fmt.numbers(fmt.round(jnp.float32(x / scale + zero))))
  x_hat = (numbers.astype(np.float64) - zero) * scale
  return float(np.sum(counts * np.square(x_hat - x)))


def least_divergence(s: Histogram, spec: spec_lib.Spec):
  """The clip whose quantised histogram is nearest the clipped one.

  For each number of bins kept, P is the kept histogram, what is cut added to its
  last bin; Q is P without that, its bins joined to as many as the format has
  magnitudes, and spread evenly again over those that are not empty. The clip of
  least KL(P || Q) is taken, where Q stays smaller than P by what is cut: a clip that
  cuts nearly all is then not the best for having little left to get wrong. Migacz
  2017, 8-bit Inference with TensorRT, GTC; with the first bin as full as the second,
  as in ModelOpt.
  """
  if none := _no_range(s):
    return none
  uppers, counts = _folded(s)
  # What is nearly zero, a spike behind many activations, suits any clip.
  counts[0] = counts[1]
  levels = 2 ** (spec.numbers.bits - 1)
  last = int(np.nonzero(counts)[0][-1]) + 1
  best = (np.inf, uppers[last - 1])
  for kept in range(min(levels, last), last + 1):
    divergence = _divergence(counts, kept, levels)
    if divergence < best[0]:
      best = (divergence, uppers[kept - 1])
  low, high = _span(s)
  return max(low, -best[1]), min(high, best[1])


def _divergence(counts, kept, levels):
  p = counts[:kept].copy()
  # Neighbouring bins share a level, as evenly as whole numbers allow.
  joined = np.minimum(np.arange(kept) * levels // kept, levels - 1)
  filled = (p > 0).astype(np.float64)
  total = np.bincount(joined, p, levels)
  share = np.bincount(joined, filled, levels)
  q = (total / np.maximum(share, 1))[joined] * filled
  p[-1] += counts[kept:].sum()
  if q.sum() == 0 or (p[q == 0] > 0).any():
    return np.inf
  p, q = p / p.sum(), q / p.sum()
  some = p > 0
  apart = np.sum(p[some] * np.log(p[some] / q[some]))
  # Of measures that sum to 1 and to what is left, as q lacks what is cut.
  return float(apart - 1 + q.sum())
