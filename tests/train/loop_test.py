"""Kill it anywhere, run it again: the same bits."""

import gc
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

from absl.testing import parameterized
import jax
import numpy as np
import pytest

from jaxopt_compress import data as batches_lib
from jaxopt_compress import report
from jaxopt_compress.disk import sealed
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import loop
from jaxopt_compress.train import metrics
from jaxopt_compress.train import preemption

# Runs that died leave files and event loops open, which is no mistake here.
pytestmark = [
  *(
    pytest.mark.filterwarnings(f'ignore::{name}')
    for name in ('pytest.PytestUnraisableExceptionWarning', 'ResourceWarning')
  ),
  pytest.mark.usefixtures('compiled'),
]

QUANTIZE = ((r'.*/kernel', 'W8A8'), (r'.*', None))
REPORTS = ('report.html', 'report.json', 'report.md')


def tiny(**stage_changes):
  """Three stages of a few steps: a teacher, a student learning int8, PTQ."""
  common = dict(model='mlp', batch_size=16, learning_rate=0.01, augment=True)
  stages = {
    'teacher': dict(steps=8, **common),
    'student': dict(
      steps=6,
      teacher=(('teacher', 0.5), ('ema', 0.5)),
      mixup=1.0,
      quantize=QUANTIZE,
      clip=1.0,
      **common,
    ),
    'int4': dict(model='mlp', init='teacher', quantize=((r'.*', None),)),
  }
  stages['int4']['quantize'] = ((r'.*/kernel', 'W4A16'), (r'.*', None))
  for name, change in stage_changes.items():
    stages[name].update(change)
  return dict(
    seed=0,
    data=dict(name='digits', test='validation', eval_batch_size=64),
    models=dict(mlp=dict(in_features=64, widths=(8,))),
    stages=tuple(stages),
    stage=stages,
    report=dict(batches=(1,), seconds=0.0, plots=False),
    run=dict(devices=1, log_every=2, save_every=3),
  )


def _bits(workdir):
  """CRC of every array that every finished stage left behind."""
  found = {}
  for stage in sorted((pathlib.Path(workdir) / 'stages').iterdir()):
    manifest = checkpoint.read_manifest(stage / 'tree')
    for name, (_, _, crc) in manifest['leaves'].items():
      found[stage.name, name] = crc
  return found


def _flip(path):
  """Changes a bit in the middle of a file, or of the first one of a folder."""
  if path.is_dir():
    path = next(path.iterdir())
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def _remove(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


class Killed(BaseException):
  """Nothing in the library catches this, as nothing catches SIGKILL."""


class LoopTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path, monkeypatch, tmp_path_factory, capsys):
    self.dir, self.monkeypatch, self.capsys = tmp_path, monkeypatch, capsys
    self.shared = tmp_path_factory.getbasetemp() / 'unbroken'
    yield
    gc.collect()  # now, where the mark above is in force

  def _unbroken(self):
    """The bits of a run without a break, made once."""
    if not self.shared.exists():
      loop.run(tiny(), self.shared)
    return _bits(self.shared)

  def _check(self, workdir):
    self.assertEqual(_bits(workdir), self._unbroken())
    self.assertEqual(os.listdir(workdir / 'checkpoints'), [])
    for stage in ('teacher', 'student'):
      ours, theirs = (
        [x for x in metrics.read(d / 'metrics.jsonl') if x['stage'] == stage]
        for d in (workdir, self.shared)
      )
      self.assertEqual(
        [x for x in ours if x['step'] % 2 == 0],
        [x for x in theirs if x['step'] % 2 == 0],
      )
      steps = [x['step'] for x in ours]
      self.assertEqual(steps, sorted(set(steps)))

  def test_what_a_run_leaves_behind(self):
    self._unbroken()
    found = sorted(p.name for p in self.shared.iterdir())
    for name in ('config.json', 'metrics.jsonl', *REPORTS):
      self.assertIn(name, found)
    page = report.read(self.shared)
    self.assertEqual(
      [s.name for s in page.stages], ['teacher', 'student', 'int4']
    )
    self.assertEqual(page.stages[1].agreement is None, False)
    self.assertIn('int8 channel', page.coverage['student'][1].format)
    result = json.loads(
      (self.shared / 'stages/student/result.json').read_text()
    )
    self.assertEqual(result['accuracy'], page.stages[1].value)
    self.assertEqual(os.listdir(self.shared / 'checkpoints'), [])

  def test_finished_stages_are_skipped(self):
    self._unbroken()
    self.capsys.readouterr()
    loop.run(tiny(), self.shared)
    self.assertNotIn(
      'step', self.capsys.readouterr().out.split('compressed')[1]
    )

  @parameterized.named_parameters(
    ('before_the_first_checkpoint', (batches_lib, 'Batches', '__getitem__'), 2),
    ('between_checkpoints', (batches_lib, 'Batches', '__getitem__'), 5),
    ('in_the_second_stage', (batches_lib, 'Batches', '__getitem__'), 12),
    ('at_a_save', (checkpoint, 'Checkpoints', 'save'), 2),
    ('at_the_last_save_of_a_stage', (checkpoint, 'Checkpoints', 'wait'), 5),
    ('when_a_stage_is_saved', (checkpoint, None, 'save'), 2),
    ('before_a_stage_appears', (os, None, 'rename'), 'stages/teacher'),
    ('after_a_stage_appears', (shutil, None, 'rmtree'), 'checkpoints/teacher'),
    ('before_the_report', (report, None, 'write'), 1),
  )
  def test_killed(self, where, call):
    """At a call that is given by its number, or by the path that it is about."""
    module, cls, name = where
    owner = getattr(module, cls) if cls else module
    original, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
      calls.append(1)
      by_path = isinstance(call, str) and str(args[-1]).endswith(call)
      if len(calls) == call or by_path:
        raise Killed()
      return original(*args, **kwargs)

    with self.monkeypatch.context() as patch:
      patch.setattr(owner, name, killed)
      with pytest.raises(Killed):
        loop.run(tiny(), self.dir)
    loop.run(tiny(), self.dir)
    self._check(self.dir)

  def test_sigkill_then_sigterm(self):
    for signum, step, code in (
      (signal.SIGKILL, 5, -signal.SIGKILL),
      (signal.SIGTERM, 12, preemption.EXIT_CODE),
    ):
      done = subprocess.run(
        [sys.executable, __file__, str(self.dir), str(int(signum)), str(step)],
        capture_output=True,
        text=True,
        timeout=300,
      )
      self.assertEqual(done.returncode, code, done.stderr)
    # SIGTERM came while the student's fourth batch was made: that step was taken.
    self.assertIn('4', os.listdir(self.dir / 'checkpoints' / 'student'))
    loop.run(tiny(), self.dir)
    self._check(self.dir)

  def test_ctrl_c(self):
    getitem = batches_lib.Batches.__getitem__

    def interrupted(batches, step):
      if step == 4:
        os.kill(os.getpid(), signal.SIGINT)
      return getitem(batches, step)

    # The tests themselves may run in the background, where SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, before)
    with self.monkeypatch.context() as patch:
      patch.setattr(batches_lib.Batches, '__getitem__', interrupted)
      with pytest.raises(preemption.Preempted, match="step 5 of stage 'teach"):
        loop.run(tiny(), self.dir)
    self.assertIn('5', os.listdir(self.dir / 'checkpoints' / 'teacher'))
    loop.run(tiny(), self.dir)
    self._check(self.dir)

  def test_nan_stops_and_keeps_the_last_good_checkpoint(self):
    getitem = batches_lib.Batches.__getitem__

    def spoiled(batches, step):
      batch = getitem(batches, step)
      if step == 6:
        batch = {**batch, 'image': np.full_like(batch['image'], np.nan)}
      return batch

    with self.monkeypatch.context() as patch:
      patch.setattr(batches_lib.Batches, '__getitem__', spoiled)
      message = (
        "loss is nan at step 7 of stage 'teacher'. The last good checkpoint"
        r' is kept \(step 6\)'
      )
      with pytest.raises(loop.Diverged, match=message):
        loop.run(tiny(), self.dir)
    # The data is repaired, and the run goes on from that checkpoint.
    loop.run(tiny(), self.dir)
    self._check(self.dir)

  def test_weights_that_explode_are_never_saved(self):
    config = tiny(teacher=dict(learning_rate=1e38, optimizer='sgd'))
    with pytest.raises(loop.Diverged, match="stage 'teacher'.*none yet"):
      loop.run(config, self.dir)

  @parameterized.parameters(False, True)
  def test_another_config(self, dry_run):
    self._unbroken()
    config = tiny(student=dict(alpha=0.5))
    with pytest.raises(ValueError, match='stage.student.alpha was 0.9, is 0.5'):
      loop.run(config, self.shared, dry_run=dry_run)

  @parameterized.parameters(False, True)
  def test_a_file_in_the_way_of_a_stage(self, dry_run):
    (self.dir / 'stages').mkdir()
    (self.dir / 'stages' / 'int4.partial').touch()
    with pytest.raises(
      ValueError, match='int4.partial is a file, and a folder'
    ):
      loop.run(tiny(), self.dir, dry_run=dry_run)

  def test_damaged_stage(self):
    self._unbroken()
    shutil.copytree(self.shared, self.dir / 'copy')
    stage = self.dir / 'copy' / 'stages' / 'teacher'
    for name in ('result.json', 'weights.safetensors', 'tree/state/d'):
      for damage in (_flip, _remove):
        shutil.rmtree(stage)
        shutil.copytree(self.shared / 'stages' / 'teacher', stage)
        damage(stage / name)
        where = f'{stage}.*Remove {stage} to make that stage again'
        with pytest.raises(ValueError, match=where):
          loop.run(tiny(), self.dir / 'copy')
    shutil.rmtree(stage)
    loop.run(tiny(), self.dir / 'copy')
    self.assertEqual(_bits(self.dir / 'copy'), self._unbroken())

  @parameterized.parameters(({},), ({'weights': 5},))
  def test_a_stage_that_is_sealed_by_others(self, result):
    self._unbroken()
    shutil.copytree(self.shared, self.dir / 'copy')
    stage = self.dir / 'copy' / 'stages' / 'teacher'
    sealed.write(stage / 'result.json', result)
    with pytest.raises(ValueError, match=f'Remove {stage} to make that stage'):
      loop.run(tiny(), self.dir / 'copy')

  def test_dry_run_computes_nothing(self):
    loop.run(tiny(), self.dir / 'none', dry_run=True)
    out = self.capsys.readouterr().out
    self.assertIn('layers/0/kernel', out)
    self.assertIn('int8 channel', out)
    self.assertFalse((self.dir / 'none').exists())

  def test_dry_run_looks_into_the_workdir(self):
    """Checkpoints of another config, lines that are damaged, no room for it."""
    config = tiny()
    config['stages'] = ('teacher',)
    work = self.dir / 'work'
    with checkpoint.Checkpoints(
      work / 'checkpoints/teacher', config={'seed': 1}
    ) as saver:
      saver.save(1, {'x': np.ones(1)})
    with pytest.raises(ValueError, match='seed was 1, is 0'):
      loop.run(config, work, dry_run=True)
    (work / 'metrics.jsonl').write_text('{bad\n')
    with pytest.raises(ValueError, match='metrics.jsonl:1 is damaged'):
      loop.run(config, work, dry_run=True)
    with pytest.raises(
      ValueError, match='work/.*metrics.jsonl, which is no fo'
    ):
      loop.run(config, work / 'metrics.jsonl' / 'work', dry_run=True)

  @parameterized.named_parameters(
    ('rule', dict(quantize=((r'kernl', 'W8A8'), (r'.*', None))), 'matches no'),
    ('preset', dict(quantize=((r'.*', 'W8A9'),)), "Did you mean 'W8A8'"),
    ('uncovered', dict(quantize=((r'.*/kernel', 'W8A8'),)), 'No rule covers'),
    (
      'optimizer',
      dict(optimizer='adam'),
      r"optimizer='adam'; choose one of \('adamw'",
    ),
  )
  def test_mistakes_in_a_late_stage_come_first(self, change, message):
    config = tiny(student=change)
    with pytest.raises(ValueError, match=f"Stage 'student'.*{message}"):
      loop.run(config, self.dir)

  def test_workdir_that_cannot_be_written(self):
    (self.dir / 'file').write_text('')
    with pytest.raises(ValueError, match='cannot be read and written'):
      loop.run(tiny(), self.dir / 'file' / 'workdir')

  @parameterized.parameters('shard_map', 'pmap', 'jit')
  def test_modes(self, mode):
    self._unbroken()
    config = tiny()
    config['stages'] = ('teacher',)
    config['run'].update(mode=mode, devices=2)
    loop.run(config, self.dir)
    one = checkpoint.read_manifest(self.shared / 'stages/teacher/tree')
    two = checkpoint.read_manifest(self.dir / 'stages/teacher/tree')
    self.assertEqual(one['leaves'].keys(), two['leaves'].keys())


def main(workdir, signum, step):
  """Runs `tiny` in `workdir`; it signals itself when batch `step` is asked for."""
  getitem, calls = batches_lib.Batches.__getitem__, []

  def signalled(batches, i):
    # Steps are counted over stages: the student's first follows the teacher's 8.
    calls.append(1)
    stage_begin = (
      8 if (pathlib.Path(workdir) / 'stages/teacher').exists() else 0
    )
    if stage_begin + i + 1 == int(step):
      os.kill(os.getpid(), int(signum))
    return getitem(batches, i)

  batches_lib.Batches.__getitem__ = signalled
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  loop.run(tiny(), workdir)


if __name__ == '__main__':
  main(*sys.argv[1:])
