"""Elements, scales and files of SVG."""

from xml.etree import ElementTree

from absl.testing import parameterized

from jaxopt_compress.report import svg


class SvgTest(parameterized.TestCase):
  def test_hostile_words_are_escaped(self):
    bad = '</svg><script>alert("x")</script>&\''
    drawn = svg.tag('g', svg.text(0, 0, bad, tip=bad), data_a=bad)
    root = ElementTree.fromstring(drawn)
    self.assertEqual(root.get('data-a'), bad)
    self.assertEqual(root.find('text').text, bad)
    self.assertEqual(root.find('text/title').text, bad)

  @parameterized.parameters(
    (0, 1, False, 4, [0, 0.25, 0.5, 0.75, 1]),
    (0.9878, 0.9956, False, 4, [0.988, 0.99, 0.992, 0.994]),
    (-3, 3, False, 3, [-2, 0, 2]),
    (7, 7, False, 4, [7]),
    (9e3, 1.2e6, True, 6, [1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6]),
    (1, 1e12, True, 4, [1, 1e3, 1e6, 1e9, 1e12]),
    # Less than a decade: round numbers, as on a plain scale.
    (1.6, 1.7, True, 4, [1.6, 1.625, 1.65, 1.675, 1.7]),
  )
  def test_ticks(self, low, high, log, most, expected):
    found = svg.Scale(low, high, 0, 1, log=log).ticks(most)
    self.assertSequenceAlmostEqual(found, expected, places=6)

  def test_scale(self):
    scale = svg.Scale(1, 1000, 10, 40, log=True)
    self.assertSequenceAlmostEqual(
      [scale(v) for v in (1, 10, 1000)], [10, 20, 40]
    )
    self.assertEqual(svg.Scale(3, 3, 10, 40)(3), 10)

  def test_marks_differ(self):
    drawn = [svg.mark(i, 3, 4) for i in range(7)]
    self.assertLen(set(drawn), 7)
    self.assertEqual(svg.mark(7, 3, 4), drawn[0])

  def test_legend_has_as_many_rows_as_it_says(self):
    names = ['a long name of a stage'] * 5
    rows = set()
    for text in ElementTree.fromstring(
      f'<g>{svg.legend(0, 10, names, 400)}</g>'
    ).iter('text'):
      self.assertLess(float(text.get('x')) + svg.wide(names[0]), 420)
      rows.add(text.get('y'))
    self.assertEqual(18 * len(rows), svg.legend_height(names, 400))

  def test_standalone(self):
    panel = svg.Panel(20, 10, svg.line(0, 0, 1, 1), 'a line')
    root = ElementTree.fromstring(svg.standalone([panel] * 5, across=2))
    self.assertEqual((root.get('width'), root.get('height')), ('40', '30'))
    places = [g.get('transform') for g in root if g.get('transform')]
    self.assertEqual(places[3], 'translate(20 10)')
    self.assertEqual(root[1][0].get('stroke'), '#d5dbe1')
