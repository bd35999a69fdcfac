"""What is ranked against what: the masks of the leaves that one rule takes.

    'leaf'    each leaf by itself, and each layer of a stacked leaf by itself
    'global'  all weights (or neurons) of all leaves of the rule, and of all their
              layers, against one threshold

One threshold keeps more where scores are larger, and would empty a layer whose weights
are small only because of their scale. So each layer has a floor: its largest scores
stay, a fraction of what it would keep by itself, and one at least.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.pruning import masks as masks_lib
from jaxopt_compress.pruning import select

Leaves = dict[str, jax.Array]


def masks(
  kind: str,
  scope: str,
  scores: Leaves,
  axes: dict[str, uses_lib.Axes],
  *,
  target: float,
  n: int = 0,
  m: int = 0,
  floor: float = 0.0,
  ramp: float | jax.Array = 1.0,
) -> Leaves:
  """Masks of several leaves.

  Args:
    kind: 'unstructured', 'n_m' or 'neurons'. Groups of N:M run along the last
      contracted axis: `in` of a matrix [in, out] and of a convolution [h, w, in,
      out]. A neuron is one index of the free axes.
    scope: 'leaf' or 'global'. A leaf of which no axis is contracted has one threshold
      in any case: what is stacked there may not be layers.
    scores: `{path: score of each weight}`.
    axes: `{path: Axes}`, what the axes of each leaf are.
    target: fraction of zeros (of neurons, for 'neurons').
    n, m: of N:M.
    floor: the fraction of what a layer would keep by itself that it keeps under a
      threshold that it shares, in [0, 1].
    ramp: how far to go towards the final masks, in [0, 1].

  Returns:
    `{path: bool mask}` of the shapes of the scores.

  Raises:
    ValueError: N:M does not fit, or nothing would be left of a layer.
  """
  if scope == 'global':
    return _together(kind, scores, axes, target, floor, ramp)

  def layer_mask(scores, axes):
    if kind == 'n_m':
      # Axes count from the end, so the largest is the last.
      return masks_lib.n_m(scores, n, m, max(axes.contracted), ramp=ramp)
    if kind == 'unstructured':
      _kept(scores.size, target, 'weights')
      return masks_lib.unstructured(scores, target, ramp=ramp)
    _kept(math.prod(scores.shape[a] for a in axes.free), target, 'neurons')
    return masks_lib.neurons(scores, target, axes.free, ramp=ramp)

  out = {}
  for path, s in scores.items():
    try:
      if axes[path].contracted:
        out[path] = per_layer(layer_mask, s, axes[path])
      else:
        out |= _together(kind, {path: s}, axes, target, floor, ramp)
    except ValueError as e:
      raise ValueError(f'{path}: {e}') from e
  return out


def by_place(
  rank: Callable[[Leaves], Leaves], scores: Leaves, masks: Leaves
) -> dict[str, jax.Array]:
  """How many entries of each mask depend on the order of equal scores alone.

  Of equal scores the first stay, so what changes when all is ranked backwards has
  no better reason. Zeros count in a leaf of zeros alone: beside others it changes
  nothing which of them stays.

  Args:
    rank: `{path: scores} -> {path: mask}`, for any order of indices.
    scores: of each leaf.
    masks: `rank(scores)`.

  Returns:
    `{path: number}`.
  """
  back = rank({p: jnp.flip(s) for p, s in reversed(scores.items())})
  return {p: _changed(masks[p], back[p], s) for p, s in scores.items()}


@jax.jit
def _changed(mask, back, scores):
  counts = (scores != 0) | (scores == 0).all()
  return jnp.sum((mask != jnp.flip(back)) & counts)


def per_layer(
  f: Callable[[jax.Array, uses_lib.Axes], jax.Array],
  x: jax.Array,
  axes: uses_lib.Axes,
) -> jax.Array:
  """Maps `f(layer, axes)` over the stacked axes of `x`.

  Args:
    f: of one layer and its axes, with none stacked; keeps the shape.
    x: the stacked leaf.
    axes: what its axes are.

  Returns:
    What `f` returned, stacked as `x` is.
  """
  stacked = sorted(axes.stacked)

  def without_stacked(group):
    # An axis moves nearer to the end by each stacked axis that was behind it.
    return tuple(a + sum(s > a for s in stacked) for a in group)

  layer_axes = uses_lib.Axes(
    without_stacked(axes.contracted), (), without_stacked(axes.free)
  )

  def per_stack(layers):
    return f(layers, layer_axes)

  for _ in stacked:
    per_stack = jax.vmap(per_stack)
  # Stacked axes come to the front, one for each vmap, and go back afterwards.
  front = range(len(stacked))
  layers = jnp.moveaxis(x, stacked, front)
  return jnp.moveaxis(per_stack(layers), front, stacked)


def _kept(n, target, units) -> int:
  """How many of `n` are kept."""
  kept = n - select.portion(n, target)
  if n and not kept:
    raise ValueError(
      f'target={target} leaves none of {n} {units}. Lower it, or leave such leaves'
      ' as they are by a rule with None before this one.'
    )
  return kept


def _together(kind, scores, axes, target, floor, ramp) -> Leaves:
  """Masks by one threshold, above the floors of the layers."""
  ranked = scores
  if kind == 'neurons':
    # A neuron of one layer is not that of another: layers count as neurons do.
    units = {path: axes[path].free + axes[path].stacked for path in scores}
    ranked = {
      path: masks_lib.neuron_scores(s, units[path])
      for path, s in scores.items()
    }
  # Keys are compared bit by bit, so all scores need the same width.
  dtype = jnp.result_type(*ranked.values())
  ranked = {path: s.astype(dtype) for path, s in ranked.items()}
  n = sum(s.size for s in ranked.values())
  kept = _kept(n, target, 'neurons' if kind == 'neurons' else 'weights')
  ranked = _above_floors(ranked, axes, target, floor, kept)
  gone = select.portion(n - kept, ramp)
  chosen = select.top_k_masks(list(ranked.values()), n - gone)
  return {
    path: jnp.broadcast_to(mask, scores[path].shape)
    for path, mask in zip(scores, chosen, strict=True)
  }


def _above_floors(ranked, axes, target, floor, kept) -> Leaves:
  """The scores, with infinity for those that their layer keeps in any case."""
  layers, least = {}, {}
  for path, s in ranked.items():
    layers[path] = math.prod(s.shape[a] for a in axes[path].stacked)
    size = s.size // max(layers[path], 1)
    least[path] = min(max(int(floor * (1 - target) * size), 1), size)
  number = sum(layers.values())
  if number <= 1:
    return ranked
  if sum(layers[path] * least[path] for path in ranked) > kept:
    raise ValueError(
      f'target={target} leaves {kept} in {number} layers, fewer than the floor of'
      ' each. Lower target or floor, or give small leaves a rule of their own.'
    )

  def protected(path, s):
    def of_layer(layer, axes):
      return select.top_k_mask(layer, least[path])

    return jnp.where(per_layer(of_layer, s, axes[path]), jnp.inf, s)

  return {path: protected(path, s) for path, s in ranked.items()}
