"""A step without its teacher is timed beside the one with it."""

from absl.testing import absltest
import pytest

from jaxopt_compress import report
from jaxopt_compress.train import cached_step
from jaxopt_compress.train import loop


class CachedStepTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path

  def test_both_are_in_the_report(self):
    common = dict(batch_size=512, steps=2, learning_rate=0.01)
    taught = dict(teacher='teacher', temperature=2.0, cache=dict(k=3))
    stages = {
      'teacher': dict(model='large', **common),
      'student': dict(model='small', **common, **taught),
    }
    config = dict(
      data=dict(name='digits', eval_batch_size=64, limit=64),
      models=dict(
        large=dict(name='mlp', in_features=64, widths=(2048, 1024)),
        small=dict(name='mlp', in_features=64, widths=(4,)),
      ),
      stages=tuple(stages),
      stage=stages,
      report=dict(batches=(1,), seconds=0.01, plots=False),
      run=dict(devices=1),
    )
    loop.run(config, self.dir)
    said = report.read(self.dir).facts['answers for student']
    found = r'A step takes \S+ ms, and \S+ ms with the teacher in it: (\S+)x.'
    self.assertRegex(said, found)

  def test_what_is_said(self):
    live = report.Timing(5.0, 5.0, 5.0, 3)
    found = {'kept': report.Timing(2.0, 2.0, 2.0, 3, 'live', 2.5), 'live': live}
    self.assertEqual(
      cached_step.told(found),
      'A step takes 2 ms, and 5 ms with the teacher in it: 2.50x.',
    )


if __name__ == '__main__':
  absltest.main()
