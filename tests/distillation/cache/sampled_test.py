"""Draws from an answer are counts, and right on average."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import cache

P = np.array([[0.5, 0.3, 0.15, 0.05], [0.0, 0.02, 0.08, 0.9]])


class SampledTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    keys = jax.random.split(jax.random.key(0), 400)
    with np.errstate(divide='ignore'):
      logits = jnp.float32(np.log(P) + 3)
    draw = jax.jit(jax.vmap(lambda key: cache.sample(logits, 12, key=key)))
    self.ids, self.log_p, self.tail = map(np.asarray, draw(keys))

  def test_shares_are_counts(self):
    counts = 12 * np.exp(self.log_p)
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-4)
    np.testing.assert_allclose(counts.sum(-1), 12, atol=1e-4)
    self.assertTrue((self.tail == -np.inf).all())
    # Of equal ids one has the count: no id has two.
    for ids, n in zip(
      self.ids.reshape(-1, 12), counts.reshape(-1, 12), strict=True
    ):
      self.assertLen(set(ids[n > 0]), (n > 0).sum())
      self.assertEqual(set(ids[n > 0]), set(ids))

  def test_the_mean_is_the_distribution(self):
    one_hot = self.ids[..., None] == np.arange(4)
    mean = (one_hot * np.exp(self.log_p)[..., None]).sum(-2).mean(0)
    # 4800 draws: five standard deviations are at most 5 sqrt(0.25 / 4800), and of
    # one draw from each twelfth of the distribution still less.
    np.testing.assert_allclose(mean, P, atol=0.012)
    self.assertEqual(mean[1, 0], 0)

  def test_counts_vary_by_less_than_two(self):
    # A class reaches into at most two twelfths that it has not to itself.
    one_hot = self.ids[..., None] == np.arange(4)
    counts = 12 * (one_hot * np.exp(self.log_p)[..., None]).sum(-2)
    self.assertLess(np.abs(counts - 12 * P).max(), 2)
    self.assertTrue((np.diff(self.ids, axis=-1) >= 0).all())

  def test_nan_is_seen(self):
    _, log_p, _ = cache.sample(
      jnp.float32([0, jnp.nan]), 3, key=jax.random.key(0)
    )
    self.assertTrue(np.isnan(log_p).all())

  def test_no_draws(self):
    with self.assertRaisesRegex(ValueError, '0 draws'):
      cache.sample(jnp.ones(3), 0, key=jax.random.key(0))


if __name__ == '__main__':
  absltest.main()
