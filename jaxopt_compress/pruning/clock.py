"""When masks change, whatever changes them.

A method says how: `change(spec, leaves, now)` gives new masks of the leaves of a rule.
`clocked` calls it at the steps at which masks are due, inside a `lax.cond`: one
program for all steps, and nothing is ranked in between.
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import compression
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning import state as state_lib
from jaxopt_compress.pruning import words

Leaves = dict[str, jax.Array]


class Now(NamedTuple):
  """What a method may look at.

  Attributes:
    step: scalar int32, finished optimizer steps.
    masks: `{path: bool}`, of the leaves of the rule, as they are.
    grads: `{path: gradient}` of those leaves, or {} where there are none.
    scores: `{path: learned score}` of those leaves, or {}.
  """

  step: jax.Array
  masks: Leaves
  grads: Leaves
  scores: Leaves


def clocked(
  rules: masking.Rules,
  change: Callable[[masking.Sparsity, Leaves, Now], Leaves],
  first: Callable[[masking.Sparsity, Leaves], Leaves],
  *,
  learns: bool = False,
  needs_grads: bool = False,
  skips: bool = False,
  **record: Any,
) -> compression.Compression:
  """A method from how it changes masks.

  Args:
    rules: ordered `(regex, value)`, as for `jc.prune`.
    change: `(spec, {path: leaf}, Now) -> {path: mask}`; may be traced.
    first: `(spec, {path: leaf}) -> {path: mask}`, before the first step.
    learns: whether there is a learned score of each weight, zero at first.
    needs_grads: whether `change` looks at gradients.
    skips: whether a step changes either masks or weights.
    **record: `rest`, `gradient`, `pull`, `penalty` of the `State`.
  """
  rules = words.rules(rules)

  def skip(step):
    specs = [spec for _, spec in rules if spec is not None]
    due = [_due(spec, step, step + 1) for spec in specs]
    return jnp.any(jnp.stack(due)) if due and skips else None

  def init(params):
    step, masks, learned = jnp.zeros((), jnp.int32), {}, {}
    for spec, leaves in masking.by_rule(rules, params):
      masks |= first(spec, leaves)
      if learns:
        learned |= {
          path: compression.Learned(s) for path, s in zeros(leaves).items()
        }
    return state_lib.State(
      step, masks, scores=learned, skip=skip(step), **record
    )

  def apply(params, state):
    learned = {path: s.value for path, s in state.scores.items()}
    return masking.apply_masks(params, state.masks, state.gradient, learned)

  def update(state, params, info):
    step = jnp.asarray(info.step, jnp.int32)
    masking.check_masks(params, state.masks)
    if needs_grads and info.grads is None:
      raise ValueError(
        'This method grows weights by their gradients: compression.update(state,'
        ' params, jc.Info(step, grads)), with the gradients of what `apply` returned.'
      )
    grads = dict(rules_lib.named_leaves(info.grads)) if needs_grads else {}
    learned = {path: s.value for path, s in state.scores.items()}
    masks = {}
    for spec, leaves in masking.by_rule(rules, params):
      old, g, s = (
        {path: tree[path] for path in leaves if path in tree}
        for tree in (state.masks, grads, learned)
      )
      masks |= lax.cond(
        _due(spec, state.step, step),
        lambda leaves, now, spec=spec: change(spec, leaves, now),
        lambda leaves, now: now.masks,
        leaves,
        Now(step, old, g, s),
      )
    return dataclasses.replace(state, step=step, masks=masks, skip=skip(step))

  return compression.Compression(init, apply, update)


def zeros(leaves: Leaves) -> Leaves:
  """Scores before the first step: of float32, as small steps add up in them."""
  return {path: jnp.zeros(x.shape, jnp.float32) for path, x in leaves.items()}


def learning(
  method: compression.Compression, pull: float = 0.0
) -> compression.Compression:
  """A method whose masked weights go on learning, and are pulled towards zero."""

  def init(params):
    return dataclasses.replace(
      method.init(params), rest='trained', gradient='dense', pull=pull
    )

  return method._replace(init=init)


def _due(spec, before, now):
  """Whether masks are due at a step, or were at one that was left out."""
  return spec.updates(now) > spec.updates(before)
