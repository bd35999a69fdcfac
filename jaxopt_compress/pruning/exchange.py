"""Some weights go and as many others come: the step of dynamic sparse training.

    dropped    the n of smallest |w| among the active
    grown      the n of highest score among all that are inactive then

A weight that was just dropped may be grown at once: it then has stayed.
"""

from collections.abc import Callable
import math
import zlib

import jax
import jax.numpy as jnp

from jaxopt_compress.pruning import counts
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning import select
from jaxopt_compress.pruning import words


def exchange(
  mask: jax.Array,
  w: jax.Array,
  grow: jax.Array,
  fraction: float | jax.Array,
  axes: tuple[int, ...] | None = None,
) -> jax.Array:
  """The mask in which a fraction of the active weights was exchanged.

  Args:
    mask: bool.
    w: the weights, of the shape of `mask`.
    grow: scores, floating, of that shape; the highest are grown.
    fraction: of the active weights, in [0, 1]; may be traced. All but the rounded
      number that stay are exchanged.
    axes: of one layer; along the others each layer is by itself. None is all.

  Returns:
    A mask of exactly as many weights, in each layer.

  >>> mask = jnp.array([True, True, False, False])
  >>> w, grow = jnp.array([1., 3., 0., 0.]), jnp.array([0., 9., 5., 7.])
  >>> exchange(mask, w, grow, 0.5).tolist()
  [False, True, False, True]
  """
  active = counts.count(mask, axes)
  stay = counts.portion(active, 1.0 - fraction)
  size = jnp.where(mask, jnp.abs(w), -jnp.inf)
  kept = select.top_k_mask(size, stay, axes)
  # What stays is above any gradient, an infinite one too.
  grow = jnp.clip(grow, max=jnp.finfo(grow.dtype).max)
  grow = jnp.where(kept, jnp.inf, grow)
  return select.top_k_mask(grow, active, axes)


def exchanged(
  spec: masking.Sparsity,
  leaves: dict[str, jax.Array],
  masks: dict[str, jax.Array],
  grow: Callable[[str, jax.Array], jax.Array],
  fraction: jax.Array,
  uses: dict | None = None,
) -> dict[str, jax.Array]:
  """`exchange` of the leaves of a rule, each layer of a stacked leaf by itself.

  Args:
    spec: of the rule.
    leaves, masks: `{path: array}`.
    grow: `(path, leaf) -> scores`.
    fraction: of the active weights of each layer.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
  """
  out = {}
  for path, w in leaves.items():
    stacked = masking.axes_of(path, w, spec, uses).stacked
    layer = tuple(a for a in range(-w.ndim, 0) if a not in stacked)
    out[path] = exchange(masks[path], w, grow(path, w), fraction, layer)
  return out


def first(
  uses: dict | None, seed: int | None
) -> Callable[[masking.Sparsity, dict[str, jax.Array]], dict[str, jax.Array]]:
  """`(spec, leaves) -> masks` at the target: random, or without a seed by score."""

  def masks(spec, leaves):
    scores = None
    if seed is not None:
      scores = {path: uniform(seed, path, x) for path, x in leaves.items()}
    return masking.compute(spec, leaves, uses, scores=scores)

  return masks


def uniform(
  seed: int, path: str, x: jax.Array, step: jax.Array | int = 0
) -> jax.Array:
  """Random scores of a leaf, in [0, 1): the same for a seed, a path and a step."""
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
  key = jax.random.fold_in(key, step)
  return jax.random.uniform(key, x.shape, jnp.float32)


def cosine(
  spec: masking.Sparsity, drop: float, step: jax.Array | int
) -> jax.Array:
  """The fraction that is exchanged: from `drop` at `begin` to 0 at `end`.

      f(t) = drop / 2 (1 + cos(pi (t - begin) / (end - begin)))

  Evci et al. 2020, https://arxiv.org/abs/1911.11134, section 3(2).

  >>> spec = masking.Sparsity(0.9, end=100, every=10)
  >>> [round(float(cosine(spec, 0.3, t)), 3) for t in (0, 50, 100)]
  [0.3, 0.15, 0.0]
  """
  t = jnp.clip((step - spec.begin) / max(spec.end - spec.begin, 1), 0.0, 1.0)
  return drop / 2 * (1.0 + jnp.cos(math.pi * t))


def check(rules: masking.Rules, drop: float) -> None:
  """Raises a ValueError where rules or the fraction cannot be exchanged by."""
  if not 0 <= drop <= 1:
    raise ValueError(
      f'drop={drop}; the fraction of active weights that is exchanged, in [0, 1],'
      ' is expected.'
    )
  for pattern, spec in words.rules(rules):
    if spec is not None and spec.kind != 'unstructured':
      raise ValueError(
        f'The rule {pattern!r} has kind={spec.kind!r}, and single weights are'
        " exchanged. Use kind='unstructured', or a method that keeps the form of its"
        ' masks: gradual, straight_through, sr_ste.'
      )
