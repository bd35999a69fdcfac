"""More steps in the same workdir: what goes on, what is made again, what is refused."""

import json
import os
import shutil
import types

from absl.testing import parameterized
import pytest

from jaxopt_compress import report
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import extend
from jaxopt_compress.train import loop
from jaxopt_compress.train import metrics
from jaxopt_compress.train import options

NOW = {'seed': 0, 'stage.a.steps': 8, 'stage.b.steps': 4, 'stage.b.patience': 2}


class ChangeTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('same', {}, 'same'),
    ('on', {'stage.b.steps': 3}, 'on'),
    ('more_patience', {'stage.b.patience': 1}, 'on'),
    ('both', {'stage.b.patience': 1, 'stage.b.steps': 1}, 'on'),
    ('again', {'stage.a.steps': 3}, 'again'),
    ('all', {'stage.a.steps': 3, 'stage.b.steps': 3}, 'again'),
    ('fewer', {'stage.b.steps': 5}, 'other'),
    ('none_before', {'stage.b.steps': 0}, 'other'),
    ('less_patience', {'stage.b.patience': 3}, 'other'),
    ('no_end_before', {'stage.b.patience': 0}, 'other'),
    ('seed', {'seed': -1}, 'other'),
    ('and_more', {'stage.b.steps': 3, 'lr': 0.1}, 'other'),
    ('of_a_model', {'models.m.steps': 3}, 'other'),
  )
  def test_change(self, before, how):
    self.assertEqual(extend.change(NOW | before, NOW, 'b'), how)

  def test_patience_without_an_end(self):
    now = NOW | {'stage.b.patience': 0}
    self.assertEqual(extend.change(NOW, now, 'b'), 'on')

  def test_told(self):
    stage = options.Stage(
      name='s',
      model='m',
      steps=200,
      optimizer=options.Optimizer(learning_rate=0.2, decay='linear'),
      prune=options.Prune(rules=(('.*', 0.5),), span=(0.0, 0.7)),
    )
    self.assertEqual(
      extend.told(stage, 100, 100),
      'has 200 steps instead of 100 and goes on; its schedules are those of 200 steps'
      ' from here: at step 100 the learning rate (linear) was 0, and is 0.1; masks,'
      ' which were final, change again until step 140, and begin less sparse.',
    )


def tiny(**changes):
  """A teacher, a student of it, and the student in int8; and what is changed."""
  common = dict(model='mlp', batch_size=16, learning_rate=0.01)
  stages = dict(
    a=dict(steps=8, **common),
    b=dict(steps=6, teacher='a', **common),
    c=dict(
      model='mlp', init='b', quantize=((r'.*/kernel', 'W8A8'), (r'.*', None))
    ),
  )
  for name, change in changes.items():
    stages.setdefault(name, {}).update(change)
  return dict(
    data=dict(name='digits', eval_batch_size=180, limit=100),
    models=dict(mlp=dict(in_features=64, widths=(8,))),
    stages=tuple(stages),
    stage=stages,
    report=dict(batches=(1,), seconds=0.0, plots=False),
    run=dict(devices=1, log_every=2, save_every=5),
  )


def without_report(patch):
  """Runs end with their last stage: what follows is tested elsewhere."""
  measured = types.SimpleNamespace(failed=None)
  patch.setattr(loop.measure, 'measure', lambda *args: measured)
  patch.setattr(loop.record, 'record', lambda *args: None)
  patch.setattr(loop.report, 'text', lambda found: '')


class Killed(BaseException):
  """Nothing in the library catches this, as nothing catches SIGKILL."""


def _bits(workdir, stage):
  tree = workdir / 'stages' / stage / 'tree'
  return checkpoint.read_manifest(tree)['leaves']


def _result(workdir, stage):
  return json.loads((workdir / 'stages' / stage / 'result.json').read_text())


# Runs that died leave files and event loops open, which is no mistake here.
@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::ResourceWarning'
)
@pytest.mark.usefixtures('compiled')
class RunTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path, monkeypatch, tmp_path_factory, capsys):
    self.dir, self.monkeypatch, self.capsys = tmp_path, monkeypatch, capsys
    self.shared = tmp_path_factory.getbasetemp() / 'extended'

  def _finished(self, name='copy'):
    """A finished run, made once: `self.dir / name`."""
    if not self.shared.exists():
      loop.run(tiny(), self.shared)
    shutil.copytree(self.shared, self.dir / name)
    self.capsys.readouterr()
    return self.dir / name

  def test_goes_on_and_what_depends_on_it_is_made_again(self):
    work = self._finished()
    before = {name: _bits(work, name) for name in 'abc'}
    loop.run(tiny(b=dict(steps=11)), work, dry_run=True)
    dry = self.capsys.readouterr().out
    loop.run(tiny(b=dict(steps=11)), work)
    log = self.capsys.readouterr().out
    for said in (dry, log):
      self.assertIn('[b] has 11 steps instead of 6 and goes on', said)
      self.assertIn("[c] is made again, as 'b' has more steps", said)
    self.assertIn('[b] resumed at step 6.', log)
    self.assertNotIn('[a] step', log)
    self.assertEqual(_bits(work, 'a'), before['a'])
    for name in 'bc':
      self.assertNotEqual(_bits(work, name), before[name])
    self.assertEqual(
      (_result(work, 'b')['step'], _result(work, 'b')['lengths']), (11, [6])
    )
    self.assertEqual(_result(work, 'c')['lengths'], [])
    self.assertEqual(os.listdir(work / 'checkpoints'), [])
    self.assertEqual(sorted(os.listdir(work / 'stages')), ['a', 'b', 'c'])
    steps = [
      x['step']
      for x in metrics.read(work / 'metrics.jsonl')
      if x['stage'] == 'b'
    ]
    self.assertEqual(steps, [2, 4, 5, 6, 8, 10, 11])
    notes = {row.name: row.notes for row in report.read(work).stages}
    self.assertIn('It went on after 6 steps', notes['b'][-1])

    # Fewer steps again, or another number: the words say what there is.
    with pytest.raises(ValueError, match='stage.b.steps was 11, is 6'):
      loop.run(tiny(), work)
    # A stage at the end, and what is reported, are the rest to do.
    config = tiny(
      b=dict(steps=11),
      d=dict(model='mlp', init='a', prune=((r'.*/kernel', 0.5), (r'.*', None))),
    )
    config['report']['reference'] = 'b'
    loop.run(config, work)
    self.assertNotIn(
      '] step', self.capsys.readouterr().out.split('compressed')[1]
    )
    self.assertLen(report.read(work).stages, 4)

  @parameterized.named_parameters(
    ('between', (checkpoint.Checkpoints, 'save'), -1),
    ('when_the_stage_is_saved', (checkpoint, 'save'), 1),
    ('between_the_names', (os, 'rename'), 'stages/b.old'),
    ('before_what_depends_on_it', (extend, 'put'), 2),
  )
  def test_killed(self, where, call):
    """Before the call of that number; after it, or that to a path, where it says so."""
    owner, name = where
    without_report(self.monkeypatch)
    whole = self.shared.with_name('extended_whole')
    work = self._finished()
    if not whole.exists():
      shutil.copytree(self.shared, whole)
      loop.run(tiny(b=dict(steps=11)), whole)
    original, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
      calls.append(1)
      if len(calls) == call:
        raise Killed()
      found = original(*args, **kwargs)
      by_path = isinstance(call, str) and str(args[-1]).endswith(call)
      if by_path or call == -len(calls):
        raise Killed()
      return found

    with self.monkeypatch.context() as patch:
      patch.setattr(owner, name, killed)
      with pytest.raises(Killed):
        loop.run(tiny(b=dict(steps=11)), work)
    loop.run(tiny(b=dict(steps=11)), work)
    for stage in 'abc':
      self.assertEqual(_bits(work, stage), _bits(whole, stage))
    self.assertEqual(_result(work, 'b')['lengths'], [6])
    self.assertEqual(sorted(os.listdir(work / 'stages')), ['a', 'b', 'c'])

  def test_what_is_made_again_goes_on_after_a_kill(self):
    without_report(self.monkeypatch)
    work, longer = self._finished(), tiny(a=dict(steps=9))
    original = loop._finish

    def killed(job, built, *args):
      if built.stage.name == 'b':
        raise Killed()
      original(job, built, *args)

    with self.monkeypatch.context() as patch:
      patch.setattr(loop, '_finish', killed)
      with pytest.raises(Killed):
        loop.run(longer, work)
    self.assertIn('[b] is made again', self.capsys.readouterr().out)
    loop.run(longer, work, dry_run=True)
    loop.run(longer, work)
    self.assertIn('[b] resumed at step 6.', self.capsys.readouterr().out)
    self.assertEqual(_result(work, 'b')['lengths'], [])

  def test_early_stopped(self):
    without_report(self.monkeypatch)
    stops = dict(steps=8, eval_every=2, patience=1, metric='loss')

    def run(**changes):
      config = tiny(a=stops | changes)
      config['data']['validation'] = 0.1
      config['stages'] = ('a',)
      loop.run(config, self.dir / 'w')
      return self.capsys.readouterr().out, _result(self.dir / 'w', 'a')

    self.monkeypatch.setattr(loop, '_validated', lambda *args: {'loss': 1.0})
    _, found = run()
    self.assertEqual(found['validation'][-1][0], 4)
    log, found = run(steps=16)
    self.assertIn('patience (1) was used up at step 4: it trains none', log)
    self.assertEqual(found['lengths'], [])
    log, found = run(steps=20, patience=2)
    self.assertIn('at step 4 the learning rate', log)
    self.assertEqual((found['lengths'], found['step']), ([4], 6))

  def test_other_changes_are_refused(self):
    work = self._finished()
    for change, message in (
      (dict(learning_rate=0.1), 'b.learning_rate was 0.01, is 0.1'),
      (dict(learning_rate=0.1, steps=9), 'b.learning_rate was 0.01, is 0.1; '),
    ):
      with pytest.raises(ValueError, match=f'{message}.*Use another workdir'):
        loop.run(tiny(b=change), work)
    shutil.rmtree(work / 'stages/a/state')
    with pytest.raises(ValueError, match="'a' cannot go on: .*has been remove"):
      loop.run(tiny(a=dict(steps=9)), work)
