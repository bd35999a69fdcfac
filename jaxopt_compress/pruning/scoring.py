"""The scores of the leaves of one rule, from weights and what else a score takes.

    score(w, gradient)       gradient=grads           a tree of the form of the parameters
    score(w, input_squares)  input_squares=stats      what `jc.observe` saw, {path: Observed}
    score(w, key)            key=jax.random.key(0)    a key, of which each leaf gets its own

A score says by the names of its parameters what it takes, and callers give it by these
names.
"""

from collections.abc import Iterable
import functools
import math
import re
from typing import Any
import zlib

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.analysis import watch
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import scores as scores_lib
from jaxopt_compress.pruning import select
from jaxopt_compress.pruning import spec as spec_lib

Leaves = dict[str, Any]


def by_path(others: dict[str, Any]) -> dict[str, Any]:
  """`{name: {path: leaf}}` of trees; keys stay keys.

  >>> by_path({'gradient': {'a': {'w': 1}}})
  {'gradient': {'a/w': 1}}
  """
  return {
    name: x if name == 'key' else dict(rules_lib.named_leaves(x, _is_one))
    for name, x in others.items()
  }


def check_names(specs: Iterable[spec_lib.Sparsity], names: Iterable[str]):
  """Raises a ValueError for what no score takes."""
  taken = sorted({name for spec in specs for name in spec.inputs()})
  for name in names:
    if name not in taken:
      raise ValueError(
        f'{name}= is given, and the scores of these rules take'
        f' {taken or "weights alone"}.{choices.guess(name, taken)}'
      )


def scores(
  spec: spec_lib.Sparsity,
  leaves: Leaves,
  axes: dict[str, uses_lib.Axes],
  others: dict[str, Any],
) -> dict[str, jax.Array]:
  """A score for each weight of each leaf.

  Args:
    spec: whose score it is.
    leaves: `{path: leaf}`.
    axes: what their axes are.
    others: as `by_path` gives them.

  Returns:
    `{path: score}`; of 'taylor' and 'fisher', in a unit of their own.

  Raises:
    ValueError: a leaf is not floating or has NaN, something that the score takes is
      not given, or what it gives is not of the shape of the leaf.

  >>> import jax.numpy as jnp
  >>> spec = spec_lib.Sparsity(0.5, score='first_order')
  >>> given = by_path({'gradient': {'w': jnp.array([1., 2.])}})
  >>> scores(spec, {'w': jnp.array([3., 1.])}, {'w': None}, given)['w'].tolist()
  [3.0, 2.0]
  """
  others = _in_unit(spec, leaves, others)
  found = {
    path: _of_leaf(path, x, spec, axes[path], others)
    for path, x in leaves.items()
  }
  positive = [
    jnp.min(jnp.where(s > 0, s, jnp.inf), initial=jnp.inf)
    for s in found.values()
  ]
  least = functools.reduce(jnp.minimum, positive, jnp.inf)
  return {path: settle(s, leaves[path], least) for path, s in found.items()}


def settle(
  scores: jax.Array, x: Any, least: float | jax.Array = jnp.inf
) -> jax.Array:
  """Scores of which those that are 0 are ranked among themselves by magnitude.

  They stay below `least`, the least positive score of all leaves.

  A soft threshold takes all below it apart, and a dead unit gives all its weights
  the gradient 0: the larger of them may still be worth more.
  """
  if jnp.finfo(scores.dtype).bits < 32:
    return scores
  w = jnp.abs(array.materialize(x)).astype(scores.dtype)
  w = jnp.where(jnp.isnan(w), 1.0, jnp.minimum(w, jnp.finfo(w.dtype).max))
  # A power of two, so that no two magnitudes become one: w < 2^top, 2^low <= least.
  low = jnp.where(jnp.isinf(least), 0, jnp.frexp(least)[1] - 1)
  top = jnp.frexp(w.max(initial=0))[1]
  tiny = jnp.ldexp(w, jnp.minimum(low - 1 - top, -100))
  return jnp.where(scores == 0, tiny, scores)


def _in_unit(spec, leaves, others):
  """Gradients near 1: the squares of small ones would be 0.

  The unit is that of all leaves, and no rank depends on it. Scores that are added up
  over steps keep theirs.
  """
  if spec.function('score') not in scores_lib.SQUARES or spec.memory:
    return others
  for name in set(spec.inputs()) & set(others):
    given = {
      path: jnp.asarray(array.materialize(others[name][path]))
      for path in leaves
      if path in others[name]
    }
    given = {p: g.astype(_wide(g)) for p, g in given.items()}
    sizes = [jnp.abs(g).max(initial=0) for g in given.values()]
    largest = functools.reduce(jnp.maximum, sizes, 0.0)
    power = jnp.where(jnp.isfinite(largest), -jnp.frexp(largest)[1], 0)
    others = others | {name: {p: jnp.ldexp(g, power) for p, g in given.items()}}
  return others


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _of_leaf(path, x, spec, axes, others):
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'{path} is {x.dtype}; only floating leaves are pruned. Put'
      f' (r"{re.escape(path)}", None) before the rule that takes it.'
    )
  w = array.materialize(x)
  # The score of NaN is NaN, which would be reported without the leaf's path.
  _refuse_nan(path, w, '')
  # Under jit it is not known, and stays: behind a mask nobody would see it.
  w = jnp.nan_to_num(w, nan=jnp.inf, posinf=jnp.inf, neginf=-jnp.inf)
  if spec.function('score') not in scores_lib.EXACT:
    w = w.astype(_wide(w))
  given = [_given(path, w, name, axes, others) for name in spec.inputs()]
  found = spec.call('score', w, *given)
  if found.shape != w.shape:
    raise ValueError(
      f'{path}: the score {spec.score!r} gave shape {found.shape}; a number for'
      f' each weight, {w.shape}, is expected.'
    )
  _refuse_nan(path, found, f' of {spec.score!r}')
  return found


def _refuse_nan(path, x, of):
  try:
    select.refuse_nan([x])
  except ValueError as e:
    raise ValueError(f'{path}{of}: {e}') from e


def _given(path, w, name, axes, others):
  """What a score takes besides, for one leaf."""
  if name not in others:
    raise ValueError(
      f'A score takes {name!r} beside the weights: pass {name}=, '
      + ('a PRNG key.' if name == 'key' else 'a tree of the form of these.')
    )
  if name == 'key':
    return jax.random.fold_in(others[name], zlib.crc32(path.encode()))
  if path not in others[name]:
    raise ValueError(
      f'{name}= has nothing for {path}, but for {list(others[name])[:8]}.'
      f'{choices.guess(path, others[name])}'
    )
  value = others[name][path]
  if isinstance(value, watch.Observed):
    return _of_weights(path, w, value.state, axes)
  value = jnp.asarray(array.materialize(value))
  ones = (1,) * (w.ndim - value.ndim) + value.shape
  if len(ones) > w.ndim or any(
    n not in (1, m) for n, m in zip(ones, w.shape, strict=True)
  ):
    raise ValueError(
      f'{name}= of {path} has shape {value.shape}; that of the leaf, {w.shape},'
      ' is expected.'
    )
  return value.astype(w.dtype)


def _of_weights(path, w, state, axes):
  """What each weight met, of a statistic [layers..., contracted entries]."""
  ndim = w.ndim
  stacked, contracted, free = (
    [a % ndim for a in sorted(g)]
    for g in (axes.stacked, axes.contracted, axes.free)
  )
  layers, entries = (
    tuple(w.shape[a] for a in g) for g in (stacked, contracted)
  )
  state = jnp.asarray(state)
  # What was sliced by indexing is observed as one: all layers have the same.
  lead = layers if state.ndim > 1 else (1,) * len(stacked)
  shape = (*lead, *entries, *(1,) * len(free))
  if state.size != math.prod(shape):
    raise ValueError(
      f'{path}: a statistic of shape {state.shape}, and the leaf, {w.shape}, has'
      f' {entries} contracted entries in {layers} layers. Observe'
      ' with jc.statistics.sum_squares(), and pass the same uses.'
    )
  order = stacked + contracted + free
  return state.reshape(shape).transpose([order.index(a) for a in range(ndim)])


def _is_one(x) -> bool:
  return array.is_compressed(x) or isinstance(x, watch.Observed)
