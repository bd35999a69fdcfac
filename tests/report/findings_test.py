"""What the report says is what the numbers say."""

import math

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.report import findings
from jaxopt_compress.report import records


def timing(speed, low=None, high=None):
  low, high = low or 0.98 * speed, high or 1.02 * speed
  return records.Timing(
    1.0, against='float', speed=speed, speed_low=low, speed_high=high
  )


def said(row, leaves=(), float_bytes=400):
  stages = [records.StageRecord('float', bytes_memory=float_bytes), row]
  return findings.remarks(stages, {row.name: leaves}, 'cpu')


def leaf(path, **kwargs):
  kwargs = dict(compressed=True, native=True) | kwargs
  return records.LeafRecord(path, (4, 4), 'int8', **kwargs)


class RemarksTest(parameterized.TestCase):
  @parameterized.named_parameters(
    dict(
      testcase_name='slower',
      latency={1: timing(0.6), 256: timing(0.9)},
      expected='int8: 0.60x the speed of float at batch 1, 0.90x at batch 256 on'
      ' this backend (cpu). No speed-up: it is slower. It occupies 4 times'
      ' fewer bytes in memory.',
    ),
    dict(
      testcase_name='faster',
      latency={1: timing(1.8)},
      expected='int8: 1.80x the speed of float at batch 1 on this backend (cpu).'
      ' It is faster. It occupies 4 times fewer bytes in memory.',
    ),
    dict(
      testcase_name='faster_at_one_batch',
      latency={1: timing(0.6), 256: timing(2.5)},
      expected='int8: 0.60x the speed of float at batch 1, 2.50x at batch 256 on'
      ' this backend (cpu). It is faster at batch 256 only. It occupies 4 times'
      ' fewer bytes in memory.',
    ),
    dict(
      testcase_name='noise',
      latency={1: timing(1.3, 0.9, 1.6)},
      expected='int8: 1.30x the speed of float at batch 1 on this backend (cpu).'
      ' No speed-up: the difference is within the noise. It occupies 4 times'
      ' fewer bytes in memory.',
    ),
  )
  def test_speed(self, latency, expected):
    row = records.StageRecord('int8', bytes_memory=100, latency=latency)
    self.assertEqual(said(row), [expected])

  def test_masks_that_save_nothing(self):
    row = records.StageRecord(
      'pruned', bytes_memory=500, sparsity=0.8, latency={1: timing(1.0)}
    )
    (remark,) = said(row)
    self.assertIn('No speed-up', remark)
    self.assertIn('1.25 times more bytes', remark)
    self.assertIn('80% of its parameters are zero', remark)

  def test_masks_that_do_speed_up_are_not_called_useless(self):
    row = records.StageRecord('pruned', sparsity=0.8, latency={1: timing(2.0)})
    (remark,) = said(row)
    self.assertIn('It is faster.', remark)
    self.assertNotIn('multiplies zeros', remark)

  def test_densified_leaves_are_named(self):
    leaves = [leaf('a'), leaf('b', native=False, reason='conv: no rule')]
    (remark,) = said(records.StageRecord('int8'), leaves)
    self.assertIn('1 of 2 compressed leaves', remark)
    self.assertIn('b (conv: no rule)', remark)

  def test_native_leaves_and_one_that_nothing_meets(self):
    leaves = [leaf('a'), leaf('lost', native=None)]
    self.assertEqual(
      said(records.StageRecord('int8'), leaves),
      [
        'int8: all 1 compressed leaves run in their own form.',
        'int8: no operation meets lost.',
      ],
    )

  @parameterized.parameters((4.0, True), (math.nan, True), (12.0, False))
  def test_noisy_leaves(self, error_db, expected):
    leaves = [leaf('a', error_db=error_db, native=None)]
    remarks = said(records.StageRecord('int2'), leaves)
    self.assertEqual(any('a (' in r for r in remarks), expected)

  def test_a_metric_that_is_no_number(self):
    (remark,) = said(records.StageRecord('int2', value=math.nan))
    self.assertEqual(remark, 'int2: accuracy is nan.')

  def test_the_reference_itself_gets_no_remark(self):
    row = records.StageRecord('float', latency={1: timing(1.0)})
    self.assertEqual(findings.remarks([row]), [])


if __name__ == '__main__':
  absltest.main()
