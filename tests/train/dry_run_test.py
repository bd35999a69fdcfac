"""What a plan would do, in a table; a step that does not fit is found."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress import parallel
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
  return stages.build(stage, model, [model] if teacher else (), DATA)


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

  def trace(self, built, finals=(), mode='shard_map', devices=2):
    mesh = parallel.data_mesh(devices)
    step = parallel.data_parallel(built.step, mode, mesh)
    dry_run.trace(step, built, self.batch, finals)

  def refuses(self, message, *args, **kwargs):
    with pytest.raises(ValueError, match=message):
      self.trace(*args, **kwargs)

  def test_trace(self):
    for mode in parallel.step.MODES:
      self.trace(_built(self.x), mode=mode)
    self.trace(_built(self.x, 't'), {'t': _built(self.x).final})
    self.refuses(
      "Stage 's' cannot .* does not divide", _built(self.x), devices=3
    )
    del self.batch['label']
    self.refuses("Stage 's' cannot .* KeyError: 'label'", _built(self.x))

  def test_axes_are_those_of_the_devices(self):
    def built(axis):
      asked = dict(name='cnn', widths=(4,), axis_name=axis)
      model = model_lib.build('net', asked, self.x)
      return stages.build(
        options.Stage(name='s', model='net', steps=1), model, (), DATA
      )

    self.trace(built('data'))
    self.refuses('NameError: .* unbound axis name: date', built('date'))
    self.refuses('NameError: .* unbound axis name', built('data'), mode='jit')


if __name__ == '__main__':
  absltest.main()
