"""The benchmark refuses to time a CPU, and checks outputs there."""

import os
import subprocess
import sys

from absl.testing import absltest


def _run(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'launch.bench.pallas', *flags],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
  )


class BenchTest(absltest.TestCase):
  def test_needs_an_accelerator(self):
    done = _run()
    self.assertEqual(done.returncode, 2)
    self.assertIn('needs an accelerator', done.stderr)
    self.assertEqual(done.stdout, '')

  def test_outputs(self):
    done = _run('--check', '--rows=3', '--sizes=256x130')
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    for name in ('W4A16 g128', 'W8A16', 'W8A8'):
      self.assertRegex(done.stdout, rf'{name} +error .* ok')
    self.assertNotIn('WRONG', done.stdout)


if __name__ == '__main__':
  absltest.main()
