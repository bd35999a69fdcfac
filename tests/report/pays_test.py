"""What the first lines say, from tables of stages that have one answer."""

import dataclasses
import math

from absl.testing import parameterized

from jaxopt_compress.report import pays
from jaxopt_compress.report import records

BIG = records.StageRecord(
  'big', 0.9, bytes_memory=4000, bytes_disk=4000, sparsity=0.0
)


def _like(name, **changes):
  return dataclasses.replace(BIG, name=name, **changes)


GOOD = _like('good', value=0.8911, bytes_memory=1000)
BAD = _like('bad', value=0.8909, bytes_memory=500)  # below 0.99 x 0.9
BITS = dict(metric='bits per byte', higher_is_better=False, spec='.3f')


class PaysTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'smallest_that_is_good',
      [BIG, BAD, GOOD, _like('half', bytes_memory=2000)],
      '',
      'good is the smallest stage within 1% of big: 4x smaller (1 kB instead of'
      ' 4 kB), accuracy 89.11% instead of 90.00%.',
    ),
    (
      'none_is_good',
      [BIG, BAD, _like('worse', value=0.5, bytes_memory=100)],
      '',
      'No stage is smaller than big and within 1% of its accuracy, 90.00%. The'
      ' closest, bad, is 8x smaller and has 89.09%.',
    ),
    (
      'none_is_smaller',
      [BIG, _like('same')],
      '',
      'No stage is smaller than big and within 1% of its accuracy, 90.00%.',
    ),
    (
      'lower_is_better',
      [
        _like('big', **BITS | dict(value=2.0)),
        _like('a', **BITS | dict(value=2.019, bytes_memory=1000)),
        _like('b', **BITS | dict(value=2.021, bytes_memory=500)),
      ],
      '',
      'a is the smallest stage within 1% of big: 4x smaller (1 kB instead of 4 kB),'
      ' bits per byte 2.019 instead of 2.000.',
    ),
    (
      'another_reference',
      [BIG, GOOD, _like('tiny', value=0.9, bytes_memory=10)],
      'good',
      'tiny is the smallest stage within 1% of good: 100x smaller (10 B instead of'
      ' 1 kB), accuracy 90.00% instead of 89.11%.',
    ),
    (
      'larger_and_better',
      [BIG, _like('larger', value=0.95, bytes_memory=9000), _like('same')],
      '',
      'larger has the best accuracy, 95.00%; big has 90.00%.',
    ),
    ('a_reference_without_a_value', [BIG, GOOD], 'lost', ''),
    ('alone', [BIG], '', ''),
    ('nothing', [], '', ''),
    ('not_a_number', [_like('nan', value=math.nan), BIG], '', ''),
    ('other_metrics', [BIG, _like('a', **BITS)], '', ''),
  )
  def test_best(self, stages, reference, said):
    self.assertEqual(pays.best(stages, reference), said)

  @parameterized.named_parameters(
    ('worse', BAD, ['its accuracy is 89.09%, that of big 90.00%']),
    ('good', GOOD, []),
    (
      'masked',
      _like('masked', sparsity=0.8, bytes_disk=1000),
      [
        '80% of its weights are zero and take memory all the same (its file is 4x'
        ' smaller)'
      ],
    ),
    ('zeros_left_out', _like('s', sparsity=0.8, bytes_memory=1000), []),
    ('nan', _like('nan', value=math.nan), ['its accuracy is nan']),
    (
      'larger',
      _like(
        'larger',
        bytes_memory=9000,
        latency={1: records.Timing(2.0, against='big', speed=0.5)},
      ),
      [],
    ),
    (
      'of_the_same_size',
      _like('a', latency={1: records.Timing(2.0, against='big', speed=0.5)}),
      [],
    ),
    (
      'of_more_zeros',
      _like(
        'a',
        sparsity=0.5,
        latency={1: records.Timing(2.0, against='big', speed=0.5)},
      ),
      [
        '50% of its weights are zero and take memory all the same',
        'it is slower than big: 0.50x at batch 1',
      ],
    ),
    (
      'slow',
      _like(
        'slow',
        bytes_memory=1000,
        latency={
          1: records.Timing(2.0, against='big', speed=0.5),
          8: records.Timing(1.0, against='big', speed=1.0),
          64: records.Timing(0.5, against='big', speed=2.0),
        },
      ),
      [
        'it is slower than big: 0.50x at batch 1',
        'its speed is that of big, within the noise: 1.00x at batch 8',
      ],
    ),
  )
  def test_unpaid(self, stage, said):
    found = pays.unpaid([BIG, stage], {})
    self.assertEqual(found, {stage.name: said} if said else {})

  def test_dense_leaves(self):
    leaf = records.LeafRecord('w', (2,), 'int8', compressed=True, native=True)
    rows = [leaf, dataclasses.replace(leaf, native=False), leaf]
    said = 'of its 3 compressed leaves are made dense before use'
    self.assertIn(f'1 {said}', pays.unpaid([BIG], {'big': rows})['big'][0])
    self.assertEqual(pays.unpaid([BIG], {'big': [leaf]}), {})
