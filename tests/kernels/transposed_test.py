"""W8A8 for GPUs, by XLA: the sums are exact."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import transposed
from jaxopt_compress.kernels.pallas import dynamic


class TransposedTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_product(self, symmetric):
    codes = jax.random.randint(jax.random.key(0), (70, 12), -128, 128)
    codes, scale = codes.astype(jnp.int8), jnp.full((1, 12), 0.5)
    weight = transposed.lay_out(codes, scale, symmetric=symmetric)
    self.assertEqual(weight.codes.shape, (1, 12, 70))
    back = transposed.restore(weight, k=70, n=12)
    np.testing.assert_array_equal(back[0], codes)
    np.testing.assert_array_equal(back[1], scale)
    x = jax.random.normal(jax.random.key(1), (5, 70))
    of_x, scale_x, zero = dynamic.quantize(x, symmetric=symmetric)
    numbers = np.asarray(of_x, np.int64) - (
      0 if symmetric else np.asarray(zero)
    )
    sums = numbers @ np.asarray(codes, np.int64)
    want = np.float32(sums) * np.asarray(scale_x) * np.float32(0.5)
    np.testing.assert_array_equal(transposed.matmul(x, weight), want)


if __name__ == '__main__':
  absltest.main()
