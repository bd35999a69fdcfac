"""The command line: mistakes get one line, a good command gets a report."""

import json
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
PROCESS = dict(
  cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu', 'SSH_CONNECTION': ''}
)


# Most of a short command's time goes into imports. They are done once here, and each
# command gets a process of its own that has them.
SERVER = """
import json, os, signal, sys, warnings
from jaxopt_compress.command import console
import jaxopt_compress.command.run  # What takes long to import.
for line in sys.stdin:
  argv, stdout, stderr = json.loads(line)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # JAX warns, and has started nothing yet
    process = os.fork()
  if not process:
    for number, path in ((1, stdout), (2, stderr)):
      os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = argv
    # The tests themselves may run in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console.main()
  _, status = os.waitpid(process, 0)
  print(os.waitstatus_to_exitcode(status), flush=True)
"""
INTERRUPTED = """
import gc, os, signal
from configs import quantize_ptq
from jaxopt_compress.train import examples

def load(*args):
  print('loading', end='')
  # JAX has a callback as well, and Python drops what is raised in one.
  gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGINT))
  gc.collect()

examples.load = load
get_config = quantize_ptq.get_config
"""


def _command(*flags, config='configs/quantize_ptq.py:runlocal'):
  return ['launch.main', f'--config={config}', *flags]


class LaunchTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.server = cls.enterClassContext(
      subprocess.Popen(
        [sys.executable, '-c', SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **PROCESS,
      )
    )

  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.workdir = tmp_path / 'workdir'
    self.outputs = [str(tmp_path / name) for name in ('stdout', 'stderr')]

  def _launch(self, *flags, **config):
    argv = _command(*flags, **config)
    print(json.dumps([argv, *self.outputs]), file=self.server.stdin, flush=True)
    code = int(self.server.stdout.readline())
    output = [pathlib.Path(path).read_text() for path in self.outputs]
    return subprocess.CompletedProcess(argv, code, *output)

  def test_runs_and_reports(self):
    done = subprocess.run(
      [
        sys.executable,
        '-m',
        *_command(f'--workdir={self.workdir}', *ONE_STAGE),
      ],
      capture_output=True,
      text=True,
      timeout=300,
      **PROCESS,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('[float] step 2/2', done.stdout)
    self.assertIn('parameters', done.stdout)
    for kind in ('html', 'md', 'json'):
      self.assertTrue((self.workdir / f'report.{kind}').exists())
    opened = (self.workdir / 'report.html').as_uri()
    self.assertEqual(done.stdout.splitlines()[-1], f'Report: {opened}')

  def test_ctrl_c_before_there_is_anything_to_save(self):
    config = self.workdir.with_name('interrupted.py')
    config.write_text(INTERRUPTED)
    done = self._launch(
      f'--workdir={self.workdir}', config=f'{config}:runlocal'
    )
    self.assertEqual(done.returncode, 130, done.stderr)
    self.assertEqual(done.stderr, 'Stopped; there was nothing to save.\n')
    self.assertEndsWith(done.stdout, 'loading')

  def test_dry_run(self):
    done = self._launch(f'--workdir={self.workdir}', '--dry_run')
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
      "no config 'configs/digit.py'. Did you mean 'configs/digits.py'?",
    ),
    (
      'no_workdir',
      dict(workdir=()),
      '--workdir is missing. Directory of checkpoints',
    ),
    (
      'empty_config',
      dict(flags=('--config=',)),
      '--config is missing. A file of get_config(arg)',
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
    done = self._launch(*workdir, *flags, config=config)
    self.assertIn(message, done.stderr)
    self.assertEqual(done.returncode, 2)
    self.assertLen(done.stderr.splitlines(), 1, done.stderr)

  def test_workdir_that_cannot_be_written(self):
    self.workdir.write_text('a file')
    done = self._launch(f'--workdir={self.workdir}')
    self.assertEqual(done.returncode, 2)
    self.assertIn('cannot be read and written', done.stderr)
    self.assertNotIn('Traceback', done.stderr)
