"""Soft movement: a threshold on learned scores, with a penalty and a floor."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc

RULES = [('w', jc.Sparsity(0.5, end=9, every=1)), ('b', None)]


class SoftMovementTest(absltest.TestCase):
  def test_scores_below_the_threshold_go_down_to_the_target(self):
    comp = jc.methods.soft_movement(RULES, threshold=0.25)
    params = {'w': jnp.ones(4), 'b': jnp.ones(1)}
    for scores, kept in (
      ([1.0, -1.0, -2.0, 0.0], [1, 1, 0, 1]),  # sigmoid(-1) = 0.27
      ([-2.0, -3.0, -4.0, 5.0], [1, 0, 0, 1]),  # half of them stay in any case
    ):
      _, rest = jc.core.split_learned(comp.init(params))
      state = jc.core.merge_learned({'scores/w': jnp.array(scores)}, rest)
      state = comp.update(state, params, jc.Info(1))
      np.testing.assert_array_equal(state.masks['w'], kept)

  def test_the_penalty_is_in_the_gradient_of_scores(self):
    # d/dS of w g-terms and of penalty * mean(sigmoid(S)), by autodiff.
    comp = jc.methods.soft_movement(RULES, penalty=3.0)
    tx = jc.pruning.sparse(optax.set_to_zero(), comp, optax.sgd(1.0))
    params = {'w': jnp.array([1.0, 2.0, -1.0, 0.5]), 'b': jnp.ones(1)}
    grads = {'w': jnp.array([0.1, 0.2, 0.3, 0.4]), 'b': jnp.ones(1)}
    state = tx.init(params)

    def loss(s):
      return jnp.sum(s * params['w'] * grads['w']) + 3 * jnp.mean(
        jax.nn.sigmoid(s)
      )

    want = jnp.zeros(4)
    for _ in range(3):
      _, state = tx.update(grads, state, params)
      want = want - jax.grad(loss)(want)
      got = state.method.scores['w'].value
      np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_numbers_out_of_range(self):
    for numbers in (dict(threshold=0.6), dict(penalty=-1.0)):
      with self.assertRaisesRegex(ValueError, 'threshold in'):
        jc.methods.soft_movement(RULES, **numbers)


if __name__ == '__main__':
  absltest.main()
