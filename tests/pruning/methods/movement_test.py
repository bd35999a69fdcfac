"""Movement: what moves away from zero stays, whatever its size."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc


class MovementTest(absltest.TestCase):
  def test_what_grows_stays(self):
    rules = [('w', jc.Sparsity(0.5, end=4, every=1, schedule='constant'))]
    with self.assertWarnsRegex(UserWarning, 'order alone'):  # scores are zero
      comp = jc.methods.movement(rules)
      tx = jc.pruning.sparse(optax.sgd(0.1), comp, optax.sgd(1.0))
      params = {'w': jnp.array([5.0, 0.1, -5.0, -0.1])}
      state = tx.init(params)
    # Descent moves the small ones away from zero, and the large ones towards it.
    grads = {'w': jnp.array([1.0, -1.0, -1.0, 1.0])}
    for _ in range(4):
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    self.assertEqual(
      state.method.masks['w'].tolist(), [False, True, False, True]
    )

  def test_scores_get_the_same_gradient_through_the_leaf(self):
    comp = jc.methods.movement([('w', jc.Sparsity(0.5, end=4))])
    params = {'w': jnp.array([5.0, 0.1, -5.0, -0.1])}
    learned, rest = jc.core.split_learned(comp.init(params))
    self.assertEqual(list(learned), ['scores/w'])

    def loss(params, learned):
      state = jc.core.merge_learned(learned, rest)
      leaf = comp.apply(params, state)['w']
      return jnp.sum(leaf.materialize() ** 2) / 2

    grads = jax.grad(loss, 1)(params, learned)
    np.testing.assert_allclose(grads['scores/w'], params['w'] ** 2, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
