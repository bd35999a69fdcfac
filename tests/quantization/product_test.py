"""Sums of scaled numbers against float64."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.quantization import product


def _operand(rng, shape, scale_shape, zero):
  numbers = rng.integers(-7, 8, shape).astype(np.int8)
  scale = rng.uniform(0.5, 2, scale_shape).astype(np.float32)
  zero = rng.integers(-3, 4, scale_shape).astype(np.int8) if zero else None
  meaning = numbers.astype(np.float64) - (0 if zero is None else zero)
  arrays = (jnp.asarray(numbers), jnp.asarray(scale))
  zero = None if zero is None else jnp.asarray(zero)
  return product.Operand(*arrays, zero), meaning * scale


class ProductTest(parameterized.TestCase):
  @parameterized.product(zero_a=(False, True), zero_b=(False, True))
  def test_zero_points(self, zero_a, zero_b):
    rng = np.random.default_rng(0)
    a, dense_a = _operand(rng, (2, 3, 8), (2, 3, 1), zero_a)
    b, dense_b = _operand(rng, (2, 8, 5), (2, 1, 5), zero_b)
    d = product.Dims(((2,), (1,)), ((0,), (0,)))
    np.testing.assert_allclose(
      product.multiply(a, b, d), dense_a @ dense_b, rtol=1e-5, atol=1e-4
    )

  def test_placed_follows_the_result(self):
    # [free 3, batch 2, contracted 1] of the right operand: batch first, free last.
    x = jnp.arange(6.0).reshape(3, 2, 1)
    d = product.Dims(((2,), (2,)), ((0,), (1,)))
    got = product.placed(x, 1, d, 3)
    np.testing.assert_array_equal(got, x[..., 0].T[:, None])

  @parameterized.parameters(
    (1e35, 1e-4), (1e-4, 1e35), (1e-35, 1e4), (1e-30, 1e-6)
  )
  def test_scales_in_the_order_that_stays_finite(self, a, b):
    y = jnp.array([-(10**6), 0, 7], jnp.int32)
    got = product.rescale(y, jnp.array([a]), jnp.array([b]))
    np.testing.assert_allclose(
      got, np.float64([-1e6, 0, 7]) * np.float32(a) * np.float32(b), rtol=1e-6
    )

  @parameterized.parameters((None, 0, 1), (0, 1, 0))
  def test_the_other_operand_is_rounded(self, at, side, rounded):
    how = product.Product(None, at, lambda *_: 'rounded', None)
    got = how.round_other(['a', 'b', 'sizes'], side, None, {})
    want = ['a', 'b', 'sizes']
    want[rounded] = 'rounded'
    self.assertEqual(got, want)


if __name__ == '__main__':
  absltest.main()
