"""What a plan would do, in a table; a step that does not fit is found."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress.train import dry_run
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import stages

DATA = options.Data(name='digits')
RULES = ((r'.*/kernel', 'W8A8'), (r'.*', None))


def _built(x, teacher=''):
  model = model_lib.build('mlp', dict(in_features=64, widths=(8,)), x)
  stage = options.Stage(
    name='s',
    model='mlp',
    steps=1_000,
    distil=options.Distil(teacher=teacher),
    quantize=options.Quantize(rules=RULES),
  )
  return stages.build(stage, model, model if teacher else None, DATA)


class DryRunTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.x = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
    self.batch = {
      'image': np.zeros((4, 8, 8, 1), np.float32),
      'label': np.zeros((4,), np.int32),
    }

  def test_describe(self):
    built = _built(self.x)
    header, _, row, *more = dry_run.describe([built]).splitlines()
    self.assertEqual(header.split()[:3], ['stage', 'model', 'steps'])
    self.assertEqual(
      row.split(), ['s', 'mlp', '1,000', '-', '-', '610', '736', '2', 'of', '4']
    )
    self.assertEmpty(more)
    text = dry_run.describe([built], leaves=True)
    self.assertIn('int8 channel', text)
    self.assertRegex(text, r'layers/0/bias +8 +float32')

  def test_trace(self):
    dry_run.trace(_built(self.x), self.batch, None)
    dry_run.trace(_built(self.x, 't'), self.batch, _built(self.x))
    del self.batch['label']
    with pytest.raises(KeyError, match='label'):
      dry_run.trace(_built(self.x), self.batch, None)


if __name__ == '__main__':
  absltest.main()
