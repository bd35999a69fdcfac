"""SR-STE: the equation of its update, under SGD."""

from absl.testing import absltest
import in_out
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc


class SrSteTest(absltest.TestCase):
  def test_its_update(self):
    # w - rate (g + decay (1 - mask) w): eq. 9 of Zhou et al. 2021.
    rules = [('w', jc.Sparsity(kind='n_m', n=2, m=4, end=9))]
    tx = jc.pruning.sparse(
      optax.sgd(0.1), jc.methods.sr_ste(rules, in_out.IN_OUT, decay=0.5)
    )
    w, g = jax.random.normal(jax.random.key(0), (2, 8, 4))
    state = tx.init({'w': w})
    for _ in range(3):
      mask = state.method.masks['w']
      updates, state = tx.update({'w': g}, state, {'w': w})
      want = w - 0.1 * (g + 0.5 * jnp.where(mask, 0, w))
      w = w + updates['w']
      np.testing.assert_allclose(w, want, rtol=1e-6)

  def test_a_decay_that_is_none(self):
    with self.assertRaisesRegex(ValueError, 'decay=-1'):
      jc.methods.sr_ste([], decay=-1)


if __name__ == '__main__':
  absltest.main()
