"""Logits on a scale of their own, by numbers the eye can check."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from positions_of_logits import logits

from jaxopt_compress.distillation import losses

INF = np.inf


centered = jax.jit(losses.centered)
standardized = jax.jit(losses.standardized)


class ScaledTest(parameterized.TestCase):
  gradients = {
    f: jax.jit(jax.grad(lambda x, f=f: jnp.where(x > -INF, f(x), 0).sum()))
    for f in (centered, standardized)
  }

  def test_mean_and_variance(self):
    x = 1e4 + 30 * logits(0)
    y = np.asarray(standardized(x), np.float64)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(centered(x)).mean(-1), 0, atol=1e-4)

  def test_size_and_constants_have_no_part(self):
    s, t = logits(0), logits(1)
    z, kl = standardized, jax.jit(losses.kl)
    want = kl(z(s), z(t), temperature=2.0)
    got = kl(z(3 * s - 7), z(t / 5 + 2), temperature=2.0)
    np.testing.assert_allclose(got, want, rtol=1e-5)

  @parameterized.parameters(
    ([2.0, 2.0, 2.0], [0, 0, 0]),
    ([0.1, 0.1, -INF], [0, 0, -INF]),
    ([7.0, -INF, -INF], [0, -INF, -INF]),
    ([7.0, 7.0, float(np.finfo(np.float32).min)], [0, 0, -INF]),
  )
  def test_logits_that_do_not_vary(self, x, expected):
    x = jnp.array(x)
    for f in (centered, standardized):
      self.assertEqual(f(x).tolist(), expected)
      grads = self.gradients[f](x)
      np.testing.assert_allclose(grads, 0, atol=1e-6)

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, 'The mask has shape'):
      losses.standardized(logits(0), jnp.ones(2))
    with self.assertRaisesRegex(ValueError, 'nothing to compare'):
      losses.centered(jnp.zeros((2, 0)))


if __name__ == '__main__':
  absltest.main()
