"""A run with a stage that shrinks: killed, resumed, the same bits."""

import json
import os
import pathlib

from absl.testing import parameterized
import pytest

import jaxopt_compress as jc
from jaxopt_compress import data as data_lib
from jaxopt_compress import report
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import loop
from jaxopt_compress.train import plans
from jaxopt_compress.train import shrink

# Runs that died leave files and event loops open, which is no mistake here.
pytestmark = [
  *(
    pytest.mark.filterwarnings(f'ignore::{name}')
    for name in ('pytest.PytestUnraisableExceptionWarning', 'ResourceWarning')
  ),
  pytest.mark.usefixtures('compiled'),
]


def tiny(export=(), **shrink_changes):
  common = dict(model='mlp', batch_size=16, learning_rate=0.01)
  rules = ((r'.*/kernel', 'W8A8'), (r'.*', None))
  return dict(
    seed=0,
    data=dict(name='digits', test='validation', eval_batch_size=64),
    models=dict(mlp=dict(in_features=64, widths=(8,))),
    stages=('teacher', 'small', 'int8'),
    stage=dict(
      teacher=dict(steps=4, **common),
      small=dict(
        init='teacher',
        teacher='teacher',
        steps=4,
        shrink=dict(params=0.52, score='taylor', batches=2) | shrink_changes,
        **common,
      ),
      int8=dict(model='mlp', init='small', quantize=rules),
    ),
    report=dict(batches=(1,), seconds=0.0, plots=False, export=export),
    run=dict(devices=1, log_every=2, save_every=2),
  )


class Killed(BaseException):
  """Nothing in the library catches this, as nothing catches SIGKILL."""


def _bits(workdir):
  found = {}
  for stage in ('teacher', 'small', 'int8'):
    manifest = checkpoint.read_manifest(
      pathlib.Path(workdir, 'stages', stage, 'tree')
    )
    found[stage] = {k: crc for k, (_, _, crc) in manifest['leaves'].items()}
  return found


class RunTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path, monkeypatch, tmp_path_factory):
    self.dir, self.monkeypatch = tmp_path, monkeypatch
    self.shared = tmp_path_factory.getbasetemp() / 'unbroken_shrink'
    if not self.shared.exists():
      loop.run(tiny(export=('int8',)), self.shared)

  def test_what_it_leaves_behind(self):
    text = (self.shared / 'stages/small/plan.json').read_text()
    plan = jc.Plan.from_json(json.dumps(json.loads(text)['plan']))
    self.assertEqual(plan.sizes, {'params/head/kernel:-2': 4})
    page = report.read(self.shared)
    self.assertEqual(
      [s.parameters for s in page.stages],
      [64 * 8 + 8 + 80 + 10, 64 * 4 + 4 + 40 + 10, 64 * 4 + 4 + 40 + 10],
    )
    flops = [s.flops for s in page.stages]
    self.assertLess(flops[1], 0.6 * flops[0])
    self.assertIn('64 of 64 answers', page.facts['export of int8'])
    said = page.facts['channels of small']
    self.assertEqual(said, 'params 610 -> 310, at most 317')
    (group,) = page.channels['small']
    self.assertEqual((group.before, group.after, sum(group.kept)), (8, 4, 4))
    self.assertIn('4 of 8 channels of teacher, in 1 group', str(page.stages[1]))
    self.assertEqual(os.listdir(self.shared / 'checkpoints'), [])

  @parameterized.named_parameters(
    ('when_the_plan_is_found', (plans, 'write'), 1),
    ('between_its_checkpoints', (data_lib.Batches, '__getitem__'), 10),
  )
  def test_killed(self, where, call):
    owner, name = where
    original, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
      calls.append(1)
      if len(calls) == call:
        raise Killed()
      return original(*args, **kwargs)

    with self.monkeypatch.context() as patch:
      patch.setattr(owner, name, killed)
      with pytest.raises(Killed):
        loop.run(tiny(), self.dir)
    # What is found once is not looked for again.
    if call == 10:
      self.monkeypatch.setattr(shrink, 'chosen', None)
    loop.run(tiny(), self.dir)
    self.assertEqual(_bits(self.dir), _bits(self.shared))
    self.assertEqual(os.listdir(self.dir / 'checkpoints'), [])

  def test_another_plan_is_another_config(self):
    with pytest.raises(ValueError, match='shrink.params was 0.52, is 0.25'):
      loop.run(tiny(params=0.25), self.shared)

  def test_a_damaged_plan_is_told(self):
    path = self.shared / 'stages/small/plan.json'
    text = path.read_text()
    self.addCleanup(path.write_text, text)
    path.write_text(text.replace('"sources"', '"courses"'))
    with pytest.raises(ValueError, match="small.* to make stage 'small' again"):
      loop.run(tiny(), self.shared)
