"""One value, the derivative of another."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.quantization import straight


def _rounded(x):
  return straight.as_if(lambda x: 3 * x, jnp.round(x), x)


class StraightTest(absltest.TestCase):
  def test_value_and_both_derivatives(self):
    x = jnp.array([0.4, 1.6])
    np.testing.assert_array_equal(_rounded(x), [0, 2])
    y, tangent = jax.jvp(_rounded, (x,), (jnp.array([1.0, 10.0]),))
    np.testing.assert_array_equal(y, [0, 2])
    np.testing.assert_array_equal(tangent, [3, 30])
    np.testing.assert_array_equal(jax.vjp(_rounded, x)[1](x)[0], 3 * x)

  def test_the_value_itself_has_no_derivative(self):
    def f(x):
      return straight.as_if(lambda x: x, x * 100, x)

    self.assertEqual(jax.grad(f)(2.0), 1.0)

  def test_scales_that_cannot_be_zero(self):
    def product(x, scale):
      return x * scale.astype(jnp.float32)

    scale = jnp.float8_e8m0fnu(2)
    _, tangent = jax.jvp(
      lambda x: straight.as_if(product, x, x, scale), (3.0,), (5.0,)
    )
    self.assertEqual(tangent, 10)


if __name__ == '__main__':
  absltest.main()
