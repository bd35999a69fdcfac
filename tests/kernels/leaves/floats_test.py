"""Kernels of convolutions as floats, laid out and back."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels.leaves import floats


def _conv(groups, numbers):
  return lambda p, x: jax.lax.conv_general_dilated(
    x,
    p['w'],
    (1, 1),
    'SAME',
    dimension_numbers=numbers,
    feature_group_count=groups,
  )


_FIRST = ('NCHW', 'OIHW', 'NCHW')
_LAST = ('NHWC', 'HWIO', 'NHWC')


class FloatsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('panels', 1, _LAST, (2, 3, 4, 18), (1, 5, 5, 4), (2, 24, 16)),
    ('of groups', 3, _LAST, (2, 3, 4, 15), (1, 5, 5, 12), (3, 1, 24, 16)),
    ('taps', 4, _LAST, (3, 3, 1, 8), (1, 5, 5, 4), (9, 16)),
    ('channels first', 1, _FIRST, (18, 4, 2, 3), (1, 4, 5, 5), (2, 24, 16)),
  )
  def test_there_and_back(self, groups, numbers, shape, image, payload):
    w = jax.random.normal(jax.random.key(0), shape)
    params = {'w': w}
    uses = jc.uses(_conv(groups, numbers))(params, jnp.ones(image))
    leaf = jc.pack(params, uses, target='cpu', floats=True)['w']
    self.assertIsInstance(leaf, leaves.FloatArray)
    self.assertEqual(leaf.describe(), 'float32, packed')
    self.assertEqual(leaf.payload.reshape(payload).size, leaf.payload.size)
    np.testing.assert_array_equal(leaf.materialize(), w)
    np.testing.assert_array_equal(jc.unpack({'w': leaf})['w'], w)

  def test_columns_times_a_factor(self):
    for groups, shape in (
      (1, (3, 3, 4, 6)),
      (2, (3, 3, 2, 6)),
      (6, (3, 3, 1, 6)),
    ):
      w = jax.random.normal(jax.random.key(0), shape)
      channels = shape[2] * groups
      uses = jc.uses(_conv(groups, _LAST))(
        {'w': w}, jnp.ones((1, 5, 5, channels))
      )
      leaf = jc.pack({'w': w}, uses, target='cpu', floats=True)['w']
      factor = jnp.arange(1.0, 7.0)
      of_columns = factor.reshape(1, 1, 1, 6)
      scaled = floats.FloatArray(
        floats.times_columns(leaf, factor).reshape(leaf.payload.shape),
        leaf.plan,
      )
      np.testing.assert_allclose(
        scaled.materialize(), w * of_columns, rtol=1e-6
      )

  def test_what_stays(self):
    def f(p, x):
      y = _conv(1, _LAST)({'w': p['a']}, x)
      y = _conv(1, _LAST)({'w': p['b'] * p['scale']}, y)
      y = _conv(1, _LAST)({'w': p['c']}, y) + p['c'].sum()
      return y.reshape(-1, 4) @ p['d']

    params = {name: jnp.ones((3, 3, 4, 4)) for name in 'abc'}
    params |= {'d': jnp.ones((4, 2)), 'scale': jnp.ones((1, 1, 1, 4))}
    uses = jc.uses(f)(params, jnp.ones((1, 6, 6, 4)))
    packed = jc.pack(params, uses, target='cpu', floats=True)
    kinds = {name: type(leaf).__name__ for name, leaf in packed.items()}
    self.assertEqual(kinds['a'], 'FloatArray')
    for name in ('b', 'd', 'scale'):
      self.assertNotEqual(kinds[name], 'FloatArray')
    with self.assertWarnsRegex(UserWarning, 'Nothing is packed'):
      jc.pack(params, uses, target='cpu', floats=False)


if __name__ == '__main__':
  absltest.main()
