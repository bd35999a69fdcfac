"""Two stages that were never trained, beside each other."""

import dataclasses
import pathlib
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
import pytest

from jaxopt_compress.train import examples
from jaxopt_compress.train import exported
from jaxopt_compress.train import final as final_lib
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import measure
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import plan as plan_lib
from jaxopt_compress.train import serving
from jaxopt_compress.train import stages

CONFIG = dict(
  data=dict(name='digits', test='validation', eval_batch_size=64, limit=100),
  models=dict(mlp=dict(in_features=64, widths=(8,))),
  stages=('float', 'int8'),
  stage=dict(
    float=dict(model='mlp', steps=1),
    int8=dict(
      model='mlp',
      init='float',
      quantize=((r'.*/kernel', 'int8'), (r'.*', None)),
    ),
  ),
  report=dict(batches=(1, 3), seconds=0.0, plots=False),
)


def made(work: pathlib.Path):
  """(job, built, finished) of `CONFIG`, its stages as they start."""
  plan = plan_lib.parse(CONFIG)
  data = examples.load(plan.data, plan.seed)
  model = model_lib.build('mlp', plan.models['mlp'], data.example)
  built = [stages.build(s, model, (), plan.data) for s in plan.stages]
  params, variables = model.init(0)
  finished = {}
  for b in built:
    state = b.create(params, variables, jax.random.key(0), b.ranges)
    name = b.stage.name
    finished[name] = final_lib.finish(state, b.stage, model, b.compression)
  return job_lib.Job(plan, data, None, work, None), built, finished


class MeasureTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path

  def test_stages_beside_the_first(self):
    job, built, finished = made(self.dir)
    found = measure.measure(job, built, finished)
    self.assertIsNone(found.failed)
    self.assertIsNone(found.answers['float'].kl)
    self.assertLess(found.answers['int8'].kl, 1e-3)
    self.assertEqual(found.answers['int8'].count, 100)
    self.assertEqual(found.fidelity['float'], {})
    close = found.fidelity['int8']['float']
    self.assertEqual(close.kl, found.answers['int8'].kl)
    self.assertEqual(close.agreement[1], found.answers['int8'].agreement)
    self.assertLen(found.answers['int8'].logits, 1)  # enough for an export
    self.assertEqual(set(found.latency), {'float', 'int8'})
    self.assertEqual(set(found.latency['int8']), {1, 3})
    self.assertEqual(found.latency['int8'][1].against, 'float')
    self.assertIsNone(found.latency['int8'][1].speed)  # of no seconds
    self.assertEqual(list(found.kernels), ['int8'])
    self.assertEmpty(found.exports)

  def test_what_fails_is_kept_for_the_end(self):
    job, built, finished = made(self.dir)
    wrong, worse = RuntimeError('other numbers'), RuntimeError('does not run')
    with (
      mock.patch.object(
        serving, 'served', lambda params, uses: (dict(params), 'packed')
      ),
      mock.patch.object(serving, 'difference', side_effect=wrong),
    ):
      found = measure.measure(job, built, finished)
      self.assertIs(found.failed, wrong)
      self.assertEqual(found.kernels['int8'], 'FAILED. other numbers')
      with mock.patch.object(
        exported, 'export_and_check', side_effect=worse
      ) as called:
        found = measure.measure(job, built, finished)
    form = called.call_args.kwargs['facts']['input']
    self.assertEqual((form['values'], form['size']), ([0, 1], [8, 8]))
    self.assertIs(found.failed, worse)
    self.assertEqual(found.exports, {'stages': 'FAILED. does not run'})

  def test_repeated(self):
    job, _, _ = made(self.dir)
    x = measure.repeated(job, 130)
    self.assertEqual(x.shape, (130, 8, 8, 1))
    np.testing.assert_array_equal(x[:64], x[64:128])

  def test_another_reference(self):
    job, built, finished = made(self.dir)
    report = dataclasses.replace(job.plan.report, reference='int8')
    plan = dataclasses.replace(job.plan, report=report)
    found = measure.measure(
      dataclasses.replace(job, plan=plan), built, finished
    )
    self.assertIsNone(found.answers['int8'].kl)
    self.assertGreaterEqual(found.answers['float'].kl, 0)


if __name__ == '__main__':
  absltest.main()
