"""Records count what they say, and go through JSON without loss."""

import math
import os
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import report_records

from jaxopt_compress.report import records


class RecordsTest(parameterized.TestCase):
  @parameterized.parameters(*range(len(report_records.STAGES)))
  def test_stage_through_json(self, i):
    back = records.stage_from_json(records.to_json(report_records.STAGES[i]))
    # nan differs from itself, so compare what both turn to.
    self.assertEqual(
      records.to_json(back), records.to_json(report_records.STAGES[i])
    )
    self.assertEqual(set(back.latency), set(report_records.STAGES[i].latency))

  @parameterized.parameters(*range(len(report_records.LEAVES)))
  def test_leaf_through_json(self, i):
    back = records.leaf_from_json(records.to_json(report_records.LEAVES[i]))
    self.assertEqual(repr(back), repr(report_records.LEAVES[i]))

  def test_a_stage_named_nan_keeps_its_name(self):
    row = records.StageRecord('nan', math.nan, notes=('inf',))
    back = records.stage_from_json(records.to_json(row))
    self.assertEqual(repr(back), repr(row))

  def test_refuses_what_json_cannot_hold(self):
    with self.assertRaisesRegex(ValueError, 'does not go into a report'):
      records.to_json({'a': np.zeros(3)})

  def test_stage_counts_a_tree(self):
    row = records.stage(
      's', {'a': np.float32([0, 1, 2, 0]), 'b': np.ones((2, 2))}
    )
    self.assertEqual((row.parameters, row.bytes_memory), (8, 16 + 32))
    self.assertEqual(row.sparsity, 0.25)
    self.assertIsNone(records.stage('s', {}).sparsity)

  def test_disk_bytes(self):
    with tempfile.TemporaryDirectory() as folder:
      os.mkdir(f'{folder}/a')
      for name, size in (('a/b', 5), ('c', 3)):
        with open(f'{folder}/{name}', 'wb') as f:
          f.write(bytes(size))
      self.assertEqual(records.disk_bytes(folder), 8)
      self.assertEqual(records.disk_bytes(f'{folder}/c'), 3)
      with self.assertRaisesRegex(ValueError, 'neither a file nor'):
        records.disk_bytes(f'{folder}/none')


if __name__ == '__main__':
  absltest.main()
