"""Masks under every optimizer of optax: weights, gradients and memory agree."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizers_of_optax as of_optax
import pytest

import jaxopt_compress as jc
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning import state as state_lib

KEYS = jax.random.split(jax.random.key(0), 8)
SHAPES = {'w': (4, 6), 'b': (6,)}
PARAMS, *GRADS = [
  {p: jax.random.normal(k, n) for p, n in SHAPES.items()} for k in KEYS[:4]
]
# All weights come back in the third step.
MASKS = [jax.random.bernoulli(k, 0.5, (4, 6)) for k in KEYS[4:7]]
MASKS = jnp.stack([*MASKS[:2], jnp.ones((4, 6), bool), MASKS[2]])


def alternating(rest):
  """A method whose masks are `MASKS`, one a step."""

  def state(step):
    return state_lib.State(step, {'w': MASKS[step]}, rest=rest)

  return jc.Compression(
    init=lambda params: state(jnp.int32(0)),
    apply=lambda params, state: masking.apply_masks(params, state.masks),
    update=lambda old, params, info: state(info.step),
  )


def value(params, **kwargs):
  return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


# What some want to be told in a step.
TOLD = {
  'momo': dict(value=1.0),
  'momo_adam': dict(value=1.0),
  'polyak_sgd': dict(value=1.0),
  'scale_by_polyak': dict(value=1.0),
  'reduce_on_plateau': dict(value=1.0),
  'sophia': dict(obj_fn=value),
  'hutchinson_estimator_diag_hessian': dict(obj_fn=value),
  **dict.fromkeys(
    (
      'lbfgs',
      'scale_by_backtracking_linesearch',
      'scale_by_zoom_linesearch',
    ),
    dict(value=1.0, grad=GRADS[0], value_fn=value),
  ),
}
# Their steps of one leaf depend on the gradients of another.
COUPLED = {
  'clip_by_global_norm',
  'flatten',  # what XLA computes in one vector may differ in the last bit
  'lbfgs',
  'mechanize',
  'momo',
  'momo_adam',
  'normalize',
  'normalize_by_update_norm',
  'polyak_sgd',
  'scale_by_lbfgs',
  'scale_by_polyak',
  'scale_by_backtracking_linesearch',
  'scale_by_zoom_linesearch',
}
# Their own state changes its types in the first step.
RETYPED = {
  'lbfgs',
  'scale_by_backtracking_linesearch',
  'scale_by_zoom_linesearch',
}
# They promote ranks, which is an error here.
PROMOTES = {'scale_by_distance_over_gradients'}
# What they remember of a weight is no number of its own.
FOLDED = {'galore': 'moments are projected', 'scale_by_galore': 'as well'}


def started(name):
  if name == 'lookahead':
    return optax.LookaheadParams.init_synced(PARAMS)
  return PARAMS


def weights(params):
  """The trees of weights in what an optimizer calls parameters."""
  return [*params] if isinstance(params, optax.LookaheadParams) else [params]


class EveryOptimizerTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _quickly(self):
    # What is compiled here runs for three steps: compiling is all that takes time.
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)

  @parameterized.named_parameters(
    (f'_{name}', name)
    for name in sorted(of_optax.names().keys() - of_optax.NOT_HERE)
  )
  def test_masks_weights_and_memory_agree(self, name):
    plain = of_optax.make(name)
    tx = jc.pruning.sparse(plain, alternating('zero'))
    told = TOLD.get(name, {})

    @jax.jit
    def step(params, state, others, plain_state, grads):
      updates, state = tx.update(grads, state, params, **told)
      params = optax.apply_updates(params, updates)
      updates, plain_state = plain.update(grads, plain_state, others, **told)
      others = optax.apply_updates(others, updates)
      return params, state, others, plain_state

    carry = started(name), tx.init(started(name))
    carry += started(name), plain.init(started(name))
    mask = MASKS[0]
    promotion = 'allow' if name in PROMOTES else 'raise'
    for grads in GRADS:
      with jax.numpy_rank_promotion(promotion):
        carry = step(*carry, grads)
      params, state, others, _ = carry
      before, mask = mask, state.method.masks['w']
      for mine, theirs in zip(weights(params), weights(others), strict=True):
        np.testing.assert_array_equal(jnp.where(mask, 0, mine['w']), 0)
        if name not in COUPLED:
          np.testing.assert_array_equal(mine['b'], theirs['b'])
      for path, x in jc.rules.named_leaves(state.inner):
        if x.shape[-2:] == (4, 6) and name not in FOLDED:
          gone = jnp.where(mask & before, 0, x)
          np.testing.assert_array_equal(gone, 0, path)
    self.assertEqual(step._cache_size(), 1 + (name in RETYPED))


def steps(tx, params, grads, jit=True):
  """(params, state) after each step."""
  state, seen = tx.init(params), []
  update = jax.jit(tx.update) if jit else tx.update
  for g in grads:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
    seen.append((params, state))
  return seen


def halves(**when):
  return [('w', jc.Sparsity(0.5, **when)), ('b', None)]


class SparseTest(parameterized.TestCase):
  def test_an_existing_loop(self):
    x = jax.random.normal(KEYS[7], (8, 4))

    def loss(params):
      return jnp.mean(jnp.square(jnp.tanh(x @ params['w']) + params['b'][None]))

    tx = jc.pruning.sparse(
      optax.adamw(0.1), jc.methods.rigl(halves(end=9, every=3))
    )

    @jax.jit
    def step(params, opt_state):
      grads = jax.grad(lambda p: loss(jc.pruning.masked(p, opt_state)))(params)
      updates, opt_state = tx.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state, grads

    params, opt_state = PARAMS, tx.init(PARAMS)
    masks = {opt_state.method.masks['w'].tobytes()}
    for _ in range(10):
      params, opt_state, grads = step(params, opt_state)
      mask = opt_state.method.masks['w']
      masks.add(np.asarray(mask).tobytes())
      self.assertEqual(int(mask.sum()), 12)
      self.assertEqual(
        int((grads['w'] == 0).sum()), 0
      )  # dense, as it grows by it
      np.testing.assert_array_equal(jnp.where(mask, 0, params['w']), 0)
      np.testing.assert_array_equal(
        jnp.where(mask, 0, opt_state.inner[0].mu['w']), 0
      )
    self.assertGreater(len(masks), 2)
    self.assertEqual(step._cache_size(), 1)

  @parameterized.parameters(
    (optax.adamw(0.1, weight_decay=0.1),),
    (optax.contrib.schedule_free_adamw(0.1),),
    (optax.contrib.prodigy(),),
  )
  def test_kept_weights_do_not_move_nor_their_copies(self, tx):
    before = PARAMS
    first = tx.init(PARAMS)
    for params, state in steps(
      jc.pruning.sparse(tx, alternating('kept')), PARAMS, GRADS
    ):
      gone = ~MASKS[state.step - 1]
      np.testing.assert_array_equal(
        params['w'][gone], before['w'][gone], str(state.step)
      )
      self.assertTrue((params['w'] != before['w'])[~gone].all())
      before = params
      if hasattr(state.inner, 'z'):
        never = gone & ~MASKS[0] & ~MASKS[1]
        np.testing.assert_array_equal(
          state.inner.z['w'][never], first.z['w'][never]
        )

  def test_trained_weights_take_the_steps_of_the_optimizer(self):
    tx = optax.adam(0.1)
    plain = steps(tx, PARAMS, GRADS)[-1]
    got = steps(jc.pruning.sparse(tx, alternating('trained')), PARAMS, GRADS)[
      -1
    ]
    jax.tree.map(np.testing.assert_array_equal, got[0], plain[0])
    jax.tree.map(np.testing.assert_array_equal, got[1].inner, plain[1])

  @parameterized.parameters('inside', 'outside')
  def test_accumulated_gradients_are_one_step(self, where):
    method = jc.methods.rigl(halves(end=4, every=1))
    tx = optax.MultiSteps(optax.sgd(0.1), 2)
    if where == 'inside':
      tx = jc.pruning.sparse(tx, method)
    else:
      tx = optax.MultiSteps(jc.pruning.sparse(optax.sgd(0.1), method), 2)
    seen = steps(tx, PARAMS, [*GRADS, *GRADS])
    clock = [int(state_lib.states(s)[0].step) for _, s in seen]
    # Inside, a step that changes masks takes the gradient of one batch.
    want = {'inside': [1, 2, 3, 4, 4, 5], 'outside': [0, 1, 1, 2, 2, 3]}
    self.assertEqual(clock, want[where])

  def test_what_is_not_finite_is_no_step(self):
    method = jc.methods.sr_ste(halves(end=4))
    tx = jc.pruning.sparse(optax.apply_if_finite(optax.sgd(0.1), 3), method)
    bad = {'w': GRADS[0]['w'] * jnp.nan, 'b': GRADS[0]['b']}
    seen = steps(tx, PARAMS, [GRADS[0], bad, GRADS[1]])
    self.assertEqual([int(s.step) for _, s in seen], [1, 1, 2])
    jax.tree.map(np.testing.assert_array_equal, seen[0][0], seen[1][0])

  @parameterized.parameters(False, True)
  def test_masks_wait_for_a_finite_gradient(self, inside):
    tx = optax.sgd(0.1)
    tx = optax.apply_if_finite(tx, 3) if inside else tx
    tx = jc.pruning.sparse(tx, jc.methods.rigl(halves(end=9, every=2)))
    bad = jax.tree.map(lambda g: g * jnp.nan, GRADS[0])
    seen = steps(tx, PARAMS, [GRADS[0], bad, GRADS[0]])
    a, b, c = (np.asarray(s.method.masks['w']) for _, s in seen)
    self.assertEqual(a.tolist(), b.tolist())
    self.assertNotEqual(b.tolist(), c.tolist())

  def test_one_array_is_a_tree_as_well(self):
    method = jc.methods.rigl([('.*', jc.Sparsity(0.5, end=9, every=2))])
    grads = [g['w'] for g in GRADS]
    tx = jc.pruning.sparse(optax.adam(0.1), method)
    for params, state in steps(tx, PARAMS['w'], grads):
      gone = ~state.method.masks['']
      np.testing.assert_array_equal(params[gone], 0)
      np.testing.assert_array_equal(state.inner[0].mu[gone], 0)

  def test_one_of_the_parts_of_a_network(self):
    mine = jc.pruning.sparse(
      optax.sgd(0.1), jc.methods.static([('w', jc.Sparsity(0.5))])
    )
    tx = optax.multi_transform(
      {'a': mine, 'b': optax.sgd(0.1)}, of_optax.LABELS
    )
    params, state = steps(tx, PARAMS, GRADS)[-1]
    self.assertEqual(int((params['w'] == 0).sum()), 12)
    seen = jc.pruning.masked(PARAMS, state)
    np.testing.assert_array_equal(seen['w'] == 0, params['w'] == 0)
    self.assertIs(seen['b'], PARAMS['b'])

  def test_arguments_are_passed_on(self):
    method = jc.methods.static(halves())
    told = jc.pruning.sparse(optax.polyak_sgd(), method)
    self.assertIsInstance(told, optax.GradientTransformationExtraArgs)
    state = told.init(PARAMS)
    with self.assertRaisesRegex(TypeError, 'value'):
      told.update(GRADS[0], state, PARAMS)
    told.update(GRADS[0], state, PARAMS, value=1.0)
    chained = optax.chain(optax.clip(1.0), told)
    chained.update(GRADS[0], chained.init(PARAMS), PARAMS, value=1.0)

  @parameterized.parameters('float32', 'bfloat16')
  def test_learned_scores_follow_their_equation(self, dtype):
    # S = - rate * sum of w g: eq. 5 of Sanh et al. 2020, with w that stay.
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    grads = jax.tree.map(lambda x: x.astype(dtype), GRADS[0])
    method = jc.methods.movement(halves(end=9, every=3))
    tx = jc.pruning.sparse(optax.set_to_zero(), method, optax.sgd(0.5))
    _, state = steps(tx, params, [grads] * 2)[-1]
    [found] = state_lib.states(state)
    got = found.scores['w'].value
    w, g = (np.float32(x['w']) for x in (params, grads))
    self.assertEqual(got.dtype, jnp.float32)
    np.testing.assert_allclose(got, -2 * 0.5 * w * g, rtol=1e-5)

  @parameterized.parameters(
    ('the weights', dict(params=None), 'Masks need the weights'),
  )
  def test_weights_are_needed(self, _, how, message):
    tx = jc.pruning.sparse(optax.sgd(0.1), jc.methods.static(halves()))
    with self.assertRaisesRegex(ValueError, message):
      tx.update(GRADS[0], tx.init(PARAMS), **how)

  def test_masked_weights_that_something_outside_makes_grow(self):
    tx = jc.pruning.sparse(optax.scale_by_adam(), jc.methods.static(halves()))
    tx = optax.chain(tx, optax.scale(-0.1))
    params = steps(tx, PARAMS, GRADS[:1] * 4)[-1][0]
    self.assertTrue(jnp.isnan(params['w']).all())
    with self.assertRaisesRegex(ValueError, 'Put it inside'):
      steps(tx, PARAMS, GRADS[:1] * 4, jit=False)

  def test_mistakes(self):
    static = jc.methods.static(halves())
    rounding = jc.fake_quantize(
      [('w', 'int8'), ('b', None)], uses=in_out.IN_OUT
    )
    for method, scores, message in (
      (jc.chain(static, rounding), None, "masks 1 leaves and makes .'w"),
      (rounding, None, "masks 0 leaves and makes .'w"),
      (jc.methods.movement(halves(end=9)), None, 'scores=optax'),
      (static, optax.sgd(1.0), 'learns no scores'),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        jc.pruning.sparse(optax.sgd(0.1), method, scores).init(PARAMS)
    twice = jc.pruning.sparse(optax.sgd(0.1), jc.chain(static, static))
    with self.assertRaisesRegex(ValueError, 'Two methods mask w'):
      twice.init(PARAMS)
    with self.assertRaisesRegex(ValueError, 'No masks in a state of type'):
      jc.pruning.masked(PARAMS, optax.sgd(0.1).init(PARAMS))


if __name__ == '__main__':
  absltest.main()
