"""Penalties in a stage: values, gradients by hand, and where they are drawn to."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import penalty
from jaxopt_compress.train.step import loss as loss_lib
from jaxopt_compress.train.step import state as state_lib
from jaxopt_compress.train.step import train_step as train_step_lib

PARAMS = {
  'b': jnp.float32([[1.0]]),
  'w': jnp.float32([[3.0, 0.0], [4.0, -1.0]]),
}
KEY = jax.random.key(0)


def _apply(params, variables, x, train, rngs):
  return x @ params['w'] + params['b'], None, variables


def _loss(seen):
  y, _ = seen.outputs
  return {'hard': loss_lib.Part(jnp.sum(y), jnp.float32(y.size))}


def _stepped(said, state=None, steps=1):
  """(state, metrics) after steps of SGD with rate 1."""
  sgd = optax.sgd(1.0)
  step = train_step_lib.train_step(
    _apply, penalty.added(_loss, said), sgd, inputs='x'
  )
  state = state or state_lib.create(
    PARAMS, {}, KEY, sgd, origins=penalty.origins(said, PARAMS)
  )
  for _ in range(steps):
    state, metrics = step(state, {'x': jnp.zeros((1, 2))}, step_lib.Replicas())
  return state, metrics


class PenaltyTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('l1', 'l1', 8.0, [[1, 0], [1, -1]]),
    ('l2', 'l2', 26.0, [[6, 0], [8, -2]]),
    # Columns of norm 5 and 1, each of two entries.
    (
      'group_lasso',
      'group_lasso',
      np.sqrt(2) * 6,
      np.sqrt(2) * np.array([[0.6, 0], [0.8, -1]]),
    ),
  )
  def test_what_is_added(self, word, value, gradient):
    said = options.Penalty(rules=(('w', word), ('.*', None)), weight=0.5)
    state, metrics = _stepped(said)
    np.testing.assert_allclose(metrics['penalty'], value, rtol=1e-6)
    np.testing.assert_allclose(
      metrics['loss'], metrics['hard'] + 0.5 * value, rtol=1e-6
    )
    np.testing.assert_allclose(
      PARAMS['w'] - state.params['w'], 0.5 * np.array(gradient), rtol=1e-5
    )
    self.assertEqual(state.origins, {})

  @parameterized.named_parameters(
    ('sum', 'l2_sp'),
    ('mean', 'towards'),
  )
  def test_drawn_to_the_start(self, word):
    said = options.Penalty(rules=(('b', word), ('.*', None)), weight=0.1)
    state, first = _stepped(said)
    self.assertEqual(float(first['penalty']), 0.0)
    self.assertEqual(list(state.origins), ['b'])
    # The derivative of the loss moves the bias by 0.5, as y has two entries: 1.
    state, second = _stepped(said, state)
    self.assertEqual(float(second['penalty']), 1.0)
    np.testing.assert_array_equal(state.origins['b'], PARAMS['b'])

  def test_the_sum_of_two_is_not_its_mean(self):
    values = []
    for word in ('towards', 'l2_sp'):
      said = options.Penalty(rules=(('w', word), ('.*', None)), weight=1.0)
      moved = {'w': PARAMS['w'] + 2, 'b': PARAMS['b']}
      seen = loss_lib.Seen(
        (jnp.ones(2), None),
        None,
        (),
        0,
        params=moved,
        origins=penalty.origins(said, PARAMS),
      )
      values.append(float(penalty.added(_loss, said)(seen)['penalty'].sum))
    self.assertEqual(values, [4.0, 16.0])

  def test_origins_are_no_constants(self):
    said = options.Penalty(rules=(('.*', 'l2_sp'),), weight=0.1)
    sgd = optax.sgd(1.0)
    step = train_step_lib.train_step(
      _apply, penalty.added(_loss, said), sgd, inputs='x'
    )
    state = state_lib.create(
      PARAMS, {}, KEY, sgd, origins=penalty.origins(said, PARAMS)
    )
    closed = jax.make_jaxpr(lambda s, b: step(s, b, step_lib.Replicas()))(
      state, {'x': jnp.zeros((1, 2))}
    )
    self.assertEmpty([c for c in closed.consts if np.size(c) > 1])

  @parameterized.named_parameters(
    ('typo', (('.*', 'l_2'),), 1.0, "'l2'"),
    ('no pair', ('l2',), 1.0, 'a pair'),
    ('no start', (('.*', 'l2_sp'),), 1.0, 'without init that is random'),
    ('no weight', (('.*', 'l2'),), 0.0, 'Set penalty_weight'),
  )
  def test_refused(self, rules, weight, message):
    with self.assertRaisesRegex(ValueError, message):
      penalty.check('here', options.Penalty(rules=rules, weight=weight), '')


if __name__ == '__main__':
  absltest.main()
