"""What a stage would meet at its first step is found before all steps."""

from absl.testing import parameterized
import pytest

from jaxopt_compress.train import examples
from jaxopt_compress.train import fits
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import stages

DATA = options.Data(name='digits', test='validation', eval_batch_size=16)
MODELS = dict(
  mlp=dict(name='mlp', widths=(8,)),
  wide=dict(name='mlp', widths=(16,)),
  cnn=dict(name='cnn', widths=(8,)),
  more=dict(name='mlp', widths=(8,), classes=11),
  less=dict(name='mlp', widths=(8,), classes=9),
)


class FitsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.examples = examples.load(DATA, seed=0)
    cls.models = {}

  def model(self, name):
    if name not in self.models:
      self.models[name] = model_lib.build(
        name, MODELS[name], self.examples.example
      )
    return self.models[name]

  def check(self, devices=1, model='mlp', distil=None, **asked):
    first = options.Stage(name='first', model='mlp', steps=1)
    distil = options.Distil(**distil or {})
    stage = options.Stage(
      **{'name': 's', 'model': model, 'steps': 1, 'distil': distil} | asked
    )
    teachers = [self.model('mlp')] if distil.teacher else ()
    built = [
      stages.build(first, self.model('mlp'), (), DATA),
      stages.build(stage, self.model(model), teachers, DATA),
    ]
    fits.check(built, DATA, self.examples, devices)

  def test_what_fits(self):
    self.check(devices=4)
    self.check(devices=2, model='wide', init='first', batch_size=130)
    self.check(model='wide', distil=dict(teacher='first'))

  @parameterized.named_parameters(
    (
      'batch',
      dict(devices=3, batch_size=130),
      'config.stage.first.batch_size is 128, which does not divide over 3',
    ),
    ('few', dict(batch_size=10_000), 'batch_size is 10000, and there are 1258'),
    (
      'layout',
      dict(model='cnn', init='first'),
      "Stage 's' starts model 'cnn' from model 'mlp': ",
    ),
    (
      'classes',
      dict(model='less'),
      'models.less tells 9 classes, and there is',
    ),
    (
      'teacher',
      dict(model='more', distil=dict(teacher='first')),
      r'stage.s.teacher: first answers \[16, 10\], and the student \[16, 11\]',
    ),
  )
  def test_what_does_not(self, asked, message):
    with pytest.raises(ValueError, match=message):
      self.check(**asked)
