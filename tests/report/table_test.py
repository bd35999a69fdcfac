"""Tables drawn so that the eye can check them."""

import math
import textwrap

from absl.testing import absltest
from absl.testing import parameterized
import report_records

from jaxopt_compress.report import records
from jaxopt_compress.report import table


def drawn(text):
  return textwrap.dedent(text).strip('\n')


class TableTest(parameterized.TestCase):
  def test_stages_for_the_terminal(self):
    self.assertEqual(
      table.stages(report_records.STAGES),
      drawn("""
        stage    accuracy  agreement      KL  parameters  memory  smaller    disk  zeros  FLOPs   ms, batch 1
        -------  --------  ---------  ------  ----------  ------  -------  ------  -----  -----  ------------
        teacher    99.10%    100.00%  0.0000     116,618  466 kB       1x  467 kB   0.0%  123 k  0.06 (1.00x)
        int8          nan          -       -     116,618  121 kB    3.86x       -      -      -   0.1 (0.60x)
        empty           -          -       -           -       -        -       -      -      -             -
        """),
    )

  def test_answers(self):
    self.assertEqual(
      table.answers(report_records.ANSWERS),
      drawn("""
        stage    cross entropy  calibration error  against  its cross entropy  agreement@1  agreement@5  KL at T=1
        -------  -------------  -----------------  -------  -----------------  -----------  -----------  ---------
        teacher         0.0310              1.20%  -                        -            -            -          -
        int8               nan             25.00%  teacher             0.0310       97.00%      100.00%     0.0021
        empty                -                  -  -                        -            -            -          -
        """),
    )
    # Only what was measured has a column.
    alone = table.answers(report_records.ANSWERS[:1])
    self.assertRegex(alone, '^stage +cross entropy +calibration error\n')

  def test_leaves_as_markdown(self):
    self.assertEqual(
      table.coverage(report_records.LEAVES, 'markdown'),
      drawn("""
        | leaf     | shape  | format   | bits/weight | bytes | zeros | error dB | runs                      | meets         |
        | -------- | ------ | -------- | ----------: | ----: | ----: | -------: | ------------------------- | ------------- |
        | a/kernel | 64x256 | int4 g32 |         4.5 | 9,216 | 13.5% |     19.9 | densified (conv: no rule) | conv, reshape |
        | a/bias   | 256    | float32  |           - |     - |     - |    exact | -                         | -             |
        | scale    | scalar | float32  |           - |     - |     - |      nan | -                         | -             |
        """),
    )

  def test_channels(self):
    self.assertEqual(
      table.channels(report_records.GROUPS),
      drawn("""
        group  leaves  before  after  asked  stay  exact
        -----  ------  ------  -----  -----  ----  ----------
        a:-1        3       4      2      -  █··█  yes
        b:-1        1       2      1      2  ▒▒    no: a norm
        """),
    )
    first = table.channels(report_records.GROUPS[:1])
    self.assertNotIn('asked', first)

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


if __name__ == '__main__':
  absltest.main()
