"""One step under masks: what is found, and what stays plain."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc
from jaxopt_compress.pruning import advance
from jaxopt_compress.pruning import state as state_lib

PARAMS = {'a': {'w': jnp.array([1.0, 2.0])}, 'w': jnp.array([3.0, 4.0])}


def one(method, params=PARAMS, tx=None, grads=None):
  tx = tx or optax.adam(0.1)
  grads = grads or jax.tree.map(jnp.ones_like, advance.live(params))
  state = method.init(advance.live(params))
  return advance.advance(
    (tx, optax.sgd(0.1)),
    method,
    (grads, {}),
    (tx.init(params), ()),
    params,
    state,
    jnp.int32(0),
  )


class AdvanceTest(parameterized.TestCase):
  def test_without_masks_it_is_a_plain_step(self):
    done = one(jc.chain())
    tx = optax.adam(0.1)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    updates, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, done.updates, updates)
    jax.tree.map(np.testing.assert_array_equal, done.opt_states[0], state)
    self.assertEqual(int(done.step), 1)

  def test_the_longest_name_is_meant(self):
    # 'w' is the end of 'a/w' as well; only the outer one is masked.
    method = jc.methods.static([('w', jc.Sparsity(0.5)), ('a/w', None)])
    done = one(method)
    mu = done.opt_states[0][0].mu
    self.assertEqual((mu['a']['w'] == 0).tolist(), [False, False])
    self.assertEqual(int((mu['w'] == 0).sum()), 1)

  def test_fast_and_slow_weights_are_masked_alike(self):
    tx = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    method = jc.methods.static([('w', jc.Sparsity(0.5)), ('a/w', None)])
    done = one(method, params, tx)
    moved = optax.apply_updates(params, done.updates)
    for tree in moved:
      np.testing.assert_array_equal(tree['w'] == 0, ~done.state.masks['w'])

  @parameterized.parameters('float32', 'bfloat16')
  def test_masked_is_zero_to_the_bit(self, dtype):
    # Updates of bfloat16 cannot say -w of float32.
    params = {'w': jnp.array([1.00001, 3.0])}
    tx = optax.GradientTransformation(
      lambda params: (),
      lambda g, s, p: (jax.tree.map(lambda x: x.astype(dtype), g), s),
    )
    done = one(jc.methods.gradual([('w', jc.Sparsity(0.5))]), params, tx)
    self.assertEqual(float(done.updates['w'][0]), 0)
    method = jc.methods.static([('w', jc.Sparsity(0.5))], seed=None)
    done = one(method, params, tx)
    moved = optax.apply_updates(params, done.updates)
    self.assertEqual(float(moved['w'][0]), 0)

  def test_two_methods_on_one_leaf(self):
    states = [state_lib.State(jnp.int32(0), {'w': jnp.ones(2, bool)})] * 2
    with self.assertRaisesRegex(ValueError, 'Two methods mask w'):
      advance.by_path(states)


if __name__ == '__main__':
  absltest.main()
