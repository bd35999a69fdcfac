"""Pictures: of nothing, and of odd values."""

import dataclasses
import math
import os
import tempfile

from absl.testing import absltest
import numpy as np

from jaxopt_compress.report import plots
from jaxopt_compress.report import records


def temporary(test):
  folder = tempfile.TemporaryDirectory()
  test.addCleanup(folder.cleanup)
  return folder.name


class PlotsTest(absltest.TestCase):
  def test_nothing_to_draw(self):
    path = temporary(self) + '/x.png'
    nan = records.StageRecord('a', math.nan, bytes_memory=3)
    self.assertFalse(plots.metric_against_bytes([nan], path))
    self.assertFalse(plots.layers({'a': []}, path))
    self.assertFalse(plots.histograms({}, path))
    self.assertFalse(plots.channels({'a': []}, path))
    self.assertFalse(plots.reliability([records.Answers('a')], path))
    self.assertFalse(os.path.exists(path))

  def test_odd_values(self):
    folder = temporary(self)
    zeros = np.zeros(3)
    wild = np.array([math.nan, math.inf, 0.0])
    self.assertTrue(
      plots.histograms(
        {'z': (zeros, zeros), 'w': (wild, np.zeros(0))}, f'{folder}/h.png'
      )
    )
    rows = [
      records.LeafRecord('a', (2,), 'int8', compressed=True, error_db=math.nan),
      records.LeafRecord('b', (), 'int8', compressed=True),
    ]
    self.assertTrue(plots.layers({'s': rows, 't': []}, f'{folder}/l.png'))
    one = records.GroupRecord('c', 2, 1, (0.5, 0.5))
    many = [dataclasses.replace(one, name=f'{i}', before=i) for i in range(50)]
    self.assertTrue(
      plots.channels({'s': [one], 't': many, 'u': []}, f'{folder}/c.png')
    )
    # Nobody is ever less sure than one over the classes: most bins are empty.
    bins = ((0.0, 0.0, 0.0), (3.0, 2.5, 3.0))
    answers = [records.Answers(n, 1.0, math.nan, bins) for n in 'abcde']
    self.assertTrue(plots.reliability(answers, f'{folder}/r.png'))
    same = records.StageRecord('a', 0.0, bytes_memory=1)
    other = dataclasses.replace(same, metric='bits per byte', spec='.3f')
    self.assertTrue(
      plots.metric_against_bytes([same, same, other], f'{folder}/m.png')
    )


if __name__ == '__main__':
  absltest.main()
