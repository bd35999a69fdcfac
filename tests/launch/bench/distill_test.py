"""The benchmark runs, small, and says what it measured."""

import subprocess
import sys

from absl.testing import absltest


class BenchTest(absltest.TestCase):
  def test_small(self):
    flags = ['--repeats=1', '--classes=512', '--positions=64', '--chunk=8']
    done = subprocess.run(
      [sys.executable, '-m', 'launch.bench.distill', *flags, '--vocabulary=96'],
      capture_output=True,
      text=True,
      timeout=300,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    for words in (
      '512 classes, 64 positions:',
      'of their largest entry apart   met',
      'in blocks over all',
      'a step with a teacher over the plain one',
      'a step with its cache over the teacher',
    ):
      self.assertIn(words, done.stdout)


if __name__ == '__main__':
  absltest.main()
