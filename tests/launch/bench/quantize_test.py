"""The benchmark runs, small, and says what it measured."""

import subprocess
import sys

from absl.testing import absltest


class BenchTest(absltest.TestCase):
  def test_small(self):
    flags = ['--repeats=1', '--gib=0.02', '--models=mlp']
    done = subprocess.run(
      [sys.executable, '-m', 'launch.bench.quantize', *flags],
      capture_output=True,
      text=True,
      timeout=300,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    for words in (
      'mlp, step W8A8, rounded residuals',
      'mlp, forward W4A16',
      'x float',
      'GiB to MXFP4',
      'of the tree',
    ):
      self.assertIn(words, done.stdout)


if __name__ == '__main__':
  absltest.main()
