"""What is ranked against what: the masks of the leaves that one rule takes.

    'leaf'    each leaf by itself, and each layer of a stacked leaf by itself
    'global'  all weights (or neurons) of all leaves of the rule, and of all their
              layers, against one threshold

A global ranking keeps more where scores are larger, so it empties layers whose
weights are small only because of their scale: give such leaves a rule of their own.
"""

from collections.abc import Callable

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
  ramp: float | jax.Array = 1.0,
) -> Leaves:
  """Masks of several leaves.

  Args:
    kind: 'unstructured', 'n_m' or 'neurons'. Groups of N:M run along the last
      contracted axis: `in` of a matrix [in, out] and of a convolution [h, w, in,
      out]. A neuron is one index of the free axes.
    scope: 'leaf' or 'global'.
    scores: `{path: score of each weight}`.
    axes: `{path: Axes}`, what the axes of each leaf are.
    target: fraction of zeros (of neurons, for 'neurons').
    n, m: of N:M.
    ramp: how far to go towards the final masks, in [0, 1].

  Returns:
    `{path: bool mask}` of the shapes of the scores.
  """
  if scope == 'global':
    return _global(kind, scores, axes, target, ramp)

  def layer_mask(scores, axes):
    if kind == 'unstructured':
      return masks_lib.unstructured(scores, target, ramp=ramp)
    if kind == 'n_m':
      # Axes count from the end, so the largest is the last.
      return masks_lib.n_m(scores, n, m, max(axes.contracted), ramp=ramp)
    return masks_lib.neurons(scores, target, axes.free, ramp=ramp)

  out = {}
  for path, s in scores.items():
    try:
      out[path] = per_layer(layer_mask, s, axes[path])
    except ValueError as e:
      raise ValueError(f'{path}: {e}') from e
  return out


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


def _global(kind, scores, axes, target, ramp) -> Leaves:
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
  gone = select.portion(select.portion(n, target), ramp)
  kept = select.top_k_masks(list(ranked.values()), n - gone)
  return {
    path: jnp.broadcast_to(mask, scores[path].shape)
    for path, mask in zip(scores, kept, strict=True)
  }
