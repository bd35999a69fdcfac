"""Causal attention, on sequences short enough to do by hand."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.models import causal


class RotateTest(absltest.TestCase):
  def test_rotation_makes_products_relative(self):
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8))

    def at(x, i):
      return causal.rotate(jnp.asarray(x), jnp.array([i]))

    products = [float((at(q, i + 3) * at(k, i)).sum()) for i in (0, 1, 50)]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
    self.assertNotAlmostEqual(
      products[0], float((at(q, 4) * at(k, 0)).sum()), places=3
    )


class AttendTest(absltest.TestCase):
  def test_the_first_sees_itself_and_the_second_both(self):
    q = k = jnp.zeros((1, 2, 1, 2))
    v = jnp.array([[1.0, 2.0], [3.0, 6.0]]).reshape(1, 1, 2, 2)
    # Keys lie [batch, heads, keys, d]; equal scores, so a mean of what is seen.
    y = causal.attend(q, k.swapaxes(1, 2), v, jnp.arange(2))
    np.testing.assert_allclose(y[0, :, 0], [[1, 2], [2, 4]], atol=1e-6)

  def test_two_query_heads_share_a_key_head(self):
    q = jnp.zeros((1, 1, 4, 2))
    k = jnp.zeros((1, 2, 1, 2))
    v = jnp.array([[5.0, 6.0], [7.0, 8.0]]).reshape(1, 2, 1, 2)
    y = causal.attend(q, k, v, jnp.arange(1))
    np.testing.assert_allclose(
      y[0, 0], [[5, 6], [5, 6], [7, 8], [7, 8]], atol=1e-6
    )

  def test_keys_of_a_cache_behind_the_position_do_not_count(self):
    q, k = jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 1, 3, 2))
    v = jnp.array([[2.0, 0.0], [4.0, 0.0], [99.0, 99.0]]).reshape(1, 1, 3, 2)
    y = causal.attend(q, k, v, jnp.array([1]))
    np.testing.assert_allclose(y[0, 0, 0], [3, 0], atol=1e-6)


if __name__ == '__main__':
  absltest.main()
