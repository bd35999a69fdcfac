"""The benchmark runs, small, and says what it measured."""

import subprocess
import sys

from absl.testing import absltest


class BenchTest(absltest.TestCase):
  def test_small(self):
    flags = ['--repeats=1', '--gib=0.02', '--models=mlp', '--weights=65536']
    done = subprocess.run(
      [sys.executable, '-m', 'launch.bench.prune', *flags],
      capture_output=True,
      text=True,
      timeout=300,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    for words in (
      'mlp, masked step, between updates',
      'one update in 100',
      'the mask is that of sorting: True',
      '65,536 weights, mask over sorting',
      'to half of 7 groups',
      'of the tree',
    ):
      self.assertIn(words, done.stdout)


if __name__ == '__main__':
  absltest.main()
