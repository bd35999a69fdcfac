"""Mixtures of two examples."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.train import mixup


class MixupTest(absltest.TestCase):
  def test_each_with_the_one_before(self):
    x = np.random.default_rng(0).normal(size=(4, 2, 2)).astype(np.float32)
    mixed, share = mixup.mixed(x, jax.random.key(1), 1.0)
    self.assertBetween(float(share), 0.5, 1.0)
    expected = share * x + (1 - share) * x[[3, 0, 1, 2]]
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)

  def test_tokens_have_nothing_between_them(self):
    with self.assertRaisesRegex(
      ValueError, 'Inputs are int32: there is nothing'
    ):
      mixup.mixed(jnp.zeros((2, 3), jnp.int32), jax.random.key(0), 1.0)
