"""Names beside points: none covers another."""

import re

from absl.testing import parameterized
import numpy as np

from jaxopt_compress.report import labels
from jaxopt_compress.report import svg


class LabelsTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2)
  def test_no_two_overlap(self, seed):
    rng = np.random.default_rng(seed)
    points = (rng.random((12, 2)) * (60, 30) + (300, 200)).tolist()
    names = [f'stage_{i}' for i in range(12)]
    drawn = labels.beside(points, names, width=720)
    found = re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"|<text x', drawn)
    places = [
      tuple(map(float, re.search(r'x="([\d.-]+)" y="([\d.-]+)"', t).groups()))
      for t in re.findall(r'<text[^>]*>', drawn)
    ]
    self.assertLen(places, 12, found)
    for i, (x, y) in enumerate(places):
      for other_x, other_y in places[:i]:
        apart = max(
          abs(x - other_x) - svg.wide('stage_0'), abs(y - other_y) - 13.9
        )
        self.assertGreaterEqual(apart, 0, (places, i))

  def test_keeps_off_what_is_written(self):
    free = labels.beside([(100, 50)], ['name'], 720)
    self.assertIn('x="110"', free)
    right = labels.beside([(100, 50)], ['name'], 720, [(105, 40, 150, 60)])
    self.assertLess(float(re.search(r'x="([\d.]+)"', right)[1]), 100)

  def test_above_a_line(self):
    x = svg.Scale(0, 1, 100, 700)
    right = labels.above(x, 50, 'words', [(120, 45)])
    self.assertEqual(right, (700 - svg.wide('words'), 32, 700, 50))
    left = labels.above(x, 50, 'words', [(690, 45)])
    self.assertEqual(left[0], 104)
    both = labels.above(x, 50, 'words', [(690, 45), (110, 40)])
    self.assertEqual(both, right)

  def test_stays_within_the_drawing(self):
    drawn = labels.beside([(700, 50)], ['a name of a stage'], width=720)
    x = float(re.search(r'x="([\d.]+)"', drawn)[1])
    self.assertLess(x + svg.wide('a name of a stage'), 720)
    full = [(600, 0, 720, 400), (400, 0, 700, 400)]
    drawn = labels.beside([(700, 50)], ['a name of a stage'], 720, full)
    x = float(re.search(r'<text[^>]* x="([\d.]+)"', drawn)[1])
    self.assertLess(x + svg.wide('a name of a stage'), 720)
