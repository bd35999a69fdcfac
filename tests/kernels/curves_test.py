"""Tests of kernels/curves.py."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from jaxopt_compress.kernels import curves
from jaxopt_compress.kernels import flow


def _found(f):
  """What `f` of an array is found to be, which is a whole body."""
  jaxpr = jax.make_jaxpr(f)(jnp.zeros((2, 3))).jaxpr
  name, indices = curves.find(jaxpr.invars[0], flow.Flow(jaxpr))
  return name, len(indices) == len(jaxpr.eqns)


class CurvesTest(parameterized.TestCase):
  @parameterized.parameters(*curves.CURVES)
  def test_each_row_is_found_as_its_curve(self, name):
    found, whole = _found(curves.CURVES[name])
    self.assertTrue(whole)
    self.assertEqual(curves.kernel(found), curves.kernel(name))

  @parameterized.named_parameters(
    ('other_slope', lambda x: jax.nn.leaky_relu(x, 0.2)),
    ('other_alpha', lambda x: jax.nn.elu(x, 0.5)),
    ('other_clip', lambda x: jnp.clip(x, 0.0, 5.0)),
    ('other_factor', lambda x: 0.4 * x * (1 + jax.lax.erf(x / 2**0.5))),
  )
  def test_lookalikes_are_not(self, f):
    self.assertEqual(_found(f), (None, False))


if __name__ == '__main__':
  absltest.main()
