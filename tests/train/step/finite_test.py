"""Whether numbers are finite."""

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.train.step import finite


class FiniteTest(parameterized.TestCase):
  @parameterized.parameters((1.0, True), (np.nan, False), (np.inf, False))
  def test_is_finite(self, value, expected):
    tree = {'a': jnp.float32(value), 'b': jnp.int32(3), 'c': jnp.ones((2,))}
    self.assertEqual(bool(finite.is_finite(tree)), expected)
