"""Pruning while training, and at once.

    score  = |w|                              of the dense weights, masked or not
    s(t)   = target (1 - (1 - t)^3)           a ramp over steps
    mask   = the 1 - s(t) of highest score    recomputed every so many steps
    y      = f(where(mask, w, 0), x)

Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878. Masks are ranked on the dense
weights: a pruned weight keeps its value, gets no gradient (only what an optimizer
adds by itself, such as momentum and weight decay), and comes back when the weights
that displaced it have shrunk below it. From `end` on the masks are fixed.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Any
import warnings

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import compression
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import masked
from jaxopt_compress.pruning import ranking
from jaxopt_compress.pruning import scores as scores_lib
from jaxopt_compress.pruning import select
from jaxopt_compress.pruning import spec as spec_lib
from jaxopt_compress.pruning import state as state_lib

Sparsity = spec_lib.Sparsity
State = state_lib.State

Rules = Sequence[tuple[str, Sparsity | None]]

# What part of a leaf may be masked by place without a word: weights of few bits, such
# as bfloat16, always have some.
_MANY_TIES = 0.1


def prune(rules: Rules, uses: dict | None = None) -> compression.Compression:
  """Masks weights on a schedule.

  `init` makes the masks of step 0: with begin=0 and end=0, the defaults, they are
  the final ones. `update` recomputes them at the steps of `schedules.updates`,
  inside a `lax.cond`: one program for all steps.

  Args:
    rules: ordered `(regex, Sparsity | None)`; first match wins, every leaf must be
      covered and every rule used.
    uses: what `jc.uses(apply)(params, x)` returned; tells which axes are
      contracted and which are stacked. Without it, 'n_m' and 'neurons' follow
      Flax's convention, and 'unstructured' has one threshold for each leaf. So it has
      for leaves that are in no product, such as biases. If the first axis of such a
      leaf may be a stack of layers, each of them keeps the floor of its rule.

  Returns:
    A `Compression`; `apply` gives `Masked` leaves, and `jc.freeze` of those plain
    arrays with zeros.

  Raises:
    ValueError: when its functions are called: no rule covers a leaf, a leaf is not
      floating or has NaN, its axes are unknown, m does not divide the contracted
      one, or nothing would be left of a layer.

  Of equal scores the first stay. Where that decides about much of a leaf, as of a
  constant one, a warning says so, except under jit, where values are not known.

  >>> comp = prune([(r'w', Sparsity(0.5)), (r'.*', None)])
  >>> params = {'w': jnp.array([3., 1.]), 'b': jnp.ones(2)}
  >>> comp.apply(params, comp.init(params))['w'].materialize().tolist()
  [3.0, 0.0]
  """
  rules = rules_lib.pairs(rules)

  def init(params):
    step = jnp.zeros((), jnp.int32)
    masks = {}
    for spec, leaves in by_rule(rules, params):
      masks |= _masks(spec, leaves, uses, spec.ramp(step))
    return State(step, masks)

  def apply(params, state):
    return apply_masks(params, state.masks, state.gradient)

  def update(state, params, info):
    step = jnp.asarray(info.step, jnp.int32)
    check_masks(params, state.masks)
    masks = {}
    for spec, leaves in by_rule(rules, params):
      # Due when the count has grown since the last update, so steps may be skipped.
      # With a cond, steps between updates rank nothing.
      masks |= lax.cond(
        spec.updates(step) > spec.updates(state.step),
        lambda old, leaves, spec=spec: _masks(
          spec, leaves, uses, spec.ramp(step)
        ),
        lambda old, leaves: old,
        {path: state.masks[path] for path in leaves},
        leaves,
      )
    return dataclasses.replace(state, step=step, masks=masks)

  return compression.Compression(init, apply, update)


def magnitude_prune(params: Any, rules: Rules, uses: dict | None = None) -> Any:
  """Prunes at once to the targets; schedules are ignored.

  Args:
    params: a tree of arrays; leaves that are masked already are ranked with their
      zeros.
    rules: ordered `(regex, Sparsity | None)`, as for `prune`.
    uses: what `jc.uses(apply)(params, x)` returned, or None.

  Returns:
    The tree with `Masked` leaves. `jc.freeze` makes them plain arrays.

  Raises:
    ValueError: as for `prune`.

  >>> p = magnitude_prune({'w': jnp.array([3., 1.])}, [(r'w', Sparsity(0.5))])
  >>> p['w'].describe()
  'masked 50%'
  """
  masks = {}
  for spec, leaves in by_rule(rules, params):
    masks |= _masks(spec, leaves, uses, ramp=1.0)
  return apply_masks(params, masks)


def apply_masks(
  params: Any,
  masks: dict[str, jax.Array],
  gradient: str = 'masked',
  scores: dict[str, jax.Array] | None = None,
) -> Any:
  """Puts `Masked(leaf, mask)` in place of the leaves that have a mask.

  Args:
    params: a tree of arrays.
    masks: `{path: bool mask}`.
    gradient: of the leaves: 'masked' or 'dense', see `Masked`.
    scores: `{path: what is learned about each weight}`, or None.

  Raises:
    ValueError: a mask for a leaf that is not there, or of another shape.
  """
  for path, x in rules_lib.named_leaves(params):
    stored = array.is_compressed(x) and not isinstance(x, masked.Masked)
    if path in masks and stored:
      raise ValueError(
        f'{path} is {x.describe()} already; a mask over it would be stored as'
        ' floats. Prune first: jc.chain(jc.prune(...), jc.fake_quantize(...)).'
      )
  check_masks(params, masks)
  scores = scores or {}

  def with_mask(path, x):
    if path not in masks:
      return x
    return masked.Masked(x, masks[path], scores.get(path), gradient)

  return rules_lib.map_named(with_mask, params)


def check_masks(params: Any, masks: dict[str, jax.Array]) -> None:
  """Raises a ValueError where masks are not of these parameters."""
  shapes = {path: tuple(x.shape) for path, x in rules_lib.named_leaves(params)}
  for path, mask in masks.items():
    if shapes.get(path) != tuple(mask.shape):
      was = f'shape {shapes[path]}' if path in shapes else 'no such leaf'
      raise ValueError(
        f'A mask of shape {tuple(mask.shape)} for {path!r}: {was}. Masks belong to'
        ' the parameters that they were made from.'
      )


def by_rule(rules: Rules, params: Any) -> list[tuple[Sparsity, dict[str, Any]]]:
  """The leaves of each rule that prunes, in the order of the rules.

  Args:
    rules: ordered `(regex, Sparsity | None)`.
    params: a tree of arrays; compressed leaves count as one.

  Returns:
    [(Sparsity, {path: leaf})].

  Raises:
    ValueError: a leaf that no rule covers, a rule that is never used, or a value
      that is no Sparsity.

  >>> rules = [(r'b', None), (r'.*', Sparsity(0.5))]
  >>> [list(leaves) for _, leaves in by_rule(rules, {'a': 1.0, 'b': 2.0})]
  [['a']]
  """
  groups, pairs = [], rules_lib.pairs(rules)
  shares = rules_lib.split(pairs, params)
  for (pattern, spec), leaves in zip(pairs, shares, strict=True):
    if spec is None:
      continue
    if not isinstance(spec, Sparsity):
      raise ValueError(
        f'The rule {pattern!r} has {spec!r}; a Sparsity or None is expected, such'
        ' as Sparsity(0.5).'
      )
    groups.append((spec, leaves))
  return groups


def compute(
  spec: Sparsity,
  leaves: dict[str, Any],
  uses: dict | None = None,
  fraction: float | jax.Array | None = None,
  *,
  scores: dict[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
  """The masks of the leaves of one rule, at any sparsity.

  What methods that change masks are made of: `prune` computes them at the sparsity
  of a schedule, others from scores of their own.

  Args:
    spec: what the rule says; its schedule has no part in this.
    leaves: `{path: leaf}` of the rule, as `by_rule` gives them.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    fraction: of zeros, in [0, target]; it may be traced. None is `spec.target`.
    scores: `{path: a score for each weight}`, of the shapes of the leaves; None for
      those that the rule names. Infinite ones always stay, or never.

  Returns:
    `{path: bool mask}`, True where a weight is kept.

  Raises:
    ValueError: as for `prune`.

  >>> leaves = {'w': jnp.array([4., 3., 2., 1.])}
  >>> compute(Sparsity(0.5), leaves, fraction=0.25)['w'].tolist()
  [True, True, True, False]
  >>> own = {'w': jnp.array([0., 1., 2., 3.])}
  >>> compute(Sparsity(0.5), leaves, scores=own)['w'].tolist()
  [False, False, True, True]
  """
  ramp = 1.0
  if fraction is not None:
    # Exactly 1 at the target, whatever the division rounds to.
    there = jnp.asarray(fraction) >= spec.target
    ramp = jnp.where(there, 1.0, fraction / max(spec.target, 1e-9))
  return _masks(spec, leaves, uses, ramp, scores)


def _masks(spec, leaves, uses, ramp, scores=None) -> dict[str, jax.Array]:
  if scores is None:
    scores = {path: _score(path, x, spec) for path, x in leaves.items()}
  rank = functools.partial(
    ranking.masks,
    spec.kind,
    spec.scope,
    axes={path: axes_of(path, x, spec, uses) for path, x in leaves.items()},
    target=spec.target,
    n=spec.n,
    m=spec.m,
    floor=spec.floor,
    ramp=ramp,
  )
  masks = rank(scores)
  if not any(isinstance(m, jax.core.Tracer) for m in masks.values()):
    for path, number in ranking.by_place(rank, scores, masks).items():
      _tell_ties(path, int(number), masks[path].size)
  return masks


def _tell_ties(path, number, size):
  if number > _MANY_TIES * size:
    warnings.warn(
      f'{path}: whether {number} of its {size} weights stay depends on their order'
      ' alone, as scores are equal; the first stay. Leave constant leaves as they'
      f' are by a rule (r"{re.escape(path)}", None), and prune before you quantise.',
      stacklevel=2,
    )


def _score(path, x, spec):
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'{path} is {x.dtype}; only floating leaves are pruned. Put (r"{path}",'
      ' None) before the rule that takes it.'
    )
  w = array.materialize(x)
  # The score of NaN is NaN, which would be reported without the leaf's path.
  try:
    select.refuse_nan([w])
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from e
  # Under jit it is not known, and stays: behind a mask nobody would see it.
  w = jnp.nan_to_num(w, nan=jnp.inf, posinf=jnp.inf, neginf=-jnp.inf)
  if spec.score == 'magnitude':
    return scores_lib.magnitude(w)
  w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
  # So little of the magnitude is lost in any score but 0, which it takes apart.
  return scores_lib.soft_threshold(w, spec.k) + 1e-20 * jnp.abs(w)


def axes_of(
  path: str, x: Any, spec: Sparsity, uses: dict | None = None
) -> uses_lib.Axes:
  """What the axes of a leaf are: contracted, stacked (layers), or free."""
  # Any leaf can be pruned weight by weight, even one that is in no product.
  found = uses_lib.of(path, uses)
  in_none = found is not None and not any(u.contracted for u in found)
  if spec.kind == 'unstructured' and (uses is None or in_none):
    # A matrix has no layers, but [layers, n] of scales in a scan has; [n, 1], of
    # which not every row could keep a weight, is none.
    has_layers = x.ndim > (1 if in_none else 2)
    stack = has_layers and x.size * (1 - spec.target) >= x.shape[0]
    every = tuple(range(-x.ndim, 0))
    return uses_lib.Axes((), every[: int(stack)], every[int(stack) :])
  axes = uses_lib.axes(path, x, uses)
  if spec.kind == 'neurons' and not axes.free:
    raise ValueError(
      f'{path}, shape {tuple(x.shape)}, is contracted over all of its axes, so it'
      ' has no neurons. Leave it as it is, or prune it unstructured.'
    )
  return axes
