"""What is timed saves and loads the same tree."""

import tempfile

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
import jax
import numpy as np

from launch.bench import saving


class SavingTest(absltest.TestCase):
  def test_each_is_measured_and_loads_what_was_saved(self):
    flags.FLAGS.mark_as_parsed()
    with (
      flagsaver.flagsaver(mib=1, arrays=4),
      tempfile.TemporaryDirectory() as folder,
    ):
      for step in saving.SAVES:
        seconds, _ = saving.measure(step, folder)
        self.assertGreater(seconds, 0)
      tree = saving._tree()
      for load in saving.LOADS.values():
        jax.tree.map(
          np.testing.assert_array_equal, load(folder, saving._shapes()), tree
        )


if __name__ == '__main__':
  absltest.main()
