"""Any optimizer, of parameters of which some are masked.

    tx = jc.pruning.sparse(optax.adamw(1e-3), jc.methods.rigl(rules))      one line more
    loss(jc.pruning.masked(params, opt_state))                             and another

`sparse` puts a method and an optimizer together, and `masked` gives the parameters as
the forward pass sees them. What happens in a step is in `advance`, which the trainer
calls as well.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import advance
from jaxopt_compress.pruning import masked_array as leaf
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning import state as state_lib


class SparseState(NamedTuple):
  """The state of an optimizer under `sparse`.

  Attributes:
    step: scalar int32, steps done; gradients that are accumulated make one together.
    inner: of the optimizer.
    scores: of the optimizer of learned scores; () where none are learned.
    method: of the method, with its masks.
    left: scalar float32, the largest weight that the last step set to zero.
    grown: scalar int32, for how many steps in a row it has come back larger.
  """

  step: jax.Array
  inner: Any
  scores: Any
  method: Any
  left: jax.Array
  grown: jax.Array


def sparse(
  tx: Any, method: compression_lib.Compression, scores: Any = None
) -> Any:
  """An optimizer that trains under the masks of a method.

  Args:
    tx: an optax `GradientTransformation`. What changes updates, such as `optax.scale`
      by a learning rate, belongs inside (here): outside it would change -w, which
      sets a masked weight to zero, as well. Wrappers that take or leave whole steps
      may be outside. `optax.MultiSteps` belongs outside: inside, methods see the
      gradient of the last batch alone where they would see the mean.
    method: of `pruning.methods`, or a `jc.chain` of several for different leaves.
    scores: the optimizer of the scores of a method that learns some (`movement`).

  Returns:
    An optimizer of the type of `tx`, which passes further arguments on to it. Train
    on `loss(jc.pruning.masked(params, opt_state))`. Where the method says so, masked weights
    are zeros in `params` after the first step; otherwise they are what they were.
    If something outside makes them grow instead, updates become NaN under jit, where
    no error can be raised.

  Raises:
    ValueError: at `init`: as for the method; it does more than masking; it learns
      scores and `scores` is None; or two methods mask one leaf. At `update`: masked
      weights grow.

  >>> import optax
  >>> from jaxopt_compress.pruning import methods
  >>> tx = sparse(optax.sgd(1.0), methods.gradual([(r'w', 0.5)]))
  >>> params = {'w': jnp.array([3., 1.])}
  >>> updates, opt_state = tx.update(params, tx.init(params), params)
  >>> updates['w'].tolist(), masked(params, opt_state)['w'].tolist()
  ([-3.0, 0.0], [3.0, 0.0])
  """
  if hasattr(tx, 'gradient_transformation'):
    tx = tx.gradient_transformation()

  def init(params):
    state = method.init(advance.live(params))
    _check(method, advance.live(params), state, scores)
    learned, _ = compression_lib.split_learned(state)
    return SparseState(
      step=jnp.zeros((), jnp.int32),
      inner=tx.init(params),
      scores=scores.init(learned) if learned else (),
      method=state,
      left=jnp.zeros((), jnp.float32),
      grown=jnp.zeros((), jnp.int32),
    )

  def update(grads, state, params=None, **extra):
    if params is None:
      raise ValueError(
        'Masks need the weights that they lie on: tx.update(grads, opt_state,'
        ' params).'
      )
    weights = advance.live(params)
    # Weights that were zero, and are not, were set by the user: no growth.
    grows = (state.left > 0) & (_largest(weights, state.method) > state.left)
    grown = jnp.where(grows, state.grown + 1, 0)
    done = advance.advance(
      (tx, scores),
      method,
      (grads, _of_scores(state.method, grads, weights)),
      (state.inner, state.scores),
      params,
      state.method,
      state.step,
      extra=extra,
    )
    left = _largest(weights, done.state)
    after = SparseState(done.step, *done.opt_states, done.state, left, grown)
    return _refuse_growth(done.updates, grown), after

  return tx._replace(init=init, update=update)


def masked(params: Any, opt_state: Any) -> Any:
  """The parameters under the masks that an optimizer's state holds.

  Args:
    params: a tree of arrays.
    opt_state: of an optimizer with `sparse` at any depth.

  Returns:
    The tree of arrays with its zeros. Its derivative by `params` is what the method
    asks for, zero at masked weights or dense: take the gradient through this.

  Raises:
    ValueError: no masks in the state, or masks of other parameters.
  """
  found = state_lib.states(opt_state)
  if not found:
    raise ValueError(
      f'No masks in a state of type {type(opt_state).__name__}. Pass the state of an'
      ' optimizer that was made by jc.pruning.sparse(tx, method).'
    )
  for state in found:
    # Scores learn from what masked weights would change, which `update` is not told
    # by a gradient that is zero there.
    gradient = 'dense' if state.scores else state.gradient
    params = masking.apply_masks(params, state.masks, gradient)
  return array.materialize(params)


def _largest(params, method):
  """The largest of the masked weights that a method wants to be zero."""
  found, largest = advance.by_path(method), jnp.zeros((), jnp.float32)
  for path, w in rules_lib.named_leaves(params):
    if path in found and found[path].rest == 'zero':
      gone = jnp.where(found[path].masks[path], 0, jnp.abs(w))
      largest = jnp.maximum(largest, gone.max(initial=0).astype(jnp.float32))
  return largest


def _refuse_growth(updates, grown):
  """The updates, or NaN where masked weights have grown for two steps."""
  # Once is no proof: `optax.lookahead` outside goes back to slow weights.
  bad = grown > 1
  if not isinstance(bad, jax.core.Tracer) and bad:
    raise ValueError(
      'Masked weights grow where they should be zero: something around jc.pruning.sparse'
      ' changes its updates. Put it inside:'
      ' jc.pruning.sparse(optax.chain(optax.scale_by_adam(), optax.scale(-1e-3)), method).'
    )
  return jax.tree.map(lambda u: jnp.where(bad, jnp.nan, u), updates)


def _of_scores(tree, grads, params):
  """Gradients of learned scores: w dy/dw, as if they multiplied the weights."""
  grads = dict(rules_lib.named_leaves(grads))
  params = dict(rules_lib.named_leaves(params))

  def scored(state):
    if not state_lib.is_state(state):
      return state
    products = {
      path: compression_lib.Learned(
        grads[path].astype(s.value.dtype) * params[path].astype(s.value.dtype)
      )
      for path, s in state.scores.items()
    }
    return dataclasses.replace(state, scores=products)

  products = jax.tree.map(scored, tree, is_leaf=state_lib.is_state)
  return compression_lib.split_learned(products)[0]


def _check(method, params, state, scores):
  seen = jax.eval_shape(method.apply, params, state)
  other = [
    f'{path} {x.describe()}'
    for path, x in rules_lib.named_leaves(seen)
    if array.is_compressed(x)
    and (not isinstance(x, leaf.Masked) or array.is_compressed(x.value))
  ]
  found = advance.by_path(state)
  if other or not found:
    raise ValueError(
      f'jc.pruning.sparse masks weights, and this masks {len(found)} leaves and makes'
      f' {other[:3]}. Give it a method of jc.methods with rules that prune, and apply'
      ' the rest to what jc.pruning.masked returns: jc.fake_quantize(...).apply(jc.pruning.masked('
      'params, opt_state), state).'
    )
  learns = any(s.scores for s in found.values())
  if learns and scores is None:
    raise ValueError(
      'Scores are learned by an optimizer of their own: jc.pruning.sparse(tx, method,'
      ' scores=optax.sgd(1.0)).'
    )
  if scores is not None and not learns:
    raise ValueError('This method learns no scores. Leave out scores=.')
