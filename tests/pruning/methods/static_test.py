"""Masks that never change: at random, or by score."""

from absl.testing import absltest
import in_out
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc


class StaticTest(absltest.TestCase):
  def test_they_stay_whatever_the_weights_do(self):
    comp = jc.methods.static([('w', jc.Sparsity(0.75, end=9, every=1))])
    params = {'w': jnp.arange(16.0)}
    state = comp.init(params)
    later = comp.update(state, {'w': -params['w']}, jc.Info(5))
    np.testing.assert_array_equal(later.masks['w'], state.masks['w'])
    self.assertEqual(int(state.masks['w'].sum()), 4)
    self.assertEqual(int(later.step), 5)

  def test_by_score_without_a_seed(self):
    comp = jc.methods.static([('w', jc.Sparsity(0.75))], seed=None)
    mask = comp.init({'w': jnp.array([3.0, -9.0, 1.0, 2.0])}).masks['w']
    self.assertEqual(mask.tolist(), [False, True, False, False])

  def test_random_groups_keep_n_of_m(self):
    rules = [('w', jc.Sparsity(kind='n_m', n=2, m=4))]
    comp = jc.methods.static(rules, in_out.IN_OUT)
    mask = comp.init({'w': jnp.ones((8, 4))}).masks['w']
    np.testing.assert_array_equal(mask.reshape(2, 4, 4).sum(1), 2)


if __name__ == '__main__':
  absltest.main()
