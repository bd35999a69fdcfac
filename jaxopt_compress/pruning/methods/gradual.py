"""Pruning while training: masks become sparser on a schedule.

    score  = |w|                              of the dense weights, masked or not
    s(t)   = target (1 - (1 - t)^3)           a ramp over steps
    mask   = the 1 - s(t) of highest score    recomputed every so many steps
    y      = f(where(mask, w, 0), x)

Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878. Masks are ranked on the dense
weights: a pruned weight keeps its value and comes back when the weights that displaced
it have shrunk below it. It gets no gradient; the trainer and `jc.pruning.sparse` also
keep it from what an optimizer adds by itself, momentum and weight decay, so that where
it comes back does not depend on how long it was away. From `end` on masks are fixed.
"""

import dataclasses
import re
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import statistics
from jaxopt_compress.core import compression
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning import scoring
from jaxopt_compress.pruning import spec as spec_lib
from jaxopt_compress.pruning import state as state_lib
from jaxopt_compress.pruning import words

Sparsity = spec_lib.Sparsity
State = state_lib.State


def gradual(
  rules: masking.Rules, uses: dict | None = None, **given: Any
) -> compression.Compression:
  """Masks weights on a schedule.

  `init` makes the masks of step 0: with begin=0 and end=0, the defaults, they are
  the final ones. `update` recomputes them at the steps of `schedules.updates`,
  inside a `lax.cond`: one program for all steps.

  A score that takes `gradient` or `gradient_squares` beside weights finds them in what
  `update` is told, `jc.Info(step, grads)`, and one that takes `input_squares` in
  `statistics`, which `observes` asks for. What is `given` stays as it is.

  Args:
    rules: ordered `(regex, value)`, as for `jc.prune`, such as '0.8 end=1000 every=10'.
    uses: what `jc.uses(apply)(params, x)` returned; tells which axes are
      contracted and which are stacked. Without it, 'n_m' and 'neurons' take leaves
      called `kernel` alone, and 'unstructured' has one threshold for each leaf. So it has
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

  >>> comp = gradual([(r'w', Sparsity(0.5)), (r'.*', None)])
  >>> params = {'w': jnp.array([3., 1.]), 'b': jnp.ones(2)}
  >>> comp.apply(params, comp.init(params))['w'].materialize().tolist()
  [3.0, 0.0]
  """
  rules = words.rules(rules)
  scoring.check_names([spec for _, spec in rules if spec], given)
  given = scoring.by_path(given)

  def init(params):
    step = jnp.zeros((), jnp.int32)
    masks, sums = {}, {}
    for spec, leaves in masking.by_rule(rules, params):
      if spec.memory:
        sums |= {p: jnp.zeros_like(x, _wide(x)) for p, x in leaves.items()}
      if set(spec.inputs()) - set(given) and _nothing_yet(spec):
        masks |= {p: jnp.ones_like(x, bool) for p, x in leaves.items()}
      else:
        masks |= masking.masks_at(spec, leaves, uses, spec.ramp(step), given)
    return State(step, masks, sums=sums)

  def apply(params, state):
    return masking.apply_masks(params, state.masks, state.gradient)

  def update(state, params, info):
    step = jnp.asarray(info.step, jnp.int32)
    masking.check_masks(params, state.masks)
    masks, sums = {}, {}
    for spec, leaves in masking.by_rule(rules, params):
      others = given | _told(spec, info, given)

      def changed(leaves, scores, spec=spec, others=others):
        return masking.masks_at(
          spec, leaves, uses, spec.ramp(step), others, scores
        )

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
      for spec, leaves in masking.by_rule(rules, params)
      if 'input_squares' in set(spec.inputs()) - set(given)
      for path in leaves
    }

  return compression.Compression(init, apply, update, observes)


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
      f' comp.observes(params) asks for, or jc.methods.gradual(rules, uses, {name}=...).'
    )
  return told


def _remembered(spec, leaves, uses, others, sums):
  """The scores of all steps so far, those long ago counting less and less."""
  axes = {
    path: masking.axes_of(path, x, spec, uses) for path, x in leaves.items()
  }
  now = scoring.scores(spec, leaves, axes, others)
  return {path: spec.memory * sums[path] + now[path] for path in leaves}
