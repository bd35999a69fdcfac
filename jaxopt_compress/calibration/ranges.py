"""Ranges of activations, found by calibration: what `jc.observe` collects.

    stats  = jc.observe(apply, statistics)(params, x)        merged over batches
    scale, zero = of a range (low, high), read from a statistic

Every statistic is a monoid, so calibrating in parts, in any order (but for the
moving average) and on many devices gives what all the data gives.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import re
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.analysis import observe as observe_lib
from jaxopt_compress.analysis import statistics
from jaxopt_compress.calibration import histograms
from jaxopt_compress.calibration import known
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import ranges
from jaxopt_compress.quantization import spec as spec_lib


class Average(NamedTuple):
  """An exponential moving average of ranges, as a monoid.

  A run of n batches with decay d acts on what came before as x -> d^n x + sum.

  Attributes:
    low, high: decayed sums.
    weight: decayed number of batches.
    decay: d^n.
  """

  low: jax.Array
  high: jax.Array
  weight: jax.Array
  decay: jax.Array


def moving_average(decay: float = 0.99) -> statistics.Statistic:
  """Moving average of each batch's least and largest entry, without bias.

  Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.1; corrected for
  its start as Adam's moments are. Devices of a `shard_map` see parts of the same
  batch, whose range is theirs together.

  Args:
    decay: how much of the average a batch leaves, in [0, 1].
  """
  if not 0 <= decay <= 1:
    raise ValueError(
      f'decay={decay}: a batch leaves a part of the average, from 0 (the last'
      ' batch alone) to 1 (the mean of all batches).'
    )
  ends = statistics.minmax('tensor')

  def add(s, x, mask):
    low, high = ends.add(ends.init(0), x, mask)
    some = jnp.any(mask)

    def keep(x):
      return jnp.where(some, x, 0)

    batch = Average(
      keep(low), keep(high), keep(1.0), jnp.where(some, decay, 1.0)
    )
    return merge(s, batch)

  def merge(a, b):
    return Average(
      a.low * b.decay + b.low,
      a.high * b.decay + b.high,
      a.weight * b.decay + b.weight,
      a.decay * b.decay,
    )

  return statistics.Statistic(
    init=lambda k: Average(*jnp.zeros((3,)), jnp.ones(())),
    add=add,
    merge=merge,
    all_reduce=lambda s, axes: Average(
      lax.pmin(s.low, axes),
      lax.pmax(s.high, axes),
      lax.pmax(s.weight, axes),
      lax.pmin(s.decay, axes),
    ),
    per='tensor',
  )


class Method(NamedTuple):
  """A way to find a range.

  Attributes:
    statistic: what is collected.
    read: (state of one weight, spec) -> (low, high), numpy scalars.
  """

  statistic: statistics.Statistic
  read: Callable[[Any, spec_lib.Spec], tuple[float, float]]


def absmax() -> Method:
  """The largest magnitude, on both sides."""
  return Method(
    statistics.absmax('tensor'), lambda s, spec: (-float(s), float(s))
  )


def minmax() -> Method:
  """The least and the largest entry."""
  return Method(
    statistics.minmax('tensor'), lambda s, spec: (float(s.low), float(s.high))
  )


def ema(decay: float = 0.99) -> Method:
  """The moving average of the least and the largest entry of each batch."""
  return Method(
    moving_average(decay),
    lambda s, spec: (float(s.low / s.weight), float(s.high / s.weight)),
  )


def percentile(percent: float = 99.99) -> Method:
  """The range that holds `percent` of the entries that are not zero."""
  if not 0 < percent <= 100:
    raise ValueError(
      f'percent={percent} of the entries: give a number above 0 and up to 100,'
      ' 99.99 say.'
    )
  return Method(
    histograms.histogram(),
    lambda s, spec: histograms.percentile(s, percent, spec.symmetric),
  )


def mse() -> Method:
  """The clip of the least squared rounding error."""
  return Method(histograms.histogram(), histograms.least_squares)


def entropy() -> Method:
  """The clip of the least Kullback-Leibler divergence."""
  return Method(histograms.histogram(), histograms.least_divergence)


METHODS = {
  'absmax': absmax,
  'minmax': minmax,
  'ema': ema,
  'percentile': percentile,
  'mse': mse,
  'entropy': entropy,
}


@known.computed
def calibrate(
  apply: Callable,
  params: Any,
  rules: Sequence[tuple[str, Any]],
  batches: Iterable[Any],
  uses: dict | None = None,
  method: Method | str = 'absmax',
) -> dict[str, tuple[jax.Array, jax.Array | None]]:
  """Ranges of static activations, for `jc.quantize(..., ranges=)`.

  Args:
    apply: a function of parameters and the arguments that a batch is.
    params: its parameters.
    rules: those of `jc.quantize`; leaves whose scheme has static activations are
      observed.
    batches: of data, one at a time: a tuple of positional arguments, a dict of
      keyword arguments, or one argument.
    uses: what `jc.uses(apply)(params, x)` returned.
    method: a `Method`, or the name of one: 'absmax', 'minmax', 'ema',
      'percentile', 'mse', 'entropy'.

  Returns:
    {path: (scale, zero)}, each of the rank of the weight and 1 on all but its
    stacked axes; zero None for symmetric activations.

  Raises:
    ValueError: no batches, nothing static, a weight, layer or expert that saw no
      data, values that are not finite, or arrays that are traced.
  """
  if isinstance(method, str):
    choices.one_of('method', method, tuple(METHODS))
    method = METHODS[method]()
  chosen = ranges.static_leaves(rules, params)
  if not chosen:
    raise ValueError(
      'No rule has static activations, so there is nothing to calibrate. Say'
      " static in the scheme: 'int8, int8 tensor static', or jc.FP8."
    )
  found = {re.escape(path): method.statistic for path in chosen}
  observed = batches_lib.jitted(observe_lib.observe(apply, found), params)
  stats = {}
  for batch in batches:
    known.check('calibrate', batch)
    _, met = batches_lib.call(observed, (), batch)
    stats = observe_lib.merge_stats(found, stats, met)
  if not stats:
    raise ValueError('There are no batches to calibrate on.')
  observe_lib.check_seen(stats)
  leaves = dict(rules_lib.named_leaves(params))
  return {
    path: _parameters(path, leaves[path], stats[path], s.act, uses, method)
    for path, s in chosen.items()
  }


def _parameters(path, leaf, seen, act, uses, method):
  """Scale and zero point of each stacked weight."""
  lead = seen.count.shape
  shape = ranges.stack_shape(path, leaf, lead, uses)
  ends = []
  # One range for each layer or expert, in the order in which they are stacked.
  for index in np.ndindex(*lead):
    state = jax.tree.map(lambda x, i=index: np.asarray(x)[i], seen.state)
    low, high = method.read(state, act)
    where = path if not index else f'{path} at {list(index)}'
    if not np.isfinite([low, high]).all():
      raise ValueError(
        f'{where} met values that are not finite: its range is [{low}, {high}].'
        ' Look for where the network overflows on this data.'
      )
    if max(-low, high) < np.finfo(np.float32).tiny:
      raise ValueError(
        f'{where} met only zeros, so it has no range. Calibrate on other data, or'
        ' measure ranges at run time: leave out "static".'
      )
    ends.append((low, high))
  low, high = (
    jnp.asarray(np.float32(x).reshape(shape)) for x in zip(*ends, strict=True)
  )
  return ranges.of_ends(low, high, act)
