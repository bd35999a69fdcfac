"""Scores against their equations."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.pruning import scores

W = np.array([[3.0, -1.0, 0.2], [-0.5, 0.0, -4.0]], np.float32)


class ScoresTest(parameterized.TestCase):
  @parameterized.parameters(
    (None, [[3.0, 1.0, 0.2], [0.5, 0.0, 4.0]]),
    (-2, [1.75, 0.5, 2.1]),
    ((-2, -1), 1.45),
  )
  def test_magnitude(self, axes, expected):
    np.testing.assert_allclose(scores.magnitude(W, axes), expected, rtol=1e-6)

  @parameterized.parameters(
    # k, axes, expected
    (0.0, None, [[3.0, 1.0, 0.2], [0.5, 0.0, 4.0]]),
    (0.5, None, [[2.5, 0.5, 0.0], [0.0, 0.0, 3.5]]),
    (0.5, -2, [1.25, 0.25, 1.75]),
    (0.5, -1, [1.0, 3.5 / 3]),
    (4.0, None, [[0, 0, 0], [0, 0, 0]]),
  )
  def test_soft_threshold(self, k, axes, expected):
    got = scores.soft_threshold(W, k, axes)
    np.testing.assert_allclose(got, expected, rtol=1e-6)

  def test_few_large_beat_many_small(self):
    even, peaked = np.full((8, 1), 1.0), np.eye(8)[:, :1] * 8
    w = jnp.asarray(np.concatenate([even, peaked], 1))
    by_mean = scores.magnitude(w, -2)
    by_peak = scores.soft_threshold(w, 1.5, -2)
    self.assertEqual(float(by_mean[0]), float(by_mean[1]))
    self.assertLess(float(by_peak[0]), float(by_peak[1]))

  def test_bfloat16_is_averaged_in_float32(self):
    w = jnp.ones((1000, 2), jnp.bfloat16)  # a bfloat16 sum stops at 256
    mean = scores.magnitude(w, -2)
    self.assertEqual(mean.dtype, jnp.float32)
    np.testing.assert_array_equal(mean, [1.0, 1.0])
    self.assertEqual(scores.magnitude(w).dtype, jnp.bfloat16)
    self.assertEqual(scores.soft_threshold(w, 0.5).dtype, jnp.bfloat16)

  @parameterized.parameters(0.0, 0.5, 0.7, 1.0)
  def test_k_as_a_quantile(self, quantile):
    w = np.random.default_rng(0).normal(size=(10, 10)).astype(np.float32)
    got = scores.soft_threshold(w, quantile=quantile)
    size = np.sort(abs(w), axis=None)
    k = size[round(100 * quantile) - 1] if quantile else 0.0
    np.testing.assert_allclose(got, np.maximum(abs(w) - k, 0), rtol=1e-6)
    self.assertEqual(int((got > 0).sum()), 100 - round(100 * quantile))
    scaled = scores.soft_threshold(1000 * w, quantile=quantile)
    np.testing.assert_allclose(scaled, 1000 * got, rtol=1e-3)

  def test_of_gradients_and_activations(self):
    g = np.array([[2.0, 3, 4], [5, 6, 7]], np.float32)
    a = np.array([[4.0], [9.0]], np.float32)
    for got, want in (
      (scores.first_order(W, g), W * g),
      (scores.taylor(W, g), (W * g) ** 2),
      (scores.movement(W, g), -W * g),
      (scores.fisher(W, g), W**2 * g),
      (scores.wanda(W, a), abs(W) * np.array([[2.0], [3.0]])),
    ):
      np.testing.assert_allclose(got, want, rtol=1e-6)

  @parameterized.parameters(-0.1, float('nan'))
  def test_k_is_a_magnitude(self, k):
    with self.assertRaisesRegex(ValueError, 'k >= 0'):
      scores.soft_threshold(W, k)


if __name__ == '__main__':
  absltest.main()
