"""What every weight meets: statistics of the other operand of its products.

    out, stats = jc.observe(apply, {r'.*/kernel': jc.statistics.gram()})(params, x)

The function runs as it is. A `probes.Probe` follows each weight to its products, and
there the other operand is brought to rows [n, k], k the contracted entries of the
weight in the order of its own axes, and added to the weight's statistic. No layer
needs a hook, and no layer is named.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any

import jax
from jax import lax
import numpy as np

from jaxopt_compress.analysis import probes
from jaxopt_compress.analysis import rows as rows_lib
from jaxopt_compress.analysis import watch
from jaxopt_compress.core import array
from jaxopt_compress.core import context
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib


def observe(fun: Callable, statistics: Any) -> Callable[..., tuple[Any, dict]]:
  """Collects a statistic of what the leaves of the first argument meet.

  All uses of a leaf are merged: the turns of a loop, the devices of a
  `shard_map`, and slices taken by indexing; the layers of a scan and the experts
  of a batched or ragged product stay apart. A leaf that a `shard_map` cuts has the
  statistic of the whole leaf; with `check_vma=False` data must be cut in one way.

  Leaves may be compressed: they compute as under `lift`, so that what is observed is
  what the compressed network does, its rounding of activations included. The result
  can be differentiated; statistics count as constants.

  Args:
    fun: a function of parameters and further arguments.
    statistics: ordered `(regex, Statistic or None)`, which must cover every
      leaf; or a dict of them, which leaves the rest alone.

  Returns:
    A function of the same arguments that returns `(fun(...), stats)`, stats a
    dict {path: Observed}.

  Raises:
    ValueError: a chosen leaf reaches no product, or products of which the
      statistics cannot be those of one leaf: with a part of what it contracts,
      with other axes contracted, or as the image of a convolution.

  >>> import jax.numpy as jnp
  >>> from jaxopt_compress.analysis import statistics
  >>> f = lambda p, x: x @ p['w']
  >>> params, x = {'w': jnp.ones((2, 3))}, jnp.array([[1., -5.], [2., 0.]])
  >>> _, stats = observe(f, {'w': statistics.absmax()})(params, x)
  >>> stats['w'].count, stats['w'].state
  (Array(2., dtype=float32), Array([2., 5.], dtype=float32))
  """

  def observed(params, *args, **kwargs):
    chosen = _by_leaf(statistics, params)
    met = []
    # `lift` names an argument that is itself a leaf by its number.
    watched = {
      path or '0': watch.Watch(path or '0', s) for path, s in chosen.items()
    }
    ctx = lift.context(
      rule_for=None,
      record=met.append,
      inline=True,
      monoids={
        name: context.Monoid(w.merge, w.empty, w.all_reduce)
        for name, w in watched.items()
      },
      placed=probes.placed,
    )
    ctx.rule_for = functools.partial(_rule_for, ctx, watched)
    probed = rules_lib.map_named(
      lambda path, x: probes.probe(x, path or '0') if path in chosen else x,
      params,
    )
    out = lift.run(ctx, fun, (probed, *args), kwargs)
    missing = [path for path in chosen if (path or '0') not in ctx.found]
    if missing:
      raise ValueError(_unseen(missing, met))
    return array.materialize(out), {p: ctx.found[p or '0'] for p in chosen}

  return observed


def merge_stats(statistics: Any, a: dict, b: dict) -> dict:
  """The statistics of two calls as those of one.

  Args:
    statistics: as given to `observe`.
    a, b: what two calls returned; an empty dict is no call.

  Raises:
    ValueError: the calls observed different leaves, or leaves of other shapes.

  Example, over batches:

      observed = jax.jit(jc.observe(apply, chosen))
      stats = {}
      for x in batches:
        stats = jc.analysis.merge_stats(chosen, stats, observed(params, x)[1])
      jc.analysis.check_seen(stats)
  """
  if not a or not b:
    return a or b
  if set(a) != set(b):
    raise ValueError(
      f'Two calls observed different leaves: {sorted(set(a) ^ set(b))} are in'
      ' one of them. Merge statistics of one function and one set of rules.'
    )
  of = _statistic_of(statistics)
  return {
    path: watch.Watch(path, of(path)).merge(a[path], b[path]) for path in a
  }


def _statistic_of(statistics):
  pairs = statistics
  if isinstance(statistics, Mapping):
    pairs = statistics.items()
  return lambda path: next(s for p, s in pairs if re.fullmatch(p, path))


def reduce_stats(statistics: Any, stats: dict, axes: Any) -> dict:
  """The statistics of all devices along mesh axes, each of its part of the data.

  Args:
    statistics: as given to `observe`, where it ran inside a `shard_map` or `pmap`.
    stats: what it returned there.
    axes: names of the axes.
  """
  axes = (axes,) if isinstance(axes, str) else tuple(axes)
  of = _statistic_of(statistics)
  return {
    path: watch.Watch(path, of(path)).all_reduce(seen, axes, True)
    for path, seen in stats.items()
  }


def check_seen(stats: dict) -> None:
  """Raises ValueError where a weight, a layer or an expert saw no data.

  Counts that are traced are not known yet, and pass.
  """
  for path, seen in stats.items():
    if isinstance(seen.count, jax.core.Tracer):
      continue
    count = np.asarray(seen.count)
    if not (count > 0).all():
      where = (
        '' if not count.ndim else f' at {np.argwhere(count == 0).tolist()}'
      )
      raise ValueError(
        f'{path} saw no data{where}: no row reached it while it was observed.'
        ' Observe more examples, or leave this leaf out with'
        f' (r"{path}", None).'
      )


def _by_leaf(statistics, tree):
  if isinstance(statistics, Mapping):
    statistics = [*statistics.items(), (r'.*', None)]
  chosen = rules_lib.match(statistics, tree)
  return {path: s for path, s in chosen.items() if s is not None}


def _unseen(missing, met) -> str:
  path, more = missing[0], len(missing) - 1
  where = sorted(
    {f'{m.primitive} at {m.source}' for m in met if m.path == (path or '0')}
  )
  also = f' The same holds for {more} more leaves.' if more else ''
  leave = (
    f'put (r"{re.escape(path)}", None) before the rule that takes it.{also}'
  )
  if not where:
    return f'{path} meets nothing: the program never reads it; {leave}'
  return (
    f'{path} reaches no product, only {"; ".join(where)}. There is nothing to'
    f' observe: {leave}'
  )


# ------------------------------------------------------------------- products


def _rule_for(ctx, watched, primitive, leaf_type):
  if leaf_type is probes.Probe:
    return functools.partial(_meet, ctx, watched, primitive)
  return lift.rule_for(primitive, leaf_type)


def _meet(ctx, watched, primitive, /, *operands, **params):
  """A probe in an operation: the other operand is observed, or entries move."""
  side = [isinstance(x, probes.Probe) for x in operands].index(True)
  probe = operands[side]
  before, after = operands[:side], operands[side + 1 :]
  rows = rows_lib.ROWS.get(primitive.name)
  move = probes.move_for(primitive)
  out = lift.Dense('observed')
  if rows is not None:
    watching = watched[probe.path]
    before, after = map(_stopped, (before, after))
    found = rows(
      probe, side, [*before, probe, *after], params, watching.statistic
    )
    ctx.give({probe.path: watching.see(probe, found)})
  elif move is not None:
    dense = dataclasses.replace(probe, value=probe.materialize())
    out = move(*before, dense, *after, **params)
  return _computed(primitive, operands, side, params, out)


def _stopped(values):
  # Statistics count as constants.
  return [lax.stop_gradient(x) for x in values]


def _computed(primitive, operands, side, params, out):
  """What a watched leaf's own rule computes, or else `out`."""
  leaf = operands[side].value
  if not array.is_compressed(leaf):
    return out
  rule = lift.rule_for(primitive, type(leaf))
  if rule is None:
    return out
  own = rule(*operands[:side], leaf, *operands[side + 1 :], **params)
  return out if isinstance(own, lift.Dense) else _watched(out, own)


def _watched(out, own):
  """What a leaf's own rule gave, behind the probes that go on watching it."""
  if isinstance(out, lift.Dense):
    return own
  if isinstance(own, (list, tuple)):
    return [_watched(*pair) for pair in zip(out, own, strict=True)]
  return dataclasses.replace(out, value=own)
