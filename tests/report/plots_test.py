"""Pictures: of nothing, of odd values, and where marks lie."""

import dataclasses
import math
import re
from xml.etree import ElementTree

from absl.testing import parameterized
import numpy as np
import report_records

from jaxopt_compress.report import plots
from jaxopt_compress.report import records
from jaxopt_compress.report import svg


def tips(panels):
  """What the marks say, and that the drawing is well-formed."""
  found = []
  for panel in panels:
    root = ElementTree.fromstring(panel.inline())
    found += [title.text for title in root.iter('title')]
    for number in re.findall(r'="(nan|inf|-inf)"', panel.marks):
      raise AssertionError(f'{number} is no coordinate')
  return found


class PlotsTest(parameterized.TestCase):
  def test_nothing_to_draw(self):
    nan = records.StageRecord('a', math.nan, bytes_memory=3)
    self.assertEqual(plots.metric_against_bytes([nan]), [])
    self.assertEqual(plots.layers({'a': []}), [])
    self.assertEqual(plots.histograms({}), [])
    self.assertEqual(plots.channels({'a': []}), [])
    self.assertEqual(plots.reliability([records.Answers('a')]), [])
    self.assertEqual(plots.losses({'a': [(1.0, 2.0)], 'b': []}), [])

  def test_odd_values(self):
    zeros = np.zeros(3)
    wild = np.array([math.nan, math.inf, 0.0])
    panels = plots.histograms({'z': (zeros, zeros), 'w': (wild, np.zeros(0))})
    self.assertLen(panels, 2)
    self.assertIn('-0.0123 to 0.0123: 3 before, 3 after', tips(panels))
    rows = [
      records.LeafRecord('a', (2,), 'int8', compressed=True, error_db=math.nan),
      records.LeafRecord('b', (), 'int8', compressed=True),
    ]
    self.assertEqual(tips(plots.layers({'s': rows, 't': []})), ['a', 'b'])
    one = records.GroupRecord('c', 2, 1, (0.5, 0.5))
    many = [dataclasses.replace(one, name=f'{i}', before=i) for i in range(50)]
    panels = plots.channels({'s': [one], 't': many, 'u': []})
    self.assertLen(panels, 2)
    self.assertIn('c 0 to 1: 50% stay', tips(panels))
    self.assertIn('(10 smaller groups not shown)', panels[1].marks)
    # Nobody is ever less sure than one over the classes: most bins are empty.
    bins = ((0.0, 0.0, 0.0), (3.0, 2.5, 3.0))
    answers = [records.Answers(n, 1.0, math.nan, bins) for n in 'abcde']
    panels = plots.reliability(answers)
    self.assertLen(panels, 5)
    self.assertIn('3 answers: 100.0% right, 83.3% confident', tips(panels))
    curves = {'a': [(0.0, 1.0), (1e9, math.nan), (2e9, 0.0)], 'b': [(1, 1)]}
    self.assertEqual(
      tips(plots.losses(curves)),
      ['a: 1 after 0 operations', 'a: 0 after 2 G operations'],
    )
    judged = {'a': {'loss': [(1, 2.0), (9, -1.0)]}, 'b': {'top 5': [(1, 1.0)]}}
    self.assertEqual(
      tips(plots.validation(judged)),
      ['a: 2 after 1 steps', 'a: -1 after 9 steps'],
    )
    self.assertEqual(plots.validation({}), [])
    same = records.StageRecord('a', 0.0, bytes_memory=1)
    other = dataclasses.replace(same, metric='bits per byte', spec='.3f')
    panels = plots.metric_against_bytes([same, same, other])
    self.assertLen(panels, 2)
    tips(panels)

  def test_metric_against_bytes(self):
    stages = [
      records.StageRecord('big', 0.9, bytes_memory=4000),
      records.StageRecord('little', 0.5, bytes_memory=1000),
    ]
    (panel,) = plots.metric_against_bytes(stages, 'big')
    self.assertEqual(
      tips([panel]),
      [
        'big: accuracy 90.00%, 4 kB',
        'little: accuracy 50.00%, 1 kB, 4x smaller',
      ],
    )
    self.assertIn('within 1% of big', panel.marks)
    circle = re.search(r'<circle cx="([\d.]+)"', panel.marks)
    left, right = 1000 / 1.6, 4000 * 1.9
    place = (math.log(4000) - math.log(left)) / (
      math.log(right) - math.log(left)
    )
    self.assertAlmostEqual(float(circle[1]), 84 + 616 * place, places=2)
    (other,) = plots.metric_against_bytes(stages)
    self.assertNotIn('within', other.marks)

  def test_leaves_are_all_there(self):
    coverage = {'int8': report_records.LEAVES}
    (panel,) = plots.layers(coverage)
    self.assertEqual(
      tips([panel]),
      [
        'a/kernel',
        'int8, a/kernel: 13.5% zeros',
        'int8, a/kernel: 19.9 dB, int4 g32',
      ],
    )

  def test_files_need_no_style(self):
    panels = plots.channels({'s': report_records.GROUPS})
    drawn = svg.standalone(panels)
    ElementTree.fromstring(drawn)
    self.assertNotIn('var(', drawn)
