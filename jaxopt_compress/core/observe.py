"""What every weight meets: statistics of the other operand of its products.

    out, stats = jc.observe(apply, {r'.*/kernel': jc.gram()})(params, x)

The function runs as it is. A `uses.Probe` follows each weight to its products, and
there the other operand is brought to rows [n, k], k the contracted entries of the
weight in the order of its own axes, and added to the weight's statistic. No layer
needs a hook, and no layer is named.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import math
import re
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.core import uses as uses_lib


class Observed(NamedTuple):
  """A statistic of one weight, and how many rows it saw.

  Leading axes of both are those along which there is one weight after the other:
  layers of a scan, outermost first, then experts.
  """

  count: jax.Array
  state: Any


def observe(fun: Callable, statistics: Any) -> Callable[..., tuple[Any, dict]]:
  """Collects a statistic of what the leaves of the first argument meet.

  Args:
    fun: a function of parameters and further arguments.
    statistics: ordered `(regex, Statistic or None)`, which must cover every
      leaf; or a dict of them, which leaves the rest alone.

  Returns:
    A function of the same arguments that returns `(fun(...), stats)`, stats a
    dict {path: Observed}. Statistics of loops, of several uses and of the devices
    of a `shard_map` are merged; the layers of a scan stay apart.

  Raises:
    ValueError: a chosen leaf reaches no product.

  >>> from jaxopt_compress.core import statistics
  >>> f = lambda p, x: x @ p['w']
  >>> params, x = {'w': jnp.ones((2, 3))}, jnp.array([[1., -5.], [2., 0.]])
  >>> _, stats = observe(f, {'w': statistics.absmax()})(params, x)
  >>> stats['w'].count, stats['w'].state
  (Array(2., dtype=float32), Array([2., 5.], dtype=float32))
  """

  def observed(params, *args, **kwargs):
    # `lift` names an argument that is itself a leaf by its number.
    paths = {p or '0': p for p in _by_leaf(statistics, params)}
    chosen = {
      n: s
      for n, s in zip(paths, _by_leaf(statistics, params).values(), strict=True)
    }
    entries = {}  # how many each leaf contracts, found on the way
    ctx = jaxprs.Context(
      rule_for=None,
      inline=True,
      monoids={
        name: jaxprs.Monoid(
          merge=functools.partial(_merge, s),
          empty=functools.partial(_empty, s, entries, name),
          all_reduce=functools.partial(_all_reduce, s),
        )
        for name, s in chosen.items()
      },
    )
    ctx.rule_for = functools.partial(_rule_for, ctx, chosen, entries)
    probes = rules_lib.map_named(
      lambda path, x: _probe(path, x) if (path or '0') in chosen else x,
      array.materialize(params),
    )
    out = lift.run(ctx, fun, (probes, *args), kwargs)
    missing = [path for name, path in paths.items() if name not in ctx.found]
    if missing:
      raise ValueError(
        f'{missing[0]} meets nothing in a product, so there is nothing to'
        ' observe (an embedding that is only looked up meets indices). Put'
        f' (r"{missing[0]}", None) before the rule that takes it.'
        f' The same holds for {len(missing) - 1} more leaves.'
      )
    return array.materialize(out), {p: ctx.found[n] for n, p in paths.items()}

  return observed


def merge_stats(statistics: Any, a: dict, b: dict) -> dict:
  """The statistics of two calls as those of one.

  Args:
    statistics: as given to `observe`.
    a, b: what two calls returned; an empty dict is no call.

  Example, over batches:

      stats = {}
      for x in batches:
        stats = jc.merge_stats(chosen, stats, observed(params, x)[1])
  """
  if not a or not b:
    return a or b
  pairs = statistics
  if isinstance(statistics, Mapping):
    pairs = statistics.items()

  def of(path):
    return next(s for pattern, s in pairs if re.fullmatch(pattern, path))

  return {path: _merge(of(path), a[path], b[path]) for path in a}


def check_seen(stats: dict) -> None:
  """Raises ValueError where a weight, a layer or an expert saw no data."""
  for path, seen in stats.items():
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


def _probe(path, x):
  return dataclasses.replace(uses_lib.probe(x), path=path or '0')


def _merge(statistic, a, b):
  """Merges states, one by one along the leading axes."""
  f = statistic.merge
  for _ in range(a.count.ndim):
    f = jax.vmap(f)
  return Observed(a.count + b.count, f(a.state, b.state))


def _empty(statistic, entries, name, like):
  """The state of no rows, of the shapes of `like`."""
  none = Observed(jnp.zeros(()), statistic.init(entries[name]))
  return jax.tree.map(lambda x, s: jnp.broadcast_to(x, s.shape), none, like)


def _all_reduce(statistic, seen, axes):
  f = lambda s: statistic.all_reduce(s, axes)
  for _ in range(seen.count.ndim):
    f = jax.vmap(f)
  return Observed(lax.psum(seen.count, axes), f(seen.state))


# ------------------------------------------------------------------- products


def _rule_for(ctx, chosen, entries, primitive, leaf_type):
  if leaf_type is not uses_lib.Probe:
    return lift.rule_for(primitive, leaf_type)
  rows = _ROWS.get(primitive.name)
  if rows is None:
    return uses_lib.move_for(primitive)

  def product(*operands, **params):
    for i, probe in enumerate(operands):
      if isinstance(probe, uses_lib.Probe):
        statistic = chosen[probe.path]
        found = rows(probe, i, operands, params, statistic)
        if found is not None:
          entries[probe.path] = found[2]
          ctx.give({probe.path: _state(statistic, *found)})
    return lift.Dense('observed')

  return product


def _state(statistic, x, mask, k) -> Observed:
  """The state of rows [stack..., n, k] that `mask` [stack..., n] admits."""

  def one(x, mask):
    added = statistic.add(statistic.init(k), x, mask)
    return Observed(jnp.sum(mask, dtype=jnp.float32), added)

  for _ in range(x.ndim - 2):
    one = jax.vmap(one)
  return one(x.astype(jnp.float32), mask)


def _ordered(probe, dims):
  """The pieces of some axes of a probe, and their order by axis of the leaf."""
  pieces = [p for i in dims for p in probe.pieces[i]]
  order = sorted(range(len(pieces)), key=lambda j: (pieces[j][0], j))
  return [size for _, size in pieces], order


def _flat(x, n_last, sizes, order):
  """Splits the last axes of `x` into pieces, reorders and joins them."""
  lead = x.shape[: x.ndim - n_last]
  x = x.reshape(*lead, *sizes)
  n = len(lead)
  x = lax.transpose(x, (*range(n), *(n + j for j in order)))
  return x.reshape(*lead, math.prod(sizes))


def _dot_rows(probe, side, operands, params, statistic):
  contracting, batch = params['dimension_numbers']
  x = operands[1 - side]
  mine, other = contracting[side], contracting[1 - side]
  # Experts in the order of the leaf's axes.
  pairs = sorted(
    zip(batch[side], batch[1 - side], strict=True),
    key=lambda p: probe.pieces[p[0]],
  )
  stack = [j for _, j in pairs]
  free = [i for i in range(x.ndim) if i not in (*stack, *other)]
  x = lax.transpose(x, (*stack, *free, *other))
  lead = x.shape[: len(stack)]
  n = math.prod(x.shape[len(stack) : len(stack) + len(free)])
  x = x.reshape(*lead, n, *x.shape[len(stack) + len(free) :])
  x = _flat(x, len(mine), *_ordered(probe, mine))
  return x, jnp.ones(x.shape[:-1], bool), x.shape[-1]


def _conv_rows(probe, side, operands, params, statistic):
  if side != 1 or params['batch_group_count'] != 1:
    return None
  x, numbers = operands[0], params['dimension_numbers']
  groups = params['feature_group_count']
  dims = numbers.rhs_spec[1:]
  k = math.prod(probe.shape[i] for i in dims)
  if statistic.per == 'tensor':
    x = x.reshape(-1, 1)
    return x, jnp.ones(x.shape[0], bool), k
  window = [probe.shape[i] for i in dims[1:]]
  patches = lax.conv_general_dilated_patches(
    x.astype(jnp.float32),
    window,
    params['window_strides'],
    params['padding'],
    lhs_dilation=params['lhs_dilation'],
    rhs_dilation=params['rhs_dilation'],
    dimension_numbers=numbers,
    precision=lax.Precision.HIGHEST,
  )
  patches = jnp.moveaxis(patches, numbers.out_spec[1], -1)
  # Channels major, then the window, as in rhs_spec[1:]; each group is a row.
  rows = patches.reshape(-1, k)
  assert rows.shape[0] * k == patches.size and groups
  rows = _flat(rows, 1, *_ordered(probe, dims))
  return rows, jnp.ones(rows.shape[0], bool), k


def _ragged_rows(probe, side, operands, params, statistic):
  numbers = params['ragged_dot_dimension_numbers']
  contracting, batch = numbers.dot_dimension_numbers
  if side != 1 or any(batch) or len(numbers.lhs_ragged_dimensions) != 1:
    return None
  x, _, group_sizes = operands
  (ragged,) = numbers.lhs_ragged_dimensions
  if ragged in contracting[0]:
    return None
  other = contracting[0]
  free = [i for i in range(x.ndim) if i not in (*other, ragged)]
  x = lax.transpose(x, (ragged, *free, *other))
  rows = x.shape[0]
  x = x.reshape(rows, -1, *(x.shape[1 + len(free) :]))
  x = _flat(x, len(other), *_ordered(probe, contracting[1]))
  ends = jnp.cumsum(group_sizes)
  index = jnp.arange(rows)[None]
  mine = (index >= (ends - group_sizes)[:, None]) & (index < ends[:, None])
  mine = jnp.repeat(mine, x.shape[1], axis=1)
  x = x.reshape(-1, x.shape[-1])
  x = jnp.broadcast_to(x, (len(ends), *x.shape))
  return x, mine, x.shape[-1]


_ROWS = {
  'dot_general': _dot_rows,
  'conv_general_dilated': _conv_rows,
  'ragged_dot_general': _ragged_rows,
}
