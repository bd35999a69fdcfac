"""Distances against numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from positions_of_logits import logits
from positions_of_logits import MASK

from jaxopt_compress.distillation import losses

INF = np.inf
LEAST = float(np.finfo(np.float32).min)


class DistancesTest(parameterized.TestCase):
  def test_mse(self):
    s, t = logits(0), logits(1)
    got, count = losses.mse(s, t, mask=jnp.asarray(MASK))
    want = MASK * ((np.asarray(s) - np.asarray(t)) ** 2).mean(-1)
    np.testing.assert_allclose(got, want.sum(), rtol=1e-5)
    self.assertEqual(float(count), MASK.sum())

  def test_mse_of_impossible_entries(self):
    s, t = jnp.array([[1.0, -INF]]), jnp.array([[3.0, -INF]])
    value, grads = jax.value_and_grad(lambda s: losses.mse(s, t)[0])(s)
    self.assertEqual(float(value), 2.0)
    self.assertEqual(grads.tolist(), [[-2.0, 0.0]])

  cosine = staticmethod(
    jax.jit(jax.value_and_grad(lambda s, t: losses.cosine(s, t)[0]))
  )

  @parameterized.parameters(
    # student, teacher, expected
    ([0.0, 1.0, 2.0], [5.0, 7.0, 9.0], 0),
    ([0.0, 1.0, 2.0], [2.0, 1.0, 0.0], 2),
    ([3.0, 3.0, 3.0], [1.0, 2.0, 3.0], 1),
    ([3.0, 3.0, 3.0], [8.0, 8.0, 8.0], 0),
    ([0.0, 1.0, -INF], [1e4, 1e4 + 1, -INF], 0),
    ([0.0, 1.0, -INF], [0.0, 1.0, 0.0], INF),
    ([0.0, 1.0, LEAST], [3.0, 2.0, LEAST], 2),
  )
  def test_cosine(self, student, teacher, expected):
    s, t = jnp.array([student]), jnp.array([teacher])
    value, grads = self.cosine(s, t)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    self.assertTrue(np.isfinite(grads).all())


if __name__ == '__main__':
  absltest.main()
