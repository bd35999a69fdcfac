"""The benchmark of kernels runs, small, and checks what it times."""

import subprocess
import sys

from absl.testing import absltest

from jaxopt_compress.kernels.cpu import native
from launch.bench.kernels import cells
from launch.bench.kernels import zeros


def _run(*flags):
  small = ['--rounds=1', '--turn_ms=0.1', '--stream_mib=4']
  done = subprocess.run(
    [sys.executable, '-m', 'launch.bench.kernels', *small, *flags],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


class BenchKernelsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    if not native.available():
      self.skipTest('the kernels were not built')

  def test_a_row_for_each_contestant_and_its_result_checked(self):
    out = _run('--rows=1', '--sizes=128x64')
    rows = [line for line in out.splitlines() if '  XLA float32' in line]
    self.assertLen(rows, 1, out)
    for name in (cells.XLA, cells.CODES, *cells.OURS):
      self.assertIn(f'\n  {name} ', out)
    self.assertNotIn('WRONG', out)
    self.assertNotIn('does not take part', out)
    self.assertIn('int8 over float32', out)

  def test_zeros(self):
    found = zeros.measured(64, 64, None, 0.5, rounds=1, budget=1e-4)
    speeds, stars = zip(*((float(f[:-1]), f[-1]) for f in found))
    self.assertGreater(min(speeds), 0)
    self.assertEqual(stars, ('*', ' ', ' '))

  def test_whole_models(self):
    out = _run('--rows=', '--sizes=', '--end_to_end', '--tiny')
    for words in ('digits student', 'encoder', 'decoding step', 'from XLA'):
      self.assertIn(words, out)
    self.assertNotIn('WRONG', out)


if __name__ == '__main__':
  absltest.main()
