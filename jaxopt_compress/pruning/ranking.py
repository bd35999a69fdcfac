"""What is ranked against what: the masks of the leaves that one rule takes.

    'leaf'    each leaf by itself, and each layer of a stacked leaf by itself
    'row'     each output of each layer by itself
    'global'  all units of all leaves of the rule, and of all their layers, against
              one threshold; with a regex, so are those of which its groups agree

One threshold keeps more where scores are larger, and would empty a layer whose weights
are small only because of their scale. So each layer has a floor: its largest scores
stay, a fraction of what it would keep by itself, and one at least. It may have a cap.
"""

from collections.abc import Callable
import math
import re

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.pruning import allocate
from jaxopt_compress.pruning import counts
from jaxopt_compress.pruning import select
from jaxopt_compress.pruning import spec as spec_lib
from jaxopt_compress.pruning import units as units_lib

Leaves = dict[str, jax.Array]
Axes = dict[str, uses_lib.Axes]
Ramp = float | jax.Array


def masks(
  spec: spec_lib.Sparsity, scores: Leaves, axes: Axes, ramp: Ramp = 1.0
) -> Leaves:
  """Masks of several leaves.

  Args:
    spec: of their rule. A leaf of which no axis is contracted has one threshold in
      any case: what is stacked there may not be layers.
    scores: `{path: score of each weight}`.
    axes: `{path: Axes}`, what the axes of each leaf are.
    ramp: how far to go towards the final masks, in [0, 1].

  Returns:
    `{path: bool mask}` of the shapes of the scores.

  Raises:
    ValueError: the granularity does not fit a leaf, or nothing would be left of a
      layer.

  >>> spec = spec_lib.Sparsity(0.5)
  >>> matrix = {'w': uses_lib.Axes((-2,), (), (-1,))}
  >>> masks(spec, {'w': jnp.array([[1., 4.], [3., 2.]])}, matrix)['w'].tolist()
  [[False, True], [True, False]]
  """
  return _expanded(spec, _units(spec, scores, axes), axes, scores, ramp)


def by_place(
  spec: spec_lib.Sparsity,
  scores: Leaves,
  axes: Axes,
  ramp: Ramp,
  masks: Leaves,
) -> dict[str, jax.Array]:
  """How many entries of each mask depend on the order of equal scores alone.

  Of equal scores the first stay, so what changes when all is ranked backwards has
  no better reason. Zeros count in a leaf of zeros alone: beside others it changes
  nothing which of them stays.

  Args:
    spec, scores, axes, ramp: as given to `masks`.
    masks: what that returned.

  Returns:
    `{path: number}`.
  """
  back = {p: jnp.flip(s) for p, s in reversed(scores.items())}
  units = _units(spec, back, axes)
  if not all(u.turns for u in units.values()):
    # Tiles of what is read backwards would be others, so the tiles are.
    units = {p: _turned(u) for p, u in _units(spec, scores, axes).items()}
    units = dict(reversed(units.items()))
  back = _expanded(spec, units, axes, back, ramp)
  return {p: _changed(masks[p], back[p], s) for p, s in scores.items()}


@jax.jit
def _changed(mask, back, scores):
  counted = (scores != 0) | (scores == 0).all()
  return jnp.sum((mask != jnp.flip(back)) & counted)


def _turned(units):
  return units_lib.Units(
    jnp.flip(units.scores),
    lambda kept: jnp.flip(units.expand(jnp.flip(kept))),
    units.share,
  )


def _units(spec, scores, axes) -> dict[str, units_lib.Units]:
  return {
    path: _naming(path, spec.call, 'kind', s, axes[path])
    for path, s in scores.items()
  }


def _naming(path, f: Callable, *args):
  """Calls f; what it refuses, it refuses by the name of the leaf."""
  try:
    return f(*args)
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from e


def _expanded(spec, units, axes, scores, ramp) -> Leaves:
  """The masks of the units that stay."""
  kept = {}
  for paths in _sharing(spec, scores, axes):
    ours = {path: units[path] for path in paths}
    first = axes[paths[0]]
    if spec.scope not in ('leaf', 'row'):
      kept |= _together(spec, ours, axes, ramp)
    elif first.contracted or not first.stacked:
      kept |= _alone(spec, ours, axes, scores, ramp)
    else:
      kept |= _naming(paths[0], _together, spec, ours, axes, ramp)
  # A mask is sharded as its leaf, also where its units are not.
  return {
    path: units[path].expand(kept[path]) & jnp.ones_like(s, bool)
    for path, s in scores.items()
  }


def _sharing(spec, scores, axes) -> list[list[str]]:
  """The paths that are decided on together."""
  if spec.scope == 'global':
    return [list(scores)] * bool(scores)
  if spec.scope in ('leaf', 'row'):
    # Of a leaf in no product, what is stacked may not be layers.
    inside = [p for p in scores if axes[p].contracted or not axes[p].stacked]
    return [inside] * bool(inside) + [[p] for p in scores if p not in inside]
  groups = {}
  for path in scores:
    found = re.fullmatch(spec.scope, path)
    if not found:
      raise ValueError(
        f'scope={spec.scope!r} does not match {path}, whole. Let its rule take'
        f' other leaves, or widen the scope: {list(scores)[:5]} have one rule.'
      )
    groups.setdefault(found.groups(), []).append(path)
  return list(groups.values())


def _front(axes, ndim) -> tuple[int, ...]:
  return tuple(sorted(a % ndim for a in axes))


def _alone(spec, units, axes, scores, ramp) -> Leaves:
  """Masks by thresholds of each layer, or of each row."""
  layers = {}
  for path, u in units.items():
    ndim, stacked = u.scores.ndim, _front(axes[path].stacked, u.scores.ndim)
    layer = tuple(a for a in range(ndim) if a not in stacked)
    shape = scores[path].shape
    layers[path] = allocate.Layers(
      u.scores,
      layer,
      tuple(shape[a] for a in layer),
      math.prod(shape[a] for a in stacked),
    )
  fractions = spec.call('allocation', layers, spec.target)
  if set(fractions) != set(layers):
    raise ValueError(
      f'allocation={spec.allocation!r} gave fractions for {list(fractions)}; those of'
      f' {list(layers)} are expected.'
    )
  ranked, gone = {}, {}
  for path, u in units.items():
    layer = layers[path].axes
    ranked[path] = layer
    if spec.scope == 'row':
      ranked[path] = _front(axes[path].contracted, u.scores.ndim)
    gone[path] = _naming(path, _gone, spec, u, ranked[path], fractions[path])
  gone = _ramped(gone, ramp)
  return {
    path: select.top_k_mask(
      u.scores, _size(u, ranked[path]) - gone[path], ranked[path]
    )
    for path, u in units.items()
  }


def _size(units, axes) -> int:
  return math.prod(units.scores.shape[a] for a in axes)


def _gone(spec, units, ranked, fraction) -> tuple[counts.Number, Ramp]:
  """(n, fraction): how many units of each layer, or row, go in the end."""
  n, size = _size(units, ranked), units.scores.size
  if spec.scope == 'row' and n == 1 < size:
    raise ValueError(
      f'kind={spec.kind!r} leaves one unit in each row of a leaf of shape'
      f" {units.scores.shape}, with nothing to rank it against. Use scope='leaf'."
    )
  if isinstance(fraction, counts.Count):
    return fraction, 1.0
  if isinstance(fraction, (int, float)):
    fraction = min(fraction / units.share, 1.0)
    if units.share == 1:
      _kept(n, counts.portion(n, fraction), spec)
  return n, fraction


def _ramped(gone, ramp):
  """How many go now."""
  # Numbers that are known are multiplied at once: a program for each would be long.
  known = {
    path: nf
    for path, nf in gone.items()
    if all(isinstance(x, (int, float)) for x in nf)
  }
  if isinstance(ramp, (int, float)):
    known = {}
  now = {
    p: counts.ramped(*nf, ramp) for p, nf in gone.items() if p not in known
  }
  if known:
    n, fraction = zip(*known.values(), strict=True)
    end = counts.several([counts.portion(*nf) for nf in known.values()])
    n, fraction = counts.several(n), jnp.array(fraction, jnp.float32)
    several = counts.ramped(n, fraction, ramp, end)
    now |= {path: several[i] for i, path in enumerate(known)}
  return now


def _kept(n, gone, spec) -> int:
  """How many of `n` are kept."""
  if n and n == gone:
    noun = 'weights' if spec.kind == 'unstructured' else spec.kind
    raise ValueError(
      f'target={spec.target} leaves none of {n} {noun}. Lower it, or leave such leaves'
      ' as they are by a rule with None before this one.'
    )
  return n - gone


def _together(spec, units, axes, ramp) -> Leaves:
  """Masks by one threshold, above the floors of the layers and below their caps."""
  ranked = {path: u.scores for path, u in units.items()}
  # Keys are compared bit by bit, so all scores need the same width.
  dtype = jnp.result_type(*ranked.values())
  n = sum(s.size for s in ranked.values())
  kept = _kept(n, counts.portion(n, spec.target), spec)
  slices, number, floors = [], 0, 0
  for path, s in ranked.items():
    stacked = _front(axes[path].stacked, s.ndim)
    layer = tuple(a for a in range(s.ndim) if a not in stacked)
    layers, size = (math.prod(s.shape[a] for a in g) for g in (stacked, layer))
    least = min(max(int(spec.floor * (1 - spec.target) * size), 1), size)
    most = size
    if spec.cap != float('inf'):
      most = _most(size, spec, ramp)
    slices.append(select.Slices(s.astype(dtype), layer, least, most))
    number, floors = number + layers, floors + layers * least
  if number > 1 and floors > kept:
    raise ValueError(
      f'target={spec.target} leaves {kept} in {number} layers, fewer than the floor'
      ' of each. Lower target or floor, or give small leaves a rule of their own.'
    )
  if number <= 1:
    slices = [x._replace(least=0) for x in slices]
  gone = counts.ramped(n, spec.target, ramp)
  chosen = select.together(slices, n - gone)
  return dict(zip(ranked, chosen, strict=True))


def _most(size, spec, ramp):
  """How many a layer keeps at most: its cap, or all that must be left at this ramp."""
  # Rounded up, but not by what a product of floats is too large.
  own = min(size, math.ceil(spec.cap * (1 - spec.target) * size - 1e-9))
  gone = size - min(size, own + 1)
  # One more than that, as what all layers lose is rounded otherwise than their sum.
  now = counts.of(counts.portion(gone, ramp))
  now = counts.where(now >= 1, now - 1, now)
  # All caps together leave room for the target itself.
  return size - counts.where(jnp.asarray(ramp) >= 1, size - own, now)
