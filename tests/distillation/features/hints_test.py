"""Hints against their equations, in float64 numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import by_oracle
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation.features import hints

S, T = by_oracle.values(0, 6, 3, 4), 2 * by_oracle.values(1, 6, 3, 4) + 1
TOKENS = np.array([[1, 1, 0], [2, 0, 1], [0, 0, 0]] * 2, np.float32)


def _squares(s, t):
  return np.mean((s - t) ** 2, -1)


def _cosine(s, t):
  lengths = [np.sqrt(np.sum(x * x, -1)) for x in (s, t)]
  return 1 - np.sum(s * t, -1) / (lengths[0] * lengths[1])


def _normalized(s, t):
  s, t = (
    (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    for x in (s, t)
  )
  return np.mean((s - t) ** 2, -1)


ORACLES = {'hint': _squares, 'cosine': _cosine, 'normalized': _normalized}


class HintsTest(parameterized.TestCase):
  @parameterized.product(
    name=list(ORACLES), mask=[None, TOKENS, by_oracle.EXAMPLES]
  )
  def test_value_and_gradient(self, name, mask):
    def oracle(s, t, mask):
      loss = ORACLES[name](s, t)
      weights = np.ones(loss.shape)
      if mask is not None:
        weights = weights * mask.reshape(mask.shape + (1,) * (2 - mask.ndim))
      return np.sum(weights * loss), np.sum(weights)

    by_oracle.check(getattr(hints, name), oracle, S, T, mask)

  @parameterized.parameters(*ORACLES)
  def test_zeros_and_equal_values_have_finite_derivatives(self, name):
    for s in (np.zeros_like(S), T):
      loss, _, grads = by_oracle.run(getattr(hints, name), s, T)
      self.assertTrue(np.isfinite(loss))
      self.assertTrue(np.isfinite(grads).all())

  @parameterized.parameters(1e30, 1e-30)
  def test_cosine_of_any_size(self, size):
    want = np.sum(_cosine(S, T))
    got, _, grads = by_oracle.run(hints.cosine, size * S, T)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    self.assertTrue(np.isfinite(grads).all())

  def test_normalized_of_features_with_a_large_mean(self):
    s, t = S + np.float32(1e3), T + np.float32(1e3)
    want = np.sum(_normalized(*(np.asarray(x, np.float64) for x in (s, t))))
    got, _, _ = by_oracle.run(hints.normalized, s, t)
    np.testing.assert_allclose(got, want, rtol=1e-3)

  def test_bfloat16_is_added_in_float32(self):
    s, t = jnp.asarray(S, jnp.bfloat16), jnp.asarray(T, jnp.bfloat16)
    total, count = hints.hint(s, t)
    self.assertEqual((total.dtype, count.dtype), (jnp.float32, jnp.float32))
    exact = _squares(np.asarray(s, np.float64), np.asarray(t, np.float64))
    np.testing.assert_allclose(total, exact.sum(), rtol=1e-5)

  @parameterized.parameters(
    (S, T[..., :2], None, 'connector makes them alike'),
    (S, T, TOKENS[:2], 'mask has shape'),
    (S, T, np.ones((6, 3, 4)), 'mask has shape'),
    (S[:0], T[:0], None, 'not empty'),
  )
  def test_refused(self, s, t, mask, error):
    with self.assertRaisesRegex(ValueError, error):
      hints.hint(jnp.asarray(s), jnp.asarray(t), mask=mask)


if __name__ == '__main__':
  absltest.main()
