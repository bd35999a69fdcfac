"""The benchmark runs, small, and says what it measured."""

import subprocess
import sys

from absl.testing import absltest


class BenchTest(absltest.TestCase):
  def test_small(self):
    flags = ['--examples=300', '--steps=2', '--seeds=1', '--k=4', '--read=2']
    done = subprocess.run(
      [sys.executable, '-m', 'launch.bench.tail', *flags],
      capture_output=True,
      text=True,
      timeout=300,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('k = 4: the teacher has mass', done.stdout)
    for name in ('dense', 'tail bucket', 'draws', 'renormalised', 'no tail'):
      self.assertRegex(done.stdout, rf'\n{name} .*mass 0\.\d+')


if __name__ == '__main__':
  absltest.main()
