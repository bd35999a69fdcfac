"""Scales: how they are found and stored, against numbers that can be checked."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import scales
from jaxopt_compress.quantization import spec as spec_lib


class ScalesTest(parameterized.TestCase):
  @parameterized.parameters(
    # e2m1 has 6 as its largest number, 2^2 in front of its mantissa.
    ('floor', [4.0, 6.0, 7.9, 8.0], [1.0, 1.0, 1.0, 2.0]),
    ('rceil', [4.0, 6.0, 6.1, 12.0], [1.0, 1.0, 2.0, 2.0]),
    ('even', [4.0, 6.9, 7.0, 8.0], [1.0, 1.0, 2.0, 2.0]),
  )
  def test_powers_of_two(self, rule, reach, want):
    got = scales.power_of_two(
      jnp.array(reach, jnp.float32), formats.FORMATS['e2m1'], rule
    )
    np.testing.assert_array_equal(got.astype(jnp.float32), want)

  def test_no_power_of_two_for_what_is_not_finite(self):
    reach = jnp.array([jnp.inf, jnp.nan, 0.0], jnp.float32)
    got = scales.power_of_two(reach, formats.FORMATS['e2m1'], 'floor')
    got = np.asarray(got.astype(jnp.float32))
    np.testing.assert_array_equal(np.isnan(got), [True, True, False])
    self.assertGreater(got[2], 0)

  @parameterized.product(
    rule=spec_lib.RULES, format=('e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1', 'int8')
  )
  def test_powers_of_two_leave_large_numbers_finite(self, rule, format):
    x = jnp.array([[3.4e38, -1e38]], jnp.float32)
    spec = spec_lib.Spec(format, 'group', 2, scale='e8m0', rule=rule)
    got = qarray.quantize_array(x, spec, ((-1, 2),)).materialize()
    np.testing.assert_allclose(got, x, rtol=0.3)

  def test_asymmetric_ranges_contain_zero(self):
    spec = spec_lib.Spec('int8', symmetric=False)
    x = jnp.array([[1.0, -4.0], [3.0, -2.0]], jnp.float32)
    reach, center = scales.reach_and_center(x, spec, ((-2, 0),))
    np.testing.assert_array_equal(reach, [[1.5, 2.0]])
    np.testing.assert_array_equal(center, [[1.5, -2.0]])

  @parameterized.parameters('float32', 'bfloat16', 'e8m0', 'e4m3', 'int8')
  def test_a_scale_is_never_zero(self, scale):
    spec = spec_lib.Spec('int4', 'group', 2, scale=scale)
    reach = jnp.zeros((2, 3), jnp.float32)
    s = scales.stored(reach, spec, ((-2, 2),), (4, 3))
    self.assertTrue(bool((scales.read(s, ((-2, 2),)) > 0).all()))


if __name__ == '__main__':
  absltest.main()
