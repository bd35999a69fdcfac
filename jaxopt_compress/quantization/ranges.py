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

from jaxopt_compress.analysis import observe as observe_lib
from jaxopt_compress.analysis import statistics
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import histograms
from jaxopt_compress.quantization import scales
from jaxopt_compress.quantization import schemes
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
    decay: how much of the average a batch leaves.
  """
  ends = statistics.minmax('tensor')

  def add(s, x, mask):
    low, high = ends.add(ends.init(0), x, mask)
    some = jnp.any(mask)
    keep = lambda x: jnp.where(some, x, 0)
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
  """The range that holds `percent` of the entries."""
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
    apply: a function of (params, x).
    params: its parameters.
    rules: those of `jc.quantize`; leaves whose scheme has static activations are
      observed.
    batches: inputs x, one at a time.
    uses: what `jc.uses(apply)(params, x)` returned.
    method: a `Method`, or the name of one: 'absmax', 'minmax', 'ema',
      'percentile', 'mse', 'entropy'.

  Returns:
    {path: (scale, zero)}, each of the rank of the weight and 1 on all but its
    stacked axes; zero None for symmetric activations.

  Raises:
    ValueError: no batches, nothing static, a weight, layer or expert that saw no
      data, or values that are not finite.
  """
  if isinstance(method, str):
    spec_lib.one_of('method', method, tuple(METHODS))
    method = METHODS[method]()
  chosen = _static(rules, params)
  if not chosen:
    raise ValueError(
      'No rule has static activations, so there is nothing to calibrate. Say'
      " static in the scheme: 'int8, int8 tensor static', or jc.FP8."
    )
  found = {re.escape(path): method.statistic for path in chosen}
  observed = jax.jit(observe_lib.observe(apply, found))
  stats = {}
  for x in batches:
    stats = observe_lib.merge_stats(found, stats, observed(params, x)[1])
  if not stats:
    raise ValueError('There are no batches to calibrate on.')
  observe_lib.check_seen(stats)
  leaves = dict(rules_lib.named_leaves(params))
  return {
    path: _parameters(path, leaves[path], stats[path], s.act, uses, method)
    for path, s in chosen.items()
  }


def _static(rules, params):
  return {
    path: s
    for path, s in schemes.by_leaf(rules, params).items()
    if s is not None and s.act is not None and s.act.static
  }


def placeholders(
  params: Any, rules: Sequence[tuple[str, Any]], uses: dict | None = None
) -> dict[str, tuple[jax.Array, jax.Array | None]]:
  """Ranges of ones, of the shapes and types that `calibrate` gives; may be {}.

  What is built or restored before there is data has these in their place.
  """
  leaves = dict(rules_lib.named_leaves(params))

  def one(path, act):
    leaf = leaves[path]
    _, stacked, _ = uses_lib.axes(path, leaf, uses)
    n = leaf.ndim
    scale = jnp.ones(
      [leaf.shape[a] if a in stacked else 1 for a in range(-n, 0)]
    )
    if act.symmetric:
      return scale, None
    return scale, scales.zero_point(scale, scale, act)

  return {p: one(p, s.act) for p, s in _static(rules, params).items()}


def _parameters(path, leaf, seen, act, uses, method):
  """Scale and zero point of each stacked weight."""
  lead = seen.count.shape
  shape = stack_shape(path, leaf, lead, uses)
  ends = []
  for index in np.ndindex(*lead):
    state = jax.tree.map(lambda x, i=index: np.asarray(x)[i], seen.state)
    low, high = method.read(state, act)
    if not np.isfinite([low, high]).all():
      raise ValueError(
        f'{path} met values that are not finite: its range is [{low}, {high}].'
        ' Look for where the network overflows on this data.'
      )
    if low == high == 0:
      raise ValueError(
        f'{path} met only zeros, so it has no range. Calibrate on other data, or'
        ' measure ranges at run time: leave out "static".'
      )
    ends.append((low, high))
  low, high = (
    jnp.asarray(np.float32(x).reshape(shape)) for x in zip(*ends, strict=True)
  )
  return of_ends(low, high, act)


def stack_shape(path, leaf, lead, uses) -> list[int]:
  """The shape of ranges that were observed in stacks of shape `lead`."""
  _, stacked, _ = uses_lib.axes(path, leaf, uses)
  shape = [leaf.shape[a] if a in stacked else 1 for a in range(-leaf.ndim, 0)]
  if not lead:  # slices that are met one by one share a range
    shape = [1] * leaf.ndim
  if [n for n in shape if n > 1] != [n for n in lead if n > 1]:
    raise ValueError(
      f'{path}, shape {leaf.shape}, was observed in stacks of {lead}, which are'
      f' not its stacked axes {stacked}. Calibrate with the uses of the same'
      ' function.'
    )
  return shape


def of_ends(
  low: jax.Array, high: jax.Array, act: spec_lib.Spec
) -> tuple[jax.Array, jax.Array | None]:
  """(scale, zero) of the ranges [low, high], made to contain zero."""
  low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
  half = np.float32(0.5)
  reach = jnp.maximum(-low, high) if act.symmetric else (high - low) * half
  scale = scales.stored(reach, act, (), reach.shape).scale.astype(jnp.float32)
  if act.symmetric:
    return scale, None
  return scale, scales.zero_point((high + low) * half, scale, act)


def ends_of(
  scale: jax.Array, zero: jax.Array | None, act: spec_lib.Spec
) -> tuple[jax.Array, jax.Array]:
  """The range [low, high] that a scale and a zero point make."""
  fmt, center = act.numbers, 0.0
  if zero is not None:
    center = ((fmt.highest + fmt.lowest) / 2 - zero.astype(jnp.float32)) * scale
  return center - fmt.bound * scale, center + fmt.bound * scale


def follow(
  ends: tuple[jax.Array, jax.Array], seen: observe_lib.Observed, decay: float
) -> tuple[jax.Array, jax.Array]:
  """Ranges a step later: x <- decay x + (1 - decay) of what the step met.

  Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.1.

  Args:
    ends: (low, high), of the shape `stack_shape`.
    seen: `statistics.minmax('tensor')` of the step. A layer or an expert that met
      nothing keeps its range.
    decay: how much of the old is left.
  """

  def one(old, new):
    new = decay * old + (1 - decay) * jnp.reshape(new, old.shape)
    return jnp.where(jnp.reshape(seen.count, old.shape) > 0, new, old)

  return one(ends[0], seen.state.low), one(ends[1], seen.state.high)
