"""What evaluations decide, and that a run which is killed decides the same."""

import dataclasses
import json
import math
import os
import types

from absl.testing import parameterized
import numpy as np
import pytest

from jaxopt_compress import report
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import loop
from jaxopt_compress.train import metrics
from jaxopt_compress.train import options
from jaxopt_compress.train import validation

DATA = options.Data(name='digits', validation='validation')

UP = ('accuracy', 'top 5')  # of others less is better


def _history(values, metric='accuracy', since=0, **rules):
  rules = options.Validation(every=10, **rules)
  found = validation.History(rules, metric, metric in UP, since)
  for i, x in enumerate(values, 1):
    found = found.after(10 * i, {metric: x, 'loss': 0.0} | {metric: x})
  return found


class HistoryTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('up', 'accuracy', 0, [0.5, 0.7, 0.6], 20),
    ('down', 'loss', 0, [0.5, 0.7, 0.6], 10),
    ('first_of_equals', 'accuracy', 0, [0.5, 0.7, 0.7], 20),
    ('after_the_ramp', 'accuracy', 25, [0.5, 0.7, 0.6, 0.5], 30),
    ('at_its_end', 'accuracy', 20, [0.9, 0.7, 0.6], 20),
    ('nan', 'accuracy', 0, [math.nan, 0.1, math.nan], 20),
    ('inf', 'loss', 0, [-math.inf, 3.0], 20),
    ('none', 'accuracy', 0, [math.nan], None),
    ('nothing', 'accuracy', 0, [], None),
  )
  def test_best(self, metric, since, values, best):
    self.assertEqual(_history(values, metric, since).best, best)

  @parameterized.named_parameters(
    ('never', dict(), [0.5, 0.4, 0.3, 0.2], None),
    ('two', dict(patience=2), [0.5, 0.4, 0.3, 0.2], 30),
    ('rises_again', dict(patience=2), [0.5, 0.4, 0.6, 0.5, 0.5], 50),
    ('equal', dict(patience=1), [0.5, 0.5], 20),
    ('small', dict(patience=2, min_delta=0.1), [0.5, 0.55, 0.58], 30),
    # Measured from the last improvement, so that slow progress is progress.
    ('slow', dict(patience=2, min_delta=0.1), [0.5, 0.55, 0.62, 0.65], None),
    ('nan', dict(patience=2), [0.5, math.nan, math.nan], 30),
    ('from_nan', dict(patience=2), [math.nan, 0.5, 0.4], None),
    ('ramp', dict(patience=2, since=35), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 60),
  )
  def test_stalled(self, rules, values, stops):
    found = [
      10 * n
      for n in range(1, len(values) + 1)
      if _history(values[:n], **rules).stalled
    ]
    self.assertEqual(found[:1], [stops] if stops else [])

  def test_json(self):
    history = _history([0.1, math.nan, math.inf], 'accuracy')
    text = json.dumps(history.to_json(), allow_nan=False)
    again = _history([]).from_json(json.loads(text))
    self.assertEqual(str(again.seen), str(history.seen))

  def test_told(self):
    told = _history([0.5, 0.4], 'accuracy', keep='best').told(50)
    self.assertEqual(told, 'step 20/50, validation: accuracy 0.4, loss 0.')
    for since, value, word in (
      (0, 0.6, 'the best so far'),
      (30, 0.6, 'decides nothing before step 30'),
      (0, math.nan, 'accuracy is no number'),
    ):
      history = _history([0.5, value], since=since, keep='best')
      self.assertIn(word, history.told(50))

  def test_outcome(self):
    stage = options.Stage(
      name='s',
      model='m',
      steps=100,
      optimizer=options.Optimizer(learning_rate=0.2, decay='linear'),
    )
    history = _history([0.4, 0.5, 0.4, 0.3], keep='best', patience=2)
    self.assertEqual(
      validation.outcome(stage, history),
      'keeps step 20 of 40, with the best accuracy, 0.5, of 4 evaluations; stopped'
      ' at step 40 of 100, as accuracy saw no improvement in 2 evaluations (best 0.5'
      ' at step 20); the learning rate, linear over 100 steps, was then 0.12, 60% of'
      ' its peak.',
    )
    self.assertEqual(validation.outcome(stage, _history([0.5])), '')
    at_its_end = dataclasses.replace(stage, steps=40)
    said = validation.outcome(at_its_end, history)
    self.assertEndsWith(said, 'of 4 evaluations.')
    with pytest.raises(ValueError, match="'accuracy'.* in none of 1 eval"):
      validation.outcome(stage, _history([math.nan], keep='best'))


def tiny(data=(), run=(), **changes):
  """A stage of 12 steps that leaves the best of six evaluations."""
  stage = dict(
    model='mlp',
    steps=12,
    batch_size=16,
    learning_rate=0.03,
    eval_every=2,
    keep='best',
    metric='loss',
  )
  return dict(
    data=dict(name='digits', eval_batch_size=180, limit=100)
    | dict(validation='validation')
    | dict(data),
    models=dict(mlp=dict(in_features=64, widths=(8,))),
    stages=('a',),
    stage=dict(a=stage | changes),
    report=dict(batches=(1,), seconds=0.0, plots=False),
    run=dict(devices=1, log_every=4, save_every=5) | dict(run),
  )


class CheckTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('no_split', dict(data=dict(validation='')), 'Set that to a split'),
    ('test', dict(data=dict(validation='test')), 'is no longer judged by it'),
    ('of_several', dict(data=dict(validation='validation+test')), "on 'test'"),
    (
      'trained_on',
      dict(data=dict(train='train+validation')),
      'validation is in both, and what is learned by heart',
    ),
    (
      'tested',
      dict(data=dict(train='test', validation=0.1)),
      'test is in both',
    ),
    (
      'a_part_tested',
      dict(data=dict(train='train+test', test='test[50%:]')),
      r'config.data.test is .*test is in both.*test\[:80%\]',
    ),
    ('share', dict(data=dict(validation=1.5)), r'a number in \(0, 1\)'),
    ('too_seldom', dict(eval_every=13), 'would be evaluated at its end alone'),
    ('word', dict(keep='bset'), "Did you mean 'best'"),
    ('metric', dict(metric='acuracy'), "Did you mean 'accuracy'"),
    (
      'of_texts',
      dict(metric='perplexity'),
      "config.stage.a.metric is 'perplexity'",
    ),
  )
  def test_mistakes(self, changes, message):
    with pytest.raises(ValueError, match=message):
      loop.run(tiny(**changes), '/nowhere', dry_run=True)

  def test_a_split_that_decides_nothing_may_be_the_test(self):
    changes = dict(keep='last', metric='')
    loop.run(tiny(dict(validation='test'), **changes), '/nowhere', dry_run=True)
    validation.check_split(
      options.Data(name='images', train='npz@/a+b', validation='npz@/c+b')
    )


def without_report(patch):
  """Runs end with their last stage: what follows is tested elsewhere."""
  measured = types.SimpleNamespace(failed=None)
  patch.setattr(loop.measure, 'measure', lambda *args: measured)
  patch.setattr(loop.record, 'record', lambda *args: None)
  patch.setattr(loop.report, 'text', lambda found: '')


class Killed(BaseException):
  """Nothing in the library catches this, as nothing catches SIGKILL."""


def _left(workdir):
  """(CRC of every array that the stage left, its result)."""
  stage = workdir / 'stages' / 'a'
  leaves = checkpoint.read_manifest(stage / 'tree')['leaves']
  result = json.loads((stage / 'result.json').read_text())
  result.pop('sha256')
  return leaves, result


# Runs that died leave files and event loops open, which is no mistake here.
@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::ResourceWarning'
)
@pytest.mark.usefixtures('compiled')
class RunTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path, monkeypatch, tmp_path_factory, capsys):
    self.dir, self.monkeypatch, self.capsys = tmp_path, monkeypatch, capsys
    self.shared = tmp_path_factory.getbasetemp() / 'validated'

  def _spoiled(self, patch, by_step):
    """The loss of validation, made worse at some steps: {step: what is added}."""
    original = loop._judged

    def judged(job, built, final, examples):
      found = original(job, built, final, examples)
      if examples is job.data.validation:
        # Counted from the steps that are there, as runs may resume.
        lines = metrics.read(job.work / 'metrics.jsonl')
        seen = [x for x in lines if x['stage'] == 'a/validation']
        worse = by_step.get(2 * len(seen) + 2, 0.0)
        numbers = found.metrics | {'loss': found.metrics['loss'] + worse}
        found = dataclasses.replace(found, metrics=numbers)
      return found

    patch.setattr(loop, '_judged', judged)

  def test_keeps_the_best_of_the_final_masks(self):
    """Of steps 8 to 12, though step 2 has by far the best loss."""
    config = tiny(
      prune=((r'.*/kernel', 0.5), (r'.*', None)),
      prune_span=(0.0, 2 / 3),
      prune_every=1,
    )
    with self.monkeypatch.context() as patch:
      self._spoiled(patch, {2: -9.0, 8: 0.5, 12: 5.0})
      loop.run(config, self.dir)
    _, result = _left(self.dir)
    self.assertEqual(result['step'], 10)
    self.assertEqual([s for s, _ in result['validation']], [2, 4, 6, 8, 10, 12])
    log = self.capsys.readouterr().out
    self.assertIn('keeps step 10 of 12, with the best loss', log)
    self.assertIn('decides nothing before step 8', log)
    [row] = report.read(self.dir).stages
    self.assertBetween(row.sparsity, 0.47, 0.5)
    lines = metrics.read(self.dir / 'metrics.jsonl')
    seen = [x for x in lines if x['stage'] == 'a/validation']
    self.assertEqual(
      set(seen[0]), {'stage', 'step', 'accuracy', 'top 5', 'loss'}
    )
    [test] = [x for x in lines if x['stage'] == 'a/test']
    self.assertEqual(test['step'], 10)
    self.assertEqual(os.listdir(self.dir / 'checkpoints'), [])

  def _whole(self):
    """What a run leaves that keeps step 10 of 12."""
    if not self.shared.exists():
      loop.run(tiny(), self.shared)
    return _left(self.shared)

  @parameterized.named_parameters(
    ('in_an_evaluation', (loop, '_judged'), 5),
    ('before_the_best_is_whole', (checkpoint.Checkpoints, 'wait'), 5),
    ('after_the_save_of_the_best', (checkpoint.Checkpoints, 'save'), -3),
    ('when_the_best_is_read', (checkpoint.Checkpoints, 'restore_step'), 1),
  )
  def test_killed(self, where, call):
    """Before a call that is given by its number, or after it if that is negative."""
    owner, name = where
    original, calls = getattr(owner, name), []
    without_report(self.monkeypatch)
    self._spoiled(self.monkeypatch, {12: 5.0})
    whole = self._whole()

    def killed(*args, **kwargs):
      calls.append(1)
      if len(calls) == call:
        raise Killed()
      found = original(*args, **kwargs)
      if len(calls) == -call:
        raise Killed()
      return found

    with self.monkeypatch.context() as patch:
      if owner is not loop:
        patch.setattr(owner, name, killed)
      else:
        original = getattr(loop, name)
        patch.setattr(loop, name, killed)
      with pytest.raises(Killed):
        loop.run(tiny(), self.dir)
    loop.run(tiny(), self.dir)
    self.assertEqual(_left(self.dir), whole)
    self.assertEqual(whole[1]['step'], 10)

  def test_stops_early(self):
    """Also where it is killed between the last step and its end."""
    config = tiny(keep='last', patience=1)

    def killed(*args):
      raise Killed()

    without_report(self.monkeypatch)
    self._spoiled(self.monkeypatch, {6: 1.0})
    with self.monkeypatch.context() as patch:
      patch.setattr(loop, '_finish', killed)
      with pytest.raises(Killed):
        loop.run(config, self.dir)
    loop.run(config, self.dir)
    self.assertEqual(_left(self.dir)[1]['step'], 6)
    log = self.capsys.readouterr().out
    self.assertEqual(
      log.count('[a] stopped at step 6 of 12, as loss saw no improvement in 1'),
      2,
    )
    self.assertNotIn('] step 7', log)

  def test_a_loss_that_is_nan(self):
    self._spoiled(self.monkeypatch, {6: math.nan})
    message = "validation loss is nan at step 6 of stage 'a'.*kept .step 5"
    with pytest.raises(loop.Diverged, match=message):
      loop.run(tiny(), self.dir)

  def test_a_share_of_the_training_examples(self):
    """Evaluations that decide nothing may change in a finished run."""
    same = dict(keep='last', metric='')
    without_report(self.monkeypatch)
    config = tiny(dict(validation=0.1), **same | dict(eval_every=0))
    loop.run(config, self.dir)
    self.assertIn(
      '1,132 to train, 100 held out, 126 for validation (10% of the training'
      ' examples, held back)',
      self.capsys.readouterr().out,
    )
    before = _left(self.dir)
    [[step, seen]] = before[1]['validation']
    self.assertEqual(step, 12)
    self.assertTrue(np.isfinite(list(seen.values())).all())
    loop.run(tiny(dict(validation=0.1), **same | dict(eval_every=3)), self.dir)
    self.assertEqual(_left(self.dir), before)
    with pytest.raises(ValueError, match="a.keep was 'absent', is 'best'"):
      loop.run(tiny(dict(validation=0.1)), self.dir)
    with pytest.raises(ValueError, match='validation was 0.1, is 0.2'):
      loop.run(tiny(dict(validation=0.2), **same), self.dir)
