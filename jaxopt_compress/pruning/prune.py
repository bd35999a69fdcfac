"""Pruning while training, and at once.

    score  = |w|                              of the dense weights, masked or not
    s(t)   = target (1 - (1 - t)^3)           a ramp over steps
    mask   = the 1 - s(t) of highest score    recomputed every so many steps
    y      = f(where(mask, w, 0), x)

Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878. Masks are ranked on the dense
weights: a pruned weight keeps its value and comes back when the weights that displaced
it have shrunk below it. It gets no gradient; the trainer and `jc.pruning.sparse` also keep it
from what an optimizer adds by itself, momentum and weight decay, so that where it
comes back does not depend on how long it was away. From `end` on masks are fixed.
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any
import warnings

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress import modules
from jaxopt_compress.analysis import statistics
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import compression
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import masked_array
from jaxopt_compress.pruning import ranking
from jaxopt_compress.pruning import scoring
from jaxopt_compress.pruning import spec as spec_lib
from jaxopt_compress.pruning import state as state_lib
from jaxopt_compress.pruning.storage import bitmask
from jaxopt_compress.pruning.storage import n_m_array

Sparsity = spec_lib.Sparsity
State = state_lib.State

Rules = Sequence[tuple[str, Sparsity | None]]

# What part of a leaf may be masked by place without a word: weights of few bits, such
# as bfloat16, always have some.
_MANY_TIES = 0.1


def prune(
  rules: Rules, uses: dict | None = None, **given: Any
) -> compression.Compression:
  """Masks weights on a schedule.

  `init` makes the masks of step 0: with begin=0 and end=0, the defaults, they are
  the final ones. `update` recomputes them at the steps of `schedules.updates`,
  inside a `lax.cond`: one program for all steps.

  A score that takes `gradient` or `gradient_squares` beside weights finds them in what
  `update` is told, `jc.Info(step, grads)`, and one that takes `input_squares` in
  `statistics`, which `observes` asks for. What is `given` stays as it is.

  Args:
    rules: ordered `(regex, Sparsity | None)`; first match wins, every leaf must be
      covered and every rule used.
    uses: what `jc.uses(apply)(params, x)` returned; tells which axes are
      contracted and which are stacked. Without it, 'n_m' and 'neurons' follow
      Flax's convention, and 'unstructured' has one threshold for each leaf. So it has
      for leaves that are in no product, such as biases. If the first axis of such a
      leaf may be a stack of layers, each of them keeps the floor of its rule.
    **given: what scores take beside weights, by name, as key=jax.random.key(0).

  Returns:
    A `Compression`; `apply` gives `Masked` leaves, and `jc.freeze` of those plain
    arrays with zeros.

  Raises:
    ValueError: when its functions are called: no rule covers a leaf, a leaf is not
      floating or has NaN, its axes are unknown, m does not divide the contracted
      one, nothing would be left of a layer, or a score lacks what it takes.

  Of equal scores the first stay. Where that decides about much of a leaf, as of a
  constant one, a warning says so, except under jit, where values are not known.

  >>> comp = prune([(r'w', Sparsity(0.5)), (r'.*', None)])
  >>> params = {'w': jnp.array([3., 1.]), 'b': jnp.ones(2)}
  >>> comp.apply(params, comp.init(params))['w'].materialize().tolist()
  [3.0, 0.0]
  """
  rules = rules_lib.pairs(rules)
  specs = [spec for _, spec in rules if isinstance(spec, Sparsity)]
  scoring.check_names(specs, given)
  given = scoring.by_path(given)

  def init(params):
    step = jnp.zeros((), jnp.int32)
    masks, sums = {}, {}
    for spec, leaves in by_rule(rules, params):
      if spec.memory:
        sums |= {p: jnp.zeros_like(x, _wide(x)) for p, x in leaves.items()}
      if set(spec.inputs()) - set(given) and _nothing_yet(spec):
        masks |= {p: jnp.ones_like(x, bool) for p, x in leaves.items()}
      else:
        masks |= _masks(spec, leaves, uses, spec.ramp(step), given)
    return State(step, masks, sums=sums)

  def apply(params, state):
    return apply_masks(params, state.masks, state.gradient)

  def update(state, params, info):
    step = jnp.asarray(info.step, jnp.int32)
    check_masks(params, state.masks)
    masks, sums = {}, {}
    for spec, leaves in by_rule(rules, params):
      others = given | _told(spec, info, given)

      def changed(leaves, scores, spec=spec, others=others):
        return _masks(spec, leaves, uses, spec.ramp(step), others, scores)

      scores = None
      if spec.memory:
        scores = _remembered(spec, leaves, uses, others, state.sums)
        sums |= scores
      # Due when the count has grown since the last update, so steps may be skipped.
      # With a cond, steps between updates rank nothing.
      masks |= lax.cond(
        spec.updates(step) > spec.updates(state.step),
        lambda old, *now, changed=changed: changed(*now),
        lambda old, *now: old,
        {path: state.masks[path] for path in leaves},
        leaves,
        scores,
      )
    return dataclasses.replace(state, step=step, masks=masks, sums=sums)

  def observes(params):
    return {
      re.escape(path): statistics.sum_squares()
      for spec, leaves in by_rule(rules, params)
      if 'input_squares' in set(spec.inputs()) - set(given)
      for path in leaves
    }

  return compression.Compression(init, apply, update, observes)


def prune_now(
  params: Any, rules: Rules, uses: dict | None = None, **others: Any
) -> Any:
  """Prunes at once to the targets; schedules are ignored.

  Args:
    params: a tree of arrays; leaves that are masked already are ranked with their
      zeros.
    rules: ordered `(regex, Sparsity | None)`, as for `prune`.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    **others: what scores take beside weights, by name: gradient= of 'taylor',
      'first_order' and 'movement', gradient_squares= of 'fisher', each a tree of the
      form of `params`; input_squares= of 'wanda', what `jc.observe` saw; key= of
      'random'.

  Returns:
    The tree with `Masked` leaves. `jc.freeze` makes them plain arrays.

  Raises:
    ValueError: as for `prune`.

  Example, Wanda:

      wanted = {r'.*/kernel': jc.statistics.sum_squares()}
      _, stats = jc.observe(apply, wanted)(params, x)
      rules = [(r'.*/kernel', jc.Sparsity(0.5, score='wanda')), (r'.*', None)]
      pruned = jc.prune_now(params, rules, uses, input_squares=stats)

  >>> p = prune_now({'w': jnp.array([3., 1.])}, [(r'w', Sparsity(0.5))])
  >>> p['w'].describe()
  'masked 50%'
  """
  ours = by_rule(rules, params)
  scoring.check_names([spec for spec, _ in ours], others)
  others, masks = scoring.by_path(others), {}
  for spec, leaves in ours:
    masks |= _masks(spec, leaves, uses, 1.0, others)
  return apply_masks(params, masks)


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _nothing_yet(spec) -> bool:
  """Whether the masks of step 0 keep everything, whatever the scores are."""
  with jax.ensure_compile_time_eval():
    return float(spec.ramp(0)) == 0


def _told(spec, info, given) -> dict[str, Any]:
  """What an update is told that a score takes."""
  told = {}
  if info.grads is not None:
    grads = dict(rules_lib.named_leaves(info.grads))
    told['gradient'] = grads
    told['gradient_squares'] = {p: jnp.square(g) for p, g in grads.items()}
  if info.statistics:
    told['input_squares'] = info.statistics
  for name in set(spec.inputs()) - set(given) - set(told):
    raise ValueError(
      f'score={spec.score!r} takes {name!r}, of which an update knows nothing: pass'
      ' jc.Info(step, grads, statistics), the statistics being those that'
      f' comp.observes(params) asks for, or jc.prune(rules, uses, {name}=...).'
    )
  return told


def _remembered(spec, leaves, uses, others, sums):
  """The scores of all steps so far, those long ago counting less and less."""
  axes = {path: axes_of(path, x, spec, uses) for path, x in leaves.items()}
  now = scoring.scores(spec, leaves, axes, others)
  return {path: spec.memory * sums[path] + now[path] for path in leaves}


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
    stored = array.is_compressed(x) and not isinstance(x, masked_array.Masked)
    if path in masks and stored:
      advice = (
        'would be stored as floats. Prune first: jc.chain(jc.prune(...),'
        ' jc.fake_quantize(...)).'
      )
      if isinstance(x, (bitmask.Bitmask, n_m_array.NMArray)):
        advice = (
          'would be stored beside its own. Prune jc.materialize(params), in which'
          ' its zeros rank last, and jc.sparsify that again.'
        )
      raise ValueError(
        f'{path} is {x.describe()} already; a mask over it {advice}'
      )
  check_masks(params, masks)
  scores = scores or {}

  def with_mask(path, x):
    if path not in masks:
      return x
    return masked_array.Masked(x, masks[path], scores.get(path), gradient)

  return modules.dress(rules_lib.map_named(with_mask, params))


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
  **others: Any,
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
    **others: what the rule's score takes beside weights, as for `prune_now`.

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
  return _masks(spec, leaves, uses, ramp, scoring.by_path(others), scores)


def _masks(
  spec, leaves, uses, ramp, others, scores=None
) -> dict[str, jax.Array]:
  axes = {path: axes_of(path, x, spec, uses) for path, x in leaves.items()}
  if scores is None:
    scores = scoring.scores(spec, leaves, axes, others)
  shapes = {path: x.shape for path, x in leaves.items()}
  if (given := {path: s.shape for path, s in scores.items()}) != shapes:
    raise ValueError(
      f'Scores of {given} for leaves of {shapes}; a number for each weight of each is'
      ' expected.'
    )
  masks = ranking.masks(spec, scores, axes, ramp)
  if not any(isinstance(m, jax.core.Tracer) for m in masks.values()):
    told = ranking.by_place(spec, scores, axes, ramp, masks)
    for path, number in told.items():
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


def axes_of(
  path: str, x: Any, spec: Sparsity, uses: dict | None = None
) -> uses_lib.Axes:
  """What the axes of a leaf are: contracted, stacked (layers), or free."""
  # Any leaf can be pruned weight by weight, even one that is in no product; rows, and
  # shares of layers, are known from products alone.
  found = uses_lib.of(path, uses)
  in_none = found is not None and not any(u.contracted for u in found)
  plain = spec.kind == 'unstructured' and spec.allocation == 'uniform'
  if plain and spec.scope != 'row' and (uses is None or in_none):
    # A matrix has no layers, but [layers, n] of scales in a scan has; [n, 1], of
    # which not every row could keep a weight, is none.
    has_layers = x.ndim > (1 if in_none else 2)
    stack = has_layers and x.size * (1 - spec.target) >= x.shape[0]
    every = tuple(range(-x.ndim, 0))
    return uses_lib.Axes((), every[: int(stack)], every[int(stack) :])
  return uses_lib.axes(path, x, uses)
