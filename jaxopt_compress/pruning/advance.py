"""One step of an optimizer under masks.

    g      = where(mask, g, 0)                what the optimizer sees
    u, s   = optimizer(g, s, w)
    masks  = method(w + u, g)                 where masks are due
    u      = where(mask, u, -w)               masked weights are 0 (or: 0, they stay)
    s      = where(mask, s, 0)                and so is what is remembered of them

What an optimizer remembers of each weight is found by its form: a leaf whose path
ends with the path of a parameter, and whose last axes are those of the parameter. So
no optimizer has to be known: moments, averages, accumulated gradients and the
differences of L-BFGS are masked at any depth of wrappers. What is no number for each
weight stays: factored or projected moments, norms, and counts.
"""

import math
from typing import Any
from typing import NamedTuple

import jax
from jax import custom_batching
import jax.numpy as jnp

from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import state as state_lib


class Advanced(NamedTuple):
  """What a step returns.

  Attributes:
    updates: to be added to the parameters.
    opt_states: of the optimizers of (the parameters, what is learned).
    state: of the compression, with what is learned.
    step: scalar int32, steps done.
  """

  updates: Any
  opt_states: tuple[Any, Any]
  state: Any
  step: jax.Array


def advance(
  optimizers: tuple[Any, Any],
  compression: compression_lib.Compression,
  grads: tuple[Any, Any],
  opt_states: tuple[Any, Any],
  params: Any,
  state: Any,
  step: jax.Array,
  *,
  statistics: Any = None,
  extra: dict[str, Any] | None = None,
) -> Advanced:
  """Moves parameters, what is learned beside them, and the compression.

  Without a method of pruning in `state` it is a plain step.

  Args:
    optimizers: of the parameters, and of what is learned.
    compression: what happens to the parameters.
    grads: of both: a tree like the parameters, and `{path: gradient}`.
    opt_states: of both.
    params: the parameters.
    state: of the compression, with what is learned.
    step: scalar int32, how many steps are done.
    statistics: as in `Info`.
    extra: further arguments of the first optimizer's `update`.

  Raises:
    ValueError: two methods mask one leaf, or masks are of other parameters.
  """
  found = by_path(state)
  learned, fixed = compression_lib.split_learned(state)
  weights = _Weights(params)
  updates, inner = optimizers[0].update(
    weights.gradients(grads[0], found), opt_states[0], params, **(extra or {})
  )
  took = _took(opt_states[0], inner)
  skips = [s.skip for s in state_lib.states(state) if s.skip is not None]
  if skips:
    # This step changes masks: the weights and all memory of them stay.
    skip = jnp.any(jnp.stack(skips))
    updates = _choose(skip, jax.tree.map(jnp.zeros_like, updates), updates)
    inner = _choose(skip, opt_states[0], inner)
    took |= skip
  updates = weights.updates(updates, found)
  moved = live(_sum(params, updates))
  learned, learned_state = _learn(
    optimizers[1], grads[1], opt_states[1], learned, state, took
  )
  step = step + jnp.asarray(took, step.dtype)
  info = compression_lib.Info(step, grads[0], statistics)
  before = compression_lib.merge_learned(learned, fixed)
  state = compression.update(before, moved, info)
  if found:
    # Masks that are due wait for a gradient that can be ranked.
    state = _choose_masks(_finite(grads[0]), state, before)
  later = by_path(state)
  updates = weights.updates(updates, found, later)
  inner = weights.memory(optimizers[0], opt_states[0], inner, found, later)
  return Advanced(updates, (inner, learned_state), state, step)


def live(params: Any) -> Any:
  """The weights that gradients are of: under `optax.lookahead` the fast ones."""
  both = getattr(params, '_fields', ()) == ('fast', 'slow')
  return params.fast if both else params


class _Weights:
  """Masks put on trees that hold arrays of the form of the parameters."""

  def __init__(self, params):
    self.params = params
    self.shapes = {
      path: tuple(x.shape) for path, x in rules_lib.named_leaves(live(params))
    }

  def gradients(self, grads, found):
    """What the optimizer sees: zero at masked weights, or pulled towards zero."""

    def seen(path, g, w):
      s = found.get(path)
      if s is None or (s.rest == 'trained' and not s.pull):
        return g
      rest = s.pull * w.astype(g.dtype) + g if s.pull else jnp.zeros_like(g)
      return jnp.where(s.masks[path], g, rest)

    return rules_lib.map_named(seen, grads, live(self.params))

  def updates(self, updates, found, later=None):
    """Updates that leave masked weights where they are, or set them to zero."""
    later = later or found

    def held(path, u, w):
      own, s = self._state(path, u, found)
      if s is None or s.rest == 'trained':
        return u
      if s.rest == 'kept':
        return jnp.where(s.masks[own], u, jnp.zeros_like(u))
      # Cast up, as -w has to be -w to the last bit.
      u = u.astype(jnp.promote_types(u.dtype, w.dtype))
      return jnp.where(later[own].masks[own], u, -w.astype(u.dtype))

    return rules_lib.map_named(held, updates, self.params)

  def memory(self, tx, before, after, found, later):
    """What is remembered of masked weights, and of those that just came back: zero.

    Copies of the weights themselves (the averages of `schedule_free`, the start of
    `prodigy`) are, where masked weights are kept, kept as well.
    """
    stays = {
      path: s.masks[path] & found[path].masks[path]
      for path, s in later.items()
      if s.rest != 'trained'
    }
    if not stays:
      return after
    copies = _depend(tx.init, self.params)

    def remembered(path, x, old, copy):
      own, s = self._state(path, x, later)
      if own is None and tuple(x.shape) == (self._total(),):
        # optax.flatten: all of them in one vector.
        return jnp.where(self._flat(stays), x, jnp.zeros_like(x))
      if s is None or s.rest == 'trained':
        return x
      gone = old if copy and s.rest == 'kept' else jnp.zeros_like(x)
      return jnp.where(jnp.broadcast_to(stays[own], x.shape), x, gone)

    return rules_lib.map_named(remembered, after, before, copies)

  def _state(self, path, x, found):
    """(path of the parameter that a leaf is about, the state that masks it)."""
    names = path.split('/')
    # The path of a single array, which is no tree, is empty.
    ends = ('/'.join(names[i:]) for i in range(len(names) + 1))
    own = next((end for end in ends if end in self.shapes), None)
    if own is None or own not in found:
      return own, None
    shape = self.shapes[own]
    alike = tuple(x.shape)[max(x.ndim - len(shape), 0) :] == shape
    return own, found[own] if alike else None

  def _total(self):
    return sum(map(math.prod, self.shapes.values()))

  def _flat(self, stays):
    whole = [
      jnp.ravel(stays[path]) if path in stays else jnp.ones(math.prod(n), bool)
      for path, n in self.shapes.items()
    ]
    return jnp.concatenate(whole)


def by_path(state: Any) -> dict[str, state_lib.State]:
  """{path: State} of all leaves that are masked; ValueError if two mask one."""
  found = {}
  for s in state_lib.states(state):
    if both := found.keys() & s.masks.keys():
      raise ValueError(
        f'Two methods mask {min(both)}. Leave it to one of them, by a rule with None'
        ' in the other.'
      )
    found |= dict.fromkeys(s.masks, s)
  return found


def _learn(tx, grads, opt_state, learned, state, took):
  """(what is learned, state of its optimizer) after a step."""
  if not learned:
    return learned, opt_state
  grads = dict(grads)
  for prefix, s in state_lib.named_states(state):
    for path, score in s.scores.items():
      # The derivative of the mean of sigmoid(score), over weights and then leaves.
      name = f'{prefix}scores/{path}'
      p = jax.nn.sigmoid(score.value)
      slope = p * (1 - p) / (p.size * len(s.scores))
      grads[name] += (s.penalty * slope).astype(grads[name].dtype)
  updates, after = tx.update(grads, opt_state, learned)
  moved = _sum(learned, updates)
  if took is True:
    return moved, after
  return _choose(took, moved, learned), _choose(took, after, opt_state)


def _choose_masks(condition, after, before):
  """What pruning remembers: as it is, or before where the condition does not hold."""

  def chosen(new, old):
    return _choose(condition, new, old) if state_lib.is_state(new) else new

  return jax.tree.map(chosen, after, before, is_leaf=state_lib.is_state)


def _finite(grads):
  floats = (
    g for g in jax.tree.leaves(grads) if jnp.issubdtype(g.dtype, jnp.inexact)
  )
  good = [jnp.isfinite(g).all() for g in floats]
  return jnp.all(jnp.stack([jnp.ones((), bool), *good]))


def _took(before, after):
  """Whether the weights moved: not while gradients are added up, nor on NaN."""
  took = True
  named = zip(
    rules_lib.named_leaves(before), rules_lib.named_leaves(after), strict=True
  )
  for (path, old), (_, new) in named:
    # Counters of optax.MultiSteps and optax.apply_if_finite.
    if path.endswith('gradient_step'):
      took &= new != old
    elif path.endswith('last_finite'):
      took &= new
  return took


def _depend(f, params):
  """Which leaves of `f(params)` depend on the values of the parameters."""
  seen = []

  @custom_batching.custom_vmap
  def see(tree):
    return tree

  @see.def_vmap
  def note(axis_size, batched, tree):
    seen.append(batched[0])
    return tree, batched[0]

  # A leaf of which vmap makes a batch depends on what is batched.
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params
  )
  out = jax.eval_shape(jax.vmap(lambda p: see(f(p))), stacked)
  return seen[0] if seen else jax.tree.map(lambda x: False, out)


def _sum(tree, updates):
  return jax.tree.map(lambda x, u: (x + u).astype(x.dtype), tree, updates)


def _choose(condition, yes, no):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
