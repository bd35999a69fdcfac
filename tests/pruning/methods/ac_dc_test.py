"""AC/DC: phases by turns, and weights that return from zero."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc


class AcDcTest(parameterized.TestCase):
  @parameterized.parameters(
    #                      step  0123456789
    (dict(begin=2, end=8, every=2), '--##--####'),
    (dict(begin=0, end=6, every=3), '###---####'),
    (dict(begin=0, end=5, every=2), '##--######'),
    (dict(begin=4, end=4, every=1), '----######'),
  )
  def test_phases(self, when, drawn):
    comp = jc.methods.ac_dc([('w', jc.Sparsity(0.5, **when))])
    params = {'w': jnp.arange(8.0)}
    state = comp.init(params)
    seen = '-#'[int((~state.masks['w']).any())]
    for step in range(1, 10):
      state = comp.update(state, params, jc.Info(step))
      seen += '-#'[int((~state.masks['w']).any())]
    self.assertEqual(seen, drawn)

  def test_weights_return_from_zero(self):
    comp = jc.methods.ac_dc([('w', jc.Sparsity(0.5, end=8, every=2))])
    tx = jc.pruning.sparse(optax.adam(0.5), comp)
    params = {'w': jnp.array([1.0, 2.0, 3.0, 4.0])}
    state, grads = tx.init(params), {'w': -jnp.ones(4)}
    seen = []
    for _ in range(3):
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      seen.append(params['w'])
    # Dense from step 2 on: the two that were masked are 0, and then take a full step.
    np.testing.assert_array_equal(seen[0] == 0, [1, 1, 0, 0])
    np.testing.assert_array_equal(state.method.masks['w'], [1, 1, 1, 1])
    np.testing.assert_array_equal(seen[1] == 0, [1, 1, 0, 0])
    self.assertGreater(float(seen[2][:2].min()), 0.2)


if __name__ == '__main__':
  absltest.main()
