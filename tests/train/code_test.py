"""The user's code behind the names of a config, as a stage began with it."""

import pathlib
import sys
import types

from absl.testing import parameterized
import pytest

from jaxopt_compress.train import code
from jaxopt_compress.train import plan as plan_lib


class CodeTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.root = pathlib.Path(tmp_path)

  def job(self):
    """A run in which one stage of two is of the user's network."""
    net = f'{self.root}/net.py:Net'
    config = dict(
      data=dict(name='digits'),
      models=dict(own=dict(name=net), mlp=dict(name='mlp')),
      stages=('a', 'b'),
      stage=dict(
        a=dict(model='own', init=f'{self.root}/w.npz'),
        b=dict(model='mlp', steps=1),
      ),
    )
    return types.SimpleNamespace(
      plan=plan_lib.parse(config),
      work=self.root,
      checkpoints=lambda name: self.root / 'checkpoints' / name,
      stage=lambda name: self.root / 'stages' / name,
    )

  def write(self, text):
    (self.root / 'net.py').write_text(text)
    for name in [n for n in sys.modules if n.startswith('net_')]:
      del sys.modules[name]

  def test_changes_are_told(self):
    self.write('class Net: pass\n')
    (self.root / 'w.npz').write_bytes(b'1')
    job = self.job()
    for stage in job.plan.stages:
      code.note(job, stage)
    self.assertEqual(code.changed(job), {})
    self.write('class Net: x = 1\n')
    (self.root / 'w.npz').write_bytes(b'2')
    found = code.changed(job)
    self.assertLen(found, 2)
    for name, said in found.items():
      self.assertStartsWith(name, str(self.root))
      self.assertIn('has changed since a began; what was trained goes', said)
    job.stage('a').mkdir(parents=True)
    for said in code.changed(job).values():
      self.assertIn('what is finished is kept', said)
    # A stage that goes on keeps what it began with.
    job.checkpoints('a').mkdir(parents=True)
    code.note(job, job.plan.stages[0])
    self.assertLen(code.changed(job), 2)
    job.checkpoints('a').rmdir()
    code.note(job, job.plan.stages[0])
    self.assertEqual(code.changed(job), {})

  def test_damage(self):
    self.write('class Net: pass\n')
    (self.root / code.FILE).write_text('{')
    with pytest.raises(ValueError, match='code.json is damaged'):
      code.changed(self.job())
