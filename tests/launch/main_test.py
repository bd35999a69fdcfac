"""The command line: mistakes get one line, a good command gets a report."""

import os
import pathlib
import subprocess
import sys

from absl.testing import parameterized
import pytest

ROOT = pathlib.Path(__file__).parents[2]
ONE_STAGE = (
  "--config.stages=('float',)",
  '--config.stage.float.steps=2',
  '--config.report.plots=False',
)


def _launch(*flags, config='configs/quantize_ptq.py:runlocal'):
  return subprocess.run(
    [sys.executable, '-m', 'launch.main', f'--config={config}', *flags],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
  )


class LaunchTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.workdir = tmp_path / 'workdir'

  def test_runs_and_reports(self):
    done = _launch(f'--workdir={self.workdir}', *ONE_STAGE)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('[float] step 2/2', done.stdout)
    self.assertIn('parameters', done.stdout)
    self.assertTrue((self.workdir / 'report.md').exists())

  def test_dry_run(self):
    done = _launch(f'--workdir={self.workdir}', '--dry_run')
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('int8 channel', done.stdout)
    self.assertFalse(self.workdir.exists())

  @parameterized.named_parameters(
    (
      'unknown_key_in_a_stage',
      dict(flags=("--config.stages=('flaot',)",)),
      "config.stage has no 'flaot'. Did you mean 'float'?",
    ),
    (
      'unknown_key',
      dict(flags=('--config.sede=1',)),
      "config has no 'sede'. Did you mean 'seed'?",
    ),
    (
      'unknown_preset',
      dict(flags=("--config.stage.w8a8.quantize=(('.*', 'W8A9'),)",)),
      "Stage 'w8a8': 'W8A9' is no scheme. Did you mean 'W8A8'",
    ),
    (
      'uncovered_leaf',
      dict(flags=("--config.stage.w8a8.quantize=(('head/.*', None),)",)),
      "Stage 'w8a8': No rule covers layers/0/bias",
    ),
    (
      'no_config',
      dict(config='configs/digit.py'),
      "There is no config configs/digit.py. Did you mean 'configs/digits.py'?",
    ),
    (
      'no_workdir',
      dict(workdir=()),
      '--workdir is missing. Directory of checkpoints',
    ),
    (
      'argument',
      dict(flags=('more',)),
      "'more' is no flag. Write --flag=value.",
    ),
  )
  def test_mistakes(self, how, message):
    flags = how.get('flags', ())
    config = how.get('config', 'configs/quantize_ptq.py:runlocal')
    workdir = how.get('workdir', (f'--workdir={self.workdir}',))
    done = _launch(*workdir, *flags, config=config)
    self.assertIn(message, done.stderr)
    self.assertEqual(done.returncode, 2)
    self.assertLen(done.stderr.splitlines(), 1, done.stderr)

  def test_workdir_that_cannot_be_written(self):
    self.workdir.write_text('a file')
    done = _launch(f'--workdir={self.workdir}')
    self.assertEqual(done.returncode, 2)
    self.assertIn('cannot be read and written', done.stderr)
    self.assertNotIn('Traceback', done.stderr)
