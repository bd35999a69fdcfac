"""Microbatches give the gradient of the whole batch, however it is masked."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import accumulation
from jaxopt_compress.distillation import losses

KEYS = jax.random.split(jax.random.key(0), 4)
BATCH = {
  'x': jax.random.normal(KEYS[0], (8, 3)),
  't': jax.random.normal(KEYS[1], (8, 5)),
  # The parts have 2, 1.5, 0 and 2 positions.
  'mask': jnp.array([1.0, 1, 1, 0.5, 0, 0, 0, 2]),
}
PARAMS = {
  'w': jax.random.normal(KEYS[2], (3, 5)),
  'b': jax.random.normal(KEYS[3], (1, 5)),
}


def loss(params, batch, temperature=2.0):
  s = batch['x'] @ params['w'] + params['b']
  return losses.kl(s, batch['t'], temperature=temperature, mask=batch['mask'])


def in_parts(n):
  return jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), BATCH)


class AccumulatedTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4, 8)
  def test_is_the_whole_batch(self, n):
    @jax.jit
    def both(params):
      whole = lambda p: losses.mean(*loss(p, BATCH, 3.0))
      parts = accumulation.accumulated(loss)(params, in_parts(n), 3.0)
      return parts, jax.value_and_grad(whole)(params)

    ((mean, count), got), (want, grads) = both(PARAMS)
    np.testing.assert_allclose(mean, want, rtol=1e-6)
    self.assertEqual(float(count), 5.5)
    for a, b in zip(*map(jax.tree.leaves, (got, grads)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)

  def test_nothing_counts(self):
    parts = in_parts(4) | {'mask': jnp.zeros((4, 2))}
    (mean, count), grads = accumulation.accumulated(loss)(PARAMS, parts)
    self.assertEqual((float(mean), float(count)), (0, 0))
    self.assertFalse(grads['w'].any() or grads['b'].any())

  def test_bfloat16_adds_up_in_float32(self):
    f = accumulation.accumulated(
      lambda w, x: (jnp.sum(w * x), jnp.ones((), jnp.bfloat16))
    )
    x = jnp.full((1000, 1), 0.01, jnp.bfloat16)
    (_, count), grads = f(jnp.ones(1, jnp.bfloat16), x)
    self.assertEqual((float(count), grads.dtype), (1000, jnp.bfloat16))
    np.testing.assert_allclose(grads.astype(jnp.float32), [0.01], rtol=5e-3)

  @parameterized.parameters(
    ({'x': jnp.ones((2, 1)), 'y': jnp.ones((3, 1))},),
    ({'x': jnp.ones(())},),
    ({'x': jnp.ones((0, 2))},),
    ({},),
  )
  def test_errors(self, batches):
    with self.assertRaisesRegex(ValueError, 'one leading axis'):
      accumulation.accumulated(loss)(PARAMS, batches)


if __name__ == '__main__':
  absltest.main()
