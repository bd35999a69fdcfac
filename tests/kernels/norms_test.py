"""Norms of rows: those of flax, in JAX."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp

from jaxopt_compress.kernels import norms

X = jax.random.normal(jax.random.key(0), (2, 5, 24)) * 3 + 1
SCALE = jax.random.uniform(jax.random.key(1), (24,)) + 0.5
SHIFT = jax.random.normal(jax.random.key(2), (24,))


class NormTest(parameterized.TestCase):
  @parameterized.parameters(1e-6, 1e-2)
  def test_layer_norm(self, eps):
    flax = nnx.LayerNorm(24, epsilon=eps, rngs=nnx.Rngs(0))
    flax.scale[...], flax.bias[...] = SCALE, SHIFT
    got = norms.Norm(SCALE, SHIFT, eps)(X)
    self.assertLess(jnp.abs(got - flax(X)).max(), 2e-6)

  def test_rms_norm(self):
    flax = nnx.RMSNorm(24, rngs=nnx.Rngs(0))
    flax.scale[...] = SCALE
    got = norms.Norm(SCALE, centered=False)(X)
    self.assertLess(jnp.abs(got - flax(X)).max(), 1e-6)

  def test_dtype(self):
    """Sums are of float32, results of the type of the rows."""
    got = norms.Norm(SCALE.astype(jnp.bfloat16))(X.astype(jnp.bfloat16))
    self.assertEqual(got.dtype, jnp.bfloat16)
    want = norms.Norm(SCALE)(X)
    self.assertLess(jnp.abs(got.astype(jnp.float32) - want).max(), 5e-2)

  def test_far_from_zero(self):
    """Means are taken off before squares are added."""
    got = norms.Norm()(X + 1000.0)
    self.assertLess(jnp.abs(got - norms.Norm()(X)).max(), 1e-3)


if __name__ == '__main__':
  absltest.main()
