"""Connectors: what they make, where they start, and what they refuse."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation.features import connectors

KEY = jax.random.key(0)
STUDENT = {
  'map': jax.random.normal(KEY, (2, 4, 4, 3)),
  'blocks': jax.random.normal(KEY, (5, 2, 7, 6)),
}
TEACHER = {'map': jnp.ones((2, 8, 8, 4)), 'blocks': jnp.ones((5, 2, 7, 4))}


class ConnectorsTest(parameterized.TestCase):
  def test_a_connector_is_a_1x1_convolution(self):
    made = connectors.init(KEY, STUDENT, TEACHER, stacked=['blocks'])
    made['map']['bias'] += 0.5
    got = connectors.apply(made, STUDENT)
    want = jax.lax.conv_general_dilated(
      STUDENT['map'],
      made['map']['kernel'][None, None],
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    np.testing.assert_allclose(got['map'], want + 0.5, rtol=1e-4, atol=1e-5)
    # Each layer has its own.
    self.assertEqual(made['blocks']['kernel'].shape, (5, 6, 4))
    one = STUDENT['blocks'][3] @ made['blocks']['kernel'][3]
    np.testing.assert_allclose(got['blocks'][3], one, rtol=1e-4, atol=1e-5)

  def test_starts(self):
    same = connectors.init(KEY, STUDENT, TEACHER, start='identity')
    got = connectors.apply(same, STUDENT)
    np.testing.assert_array_equal(got['map'][..., :3], STUDENT['map'])
    np.testing.assert_array_equal(got['map'][..., 3], 0)
    np.testing.assert_array_equal(got['blocks'], STUDENT['blocks'][..., :4])
    wide = {'x': jnp.ones((1, 400))}
    random = connectors.init(KEY, wide, wide)['x']['kernel']
    np.testing.assert_allclose(random.std(), 400**-0.5, rtol=0.02)

  def test_values_without_a_connector_stay(self):
    made = connectors.init(
      KEY, {'map': STUDENT['map']}, {'map': TEACHER['map']}
    )
    got = connectors.apply(made, STUDENT)
    self.assertIs(got['blocks'], STUDENT['blocks'])

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, 'same names'):
      connectors.init(KEY, STUDENT, {'map': TEACHER['map']})
    with self.assertRaisesRegex(ValueError, "choose one of .*'identity'"):
      connectors.init(KEY, STUDENT, TEACHER, start='identiy')
    with self.assertRaisesRegex(ValueError, 'stacked names'):
      connectors.init(KEY, STUDENT, TEACHER, stacked=['block'])
    made = connectors.init(KEY, STUDENT, TEACHER)
    with self.assertRaisesRegex(ValueError, 'for another student'):
      connectors.apply(made, {**STUDENT, 'map': jnp.ones((2, 5))})
    with self.assertRaisesRegex(ValueError, 'for what|There are connectors'):
      connectors.apply(made, {'map': STUDENT['map']})


if __name__ == '__main__':
  absltest.main()
