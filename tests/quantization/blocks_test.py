"""Blocks against numpy, the last of them shorter."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.quantization import blocks


def _numpy_reduce(f, x, size):
  """f of each run of `size` rows, the last as long as it is."""
  cuts = range(size, x.shape[0], size)
  return np.stack([f(part, axis=0) for part in np.split(x, cuts)])


class BlocksTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 4, 7, 9)
  def test_reduce_and_mean(self, size):
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    how = ((-2, size),)
    got = blocks.reduce(jnp.max, jnp.abs(x), how)
    np.testing.assert_array_equal(got, _numpy_reduce(np.max, np.abs(x), size))
    np.testing.assert_allclose(
      blocks.mean(jnp.asarray(x), how),
      _numpy_reduce(np.mean, x, size),
      rtol=1e-5,
      atol=1e-6,
    )

  def test_expand_repeats_and_cuts(self):
    part = jnp.array([[1.0], [2.0], [3.0]])
    got = blocks.expand(part, ((-2, 3),), (7, 4))
    np.testing.assert_array_equal(got.ravel(), [1, 1, 1, 2, 2, 2, 3])

  def test_size_zero_is_the_whole_axis(self):
    x = jnp.arange(12.0).reshape(4, 3)
    got = blocks.reduce(jnp.sum, x, ((-2, 0),))
    np.testing.assert_array_equal(got, x.sum(0, keepdims=True))
    self.assertEqual(blocks.expand(got, ((-2, 0),), x.shape).shape, (1, 3))


if __name__ == '__main__':
  absltest.main()
