"""Straight-through masks: a masked weight can learn its way back."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc

RULES = [('w', jc.Sparsity(0.5, end=50, schedule='constant'))]


class StraightThroughTest(absltest.TestCase):
  def test_a_masked_weight_comes_back_and_gradual_keeps_it(self):
    returned = {}
    for name in ('straight_through', 'gradual'):
      tx = jc.pruning.sparse(optax.sgd(0.1), getattr(jc.methods, name)(RULES))
      params = {'w': jnp.array([1.0, 0.5])}
      state, grads = tx.init(params), {'w': jnp.array([0.0, -1.0])}
      for _ in range(9):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
      returned[name] = state.method.masks['w'].tolist()
      if name == 'gradual':
        np.testing.assert_array_equal(params['w'], [1.0, 0.5])
    self.assertEqual(
      returned,
      {'straight_through': [False, True], 'gradual': [True, False]},
    )


if __name__ == '__main__':
  absltest.main()
