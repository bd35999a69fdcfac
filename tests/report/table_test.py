"""Tables drawn so that the eye can check them."""

import math
import os
import tempfile
import textwrap

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress.report import page
from jaxopt_compress.report import records
from jaxopt_compress.report import table


def drawn(text):
  return textwrap.dedent(text).strip('\n')


STAGES = [
  records.StageRecord(
    'teacher',
    value=0.991,
    agreement=1.0,
    kl=0.0,
    parameters=116618,
    bytes_memory=466472,
    bytes_disk=466980,
    sparsity=0.0,
    flops=123456,
    latency={1: records.Timing(0.06, against='teacher', speed=1.0)},
  ),
  records.StageRecord(
    'int8',
    value=math.nan,
    parameters=116618,
    bytes_memory=121000,
    latency={1: records.Timing(0.1, against='teacher', speed=0.6)},
  ),
  records.StageRecord('empty'),
]

LEAVES = [
  records.LeafRecord(
    'a/kernel',
    (64, 256),
    'int4 g32',
    compressed=True,
    bits_per_weight=4.5,
    bytes=9216,
    sparsity=0.135,
    error_db=19.94,
    native=False,
    reason='conv: no rule',
    operations=('conv', 'reshape'),
  ),
  records.LeafRecord('a/bias', (256,), 'float32', error_db=math.inf),
  records.LeafRecord('scale', (), 'float32', error_db=math.nan),
]


class TableTest(parameterized.TestCase):
  def test_stages_for_the_terminal(self):
    self.assertEqual(
      table.stages(STAGES),
      drawn("""
        stage    accuracy  agreement      KL  parameters  memory  smaller    disk  zeros  FLOPs   ms, batch 1
        -------  --------  ---------  ------  ----------  ------  -------  ------  -----  -----  ------------
        teacher    99.10%    100.00%  0.0000     116,618  466 kB       1x  467 kB   0.0%  123 k  0.06 (1.00x)
        int8          nan          -       -     116,618  121 kB    3.86x       -      -      -   0.1 (0.60x)
        empty           -          -       -           -       -        -       -      -      -             -
        """),
    )

  def test_leaves_as_markdown(self):
    self.assertEqual(
      table.coverage(LEAVES, 'markdown'),
      drawn("""
        | leaf     | shape  | format   | bits/weight | bytes | zeros | error dB | runs                      | meets         |
        | -------- | ------ | -------- | ----------: | ----: | ----: | -------: | ------------------------- | ------------- |
        | a/kernel | 64x256 | int4 g32 |         4.5 | 9,216 | 13.5% |     19.9 | densified (conv: no rule) | conv, reshape |
        | a/bias   | 256    | float32  |           - |     - |     - |    exact | -                         | -             |
        | scale    | scalar | float32  |           - |     - |     - |      nan | -                         | -             |
        """),
    )

  def test_two_metrics_are_named_in_their_cells(self):
    rows = [
      records.StageRecord('a', 0.5),
      records.StageRecord('b', 2.125, metric='bits per byte', spec='.3f'),
    ]
    text = table.stages(rows)
    self.assertIn('accuracy 50.00%', text)
    self.assertIn('bits per byte 2.125', text)

  def test_no_rows(self):
    self.assertLen(table.stages([]).splitlines(), 2)
    self.assertLen(table.coverage([], 'markdown').splitlines(), 2)

  @parameterized.parameters(
    (0, 'B', '0 B'),
    (999, 'B', '999 B'),
    (1000, 'B', '1 kB'),
    (999_999, 'B', '1 MB'),
    (2_500_000_000, '', '2.5 G'),
    (None, 'B', '-'),
    (math.inf, 'B', 'inf'),
  )
  def test_quantity(self, x, unit, expected):
    self.assertEqual(table.quantity(x, unit), expected)

  def test_unknown_style(self):
    with self.assertRaisesRegex(ValueError, "'text' or 'markdown'"):
      table.render(['a'], [], 'html')


class RecordsTest(parameterized.TestCase):
  @parameterized.parameters(*range(len(STAGES)))
  def test_stage_through_json(self, i):
    back = records.stage_from_json(records.to_json(STAGES[i]))
    # nan differs from itself, so compare what both turn to.
    self.assertEqual(records.to_json(back), records.to_json(STAGES[i]))
    self.assertEqual(set(back.latency), set(STAGES[i].latency))

  @parameterized.parameters(*range(len(LEAVES)))
  def test_leaf_through_json(self, i):
    back = records.leaf_from_json(records.to_json(LEAVES[i]))
    self.assertEqual(repr(back), repr(LEAVES[i]))

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


class PageTextTest(absltest.TestCase):
  def test_an_empty_report_is_a_report(self):
    self.assertIn('Nothing', page.text(page.Report('Nothing')))


if __name__ == '__main__':
  absltest.main()
