"""RigL: what goes, what comes, and that the optimizer rests meanwhile."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc

RULES = [('w', jc.Sparsity(0.5, end=100, every=2))]


def drawn(state):
  return ''.join('.#'[int(m)] for m in state.masks['w'])


class RiglTest(absltest.TestCase):
  def test_drawn(self):
    comp = jc.methods.rigl(RULES, drop=0.7, seed=None)
    #             kept, largest         masked
    w = jnp.array([9.0, -8.0, 1.0, 2.0, 0.3, 0.2, 0.1, 0.0])
    g = jnp.array([0.0, 0.00, 7.0, 0.0, 0.0, -9.0, 5.0, 0.0])
    state = comp.init({'w': w})
    self.assertEqual(drawn(state), '####....')
    self.assertFalse(state.skip)
    state = comp.update(state, {'w': w}, jc.Info(1, {'w': g}))
    self.assertEqual(drawn(state), '####....')
    self.assertTrue(state.skip)  # the next one changes masks
    # 1.2 of 4 stay, so 9 alone; |g| brings one that was just dropped back.
    state = comp.update(state, {'w': w}, jc.Info(2, {'w': g}))
    self.assertEqual(drawn(state), '#.#..##.')
    self.assertFalse(state.skip)

  def test_weights_rest_while_masks_change_and_new_ones_are_zero(self):
    tx = jc.pruning.sparse(optax.adam(0.1), jc.methods.rigl(RULES))
    params = {'w': jnp.arange(1.0, 9.0)}
    state = tx.init(params)
    grads = {'w': jnp.cos(jnp.arange(8.0))}
    changed = 0
    for step in range(1, 7):
      old, old_params, old_inner = state.method.masks['w'], params, state.inner
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      mask = state.method.masks['w']
      if step % 2:
        np.testing.assert_array_equal(mask, old)
        self.assertTrue((params['w'] != old_params['w'])[mask].all())
        continue
      changed += int((mask != old).sum())
      both, new = mask & old, mask & ~old
      np.testing.assert_array_equal(
        params['w'], jnp.where(both, old_params['w'], 0)
      )
      self.assertEqual(int(state.inner[0].count), int(old_inner[0].count))
      for moment in (state.inner[0].mu['w'], state.inner[0].nu['w']):
        self.assertEqual(float(jnp.abs(moment[new]).sum()), 0)
        self.assertTrue((moment[both] != 0).all())
    self.assertGreater(changed, 0)

  def test_single_weights_are_exchanged(self):
    with self.assertRaisesRegex(ValueError, "kind='neurons'"):
      jc.methods.rigl([('w', jc.Sparsity(0.5, kind='neurons'))])


if __name__ == '__main__':
  absltest.main()
