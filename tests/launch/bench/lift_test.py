"""What `lift` leaves in memory, by the benchmark that prints it."""

import os
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[3]


class BenchLiftTest(absltest.TestCase):
  def test_temporaries_of_a_scanned_model(self):
    # In a process of its own: as users compile.
    env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    done = subprocess.run(
      [sys.executable, '-m', 'launch.bench.lift', '--repeats=1'],
      cwd=_ROOT,
      env=env,
      capture_output=True,
      text=True,
      timeout=600,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    ratio = re.search(r'dense program .* ratio ([\d.]+)', done.stdout)
    self.assertLess(float(ratio[1]), 1.1)
    self.assertIn('is that of f: True', done.stdout)


if __name__ == '__main__':
  absltest.main()
