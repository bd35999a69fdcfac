"""What a stage that grows saved, in a sentence; the curves themselves: `grow_test`."""

import types

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from jaxopt_compress.train import curves
from jaxopt_compress.train import options


def _built(name, size, init='', **grow):
  stage = options.Stage(
    name=name, model='m', init=init, grow=options.Grow(**grow)
  )
  model = types.SimpleNamespace(params={'w': jnp.ones(size)})
  return types.SimpleNamespace(stage=stage, model=model)


BUILT = [
  _built('small', 2),
  _built('grown', 4, 'small', factor=2.0),
  _built('large', 4),
  _built('tuned', 4, 'large'),
]
LARGE = [(10.0, 3.0), (20.0, 2.0)]


class CurvesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('sooner', [(5.0, 3.0), (15.0, 1.0)], 'after 50% of its operations'),
    ('never', [(5.0, 3.0), (15.0, 2.5)], 'does not reach .* its best is 2.5'),
  )
  def test_sooner(self, grown, said):
    # Beside the one of its size that began from scratch, and no other.
    found = curves.sooner(BUILT, {'grown': grown, 'large': LARGE})
    self.assertEqual(list(found), ['growth of grown beside large'])
    self.assertRegex(found['growth of grown beside large'], said)

  def test_without_curves(self):
    self.assertEmpty(curves.sooner(BUILT, {}))


if __name__ == '__main__':
  absltest.main()
