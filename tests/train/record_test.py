"""The report of what was measured: one row a stage, one a leaf."""

import math
import types
from unittest import mock

from absl.testing import absltest
from jax import lax
import jax.numpy as jnp
import pytest

from jaxopt_compress import report as report_lib
from jaxopt_compress.analysis.plan import plan as analysis_plan
from jaxopt_compress.analysis.structure import structure
from jaxopt_compress.disk import sealed
from jaxopt_compress.train import evaluate
from jaxopt_compress.train import examples
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import measure
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import plan as plan_lib
from jaxopt_compress.train import record
from jaxopt_compress.train import stages

RULES = ((r'.*/kernel', 'int8, int8 tensor static'), (r'.*', None))
CONFIG = dict(
  data=dict(name='digits', test='validation', eval_batch_size=64, limit=64),
  models=dict(mlp=dict(in_features=64, widths=(8,))),
  stages=('float', 'int8'),
  stage=dict(
    float=dict(model='mlp', steps=1),
    int8=dict(
      model='mlp', init='float', batch_size=16, quantize=RULES, calibrate='ema'
    ),
  ),
  report=dict(plots=False, metric='loss'),
)


class ResizedTest(absltest.TestCase):
  def test_layers_are_no_channels(self):
    fun = lambda p, x: lax.scan(
      lambda x, w: (jnp.tanh(x @ w), None), x, p['w']
    )[0]
    p = jnp.ones((4, 3, 3))
    found = structure.structure(fun)({'w': p}, jnp.ones((2, 3)))
    (layers,) = found.free
    plan = analysis_plan.Plan(found, {layers: [0, 2]})
    model = types.SimpleNamespace(params=p)
    built = types.SimpleNamespace(
      plan=plan,
      source=model,
      model=model,
      stage=types.SimpleNamespace(
        init='big', shrink=options.Shrink(), grow=options.Grow()
      ),
    )
    with mock.patch.object(record.shrink, 'folding', return_value=(False, '')):
      (said,) = record._resized(built)
    self.assertIn('2 of 4 channels, heads and layers of big, in 1 group', said)


class RecordTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path

  def test_report(self):
    plan = plan_lib.parse(CONFIG)
    data = examples.load(plan.data, plan.seed)
    model = model_lib.build('mlp', plan.models['mlp'], data.example)
    built = [stages.build(s, model, (), plan.data) for s in plan.stages]
    params, variables = model.init(0)
    final = {'params': params, 'variables': variables, 'plain': params}
    job = job_lib.Job(plan, data, None, self.dir, None)
    for stage in plan.stages:
      _leave(job, stage)
    answers = {
      'float': evaluate.Evaluation(2.0, {'loss': 2.0, 'accuracy': 0.5}, 64),
      'int8': evaluate.Evaluation(
        3.0, {'loss': 3.0, 'accuracy': 0.4}, 64, 0.9, 0.01
      ),
    }
    measured = measure.Measured(
      answers=answers,
      fidelity={'int8': {'float': evaluate.Fidelity({1: 0.9, 5: 1.0}, 0.01)}},
      deployed={'float': params, 'int8': params},
      latency={'float': {}, 'int8': {}},
      kernels={'int8': 'packed'},
      exports={'float': 'the same'},
      failed=None,
    )
    finished = {'float': final, 'int8': final}
    record.record(job, built, finished, measured)

    page = report_lib.read(self.dir)
    self.assertEqual(page.title, 'digits: float, int8')
    rows = {row.name: row for row in page.stages}
    self.assertAlmostEqual(rows['float'].value, 2.0)
    self.assertAlmostEqual(rows['int8'].value, 3.0)
    self.assertFalse(rows['int8'].higher_is_better)
    self.assertEqual(
      (rows['int8'].agreement, rows['int8'].kl, rows['int8'].bytes_disk),
      (0.9, 0.01, 123),
    )
    self.assertEqual(
      [(a.name, a.against, a.agreement, a.kl) for a in page.answers],
      [('float', None, {}, None), ('int8', 'float', {1: 0.9, 5: 1.0}, 0.01)],
    )
    self.assertEqual(page.answers[1].numbers, {'accuracy': 0.4})
    # A share is a percentage, as in the columns beside it.
    self.assertRegex(report_lib.table.answers(page.answers), r'int8 .* 40\.00%')
    # 2 (64 x 8 + 8 x 10) for the products of one image, and little beside them.
    self.assertBetween(rows['float'].flops, 1184, 1300)
    self._check_training(page)
    self.assertEqual(list(page.coverage), ['int8'])
    self.assertLen(page.coverage['int8'], 4)
    self.assertEqual(
      page.facts,
      {
        'export of float': 'the same',
        'static ranges of int8': '2, by ema, from 128 training examples',
        'kernels of int8': 'packed',
      },
    )

  def _check_training(self, page):
    self.assertIn('It went on after 3 and 4 steps', page.stages[0].notes[-1])
    self.assertEqual(page.validation['float']['accuracy'], [(1, 0.5)])
    self.assertTrue(math.isnan(page.validation['float']['loss'][0][1]))
    self.assertEqual(list(page.validation), ['float'])


def _leave(job, stage):
  """What a finished stage leaves on disk that a report reads."""
  job.stage(stage.name).mkdir(parents=True)
  job.weights(stage.name).write_bytes(bytes(123))
  seen = [[1, {'accuracy': 0.5, 'loss': 'nan'}]]
  said = {'validation': seen, 'lengths': [3, 4]}
  # That of an older version says less.
  result = said if stage.steps else {}
  sealed.write(job.stage(stage.name) / job_lib.RESULT, result)


if __name__ == '__main__':
  absltest.main()
