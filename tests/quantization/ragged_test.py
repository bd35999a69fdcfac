"""Ragged dots with quantised experts against the dense array."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import making
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import qarray

X = making.normal(7, 8, seed=1)


class RaggedTest(parameterized.TestCase):
  @parameterized.product(
    sizes=((3, 0, 4), (7, 0, 0), (2, 2, 2)),
    format=(('int8', 0), ('int4', 0), ('int4', 4)),
  )
  def test_weight_only(self, sizes, format):
    name, group = format
    q, w = making.quantized(making.normal(3, 8, 6), name, (-2,), -2, group)
    sizes = jnp.array(sizes)
    got = jax.jit(jc.lift(lax.ragged_dot, strict=True))(X, q, sizes)
    want = lax.ragged_dot(X, w, sizes)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)

  def test_integers(self):
    q, w = making.quantized(making.normal(3, 8, 6), 'int8', (-2,), -2)
    sizes, leaf = jnp.array([3, 1, 3]), qarray.QDotArray(q)
    got = jax.jit(jc.lift(lax.ragged_dot, strict=True))(X, leaf, sizes)
    codes, scale = making.integer_oracle(X, -1)
    x_hat = jnp.asarray((codes * scale).astype(np.float32))
    want = lax.ragged_dot(x_hat, w, sizes)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)

  def test_quantised_rows_are_dense(self):
    q, x = making.quantized(X, 'int8', (-1,), -1)
    w, sizes = making.normal(3, 8, 6), jnp.array([3, 1, 3])
    got = jc.lift(lax.ragged_dot)(q, w, sizes)
    want = lax.ragged_dot(x, w, sizes)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    (met,) = jc.explain(lax.ragged_dot)(q, w, sizes)
    self.assertIn('not the experts', met.reason)


if __name__ == '__main__':
  absltest.main()
