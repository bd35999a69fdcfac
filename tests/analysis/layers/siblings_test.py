from absl.testing import absltest

from jaxopt_compress.analysis.layers import siblings


class SiblingsTest(absltest.TestCase):
  def test_families(self):
    paths = ['a/h_0/w', 'a/h_2/w', 'b/1/0/w', 'w3', 'a/h_02/w', 'x']
    self.assertEqual(
      siblings.families(paths),
      {('a', 'h_'): [0, 2], ('b', ''): [1], ('b/1', ''): [0], ('', 'w'): [3]},
    )
    for path in ('a/h_2', 'b/1', 'w3'):
      family = siblings.family_of(path)
      n = siblings.member(path, family)
      self.assertEqual(siblings.prefix(family, n), path)

  def test_member(self):
    for path, want in (
      ('a/h_2/w', 2),
      ('a/h_2', 2),
      ('a/h_x/w', None),
      ('ab/h_2', None),
      ('a/g_2', None),
    ):
      self.assertEqual(siblings.member(path, ('a', 'h_')), want)

  def test_in_place_of(self):
    def found(a, b):
      return siblings.in_place_of(a, b, 1, 2)

    self.assertEqual(found('a/h1/w', 'a/h2/w'), ('a', 'h'))
    for a, b in (
      ('a/h1/w', 'a/h3/w'),  # another number
      ('a/h1/w', 'a/h2/v'),  # another leaf
      ('a/h1/1/w', 'a/h2/2/w'),  # two numbers
      ('a/h1/w', 'a/h2'),
      ('a/h1/w', None),
    ):
      self.assertIsNone(found(a, b))

  def test_within(self):
    self.assertTrue(siblings.within('a/1/w', ('b', 'a/1')))
    self.assertFalse(siblings.within('a/10/w', ('a/1',)))


if __name__ == '__main__':
  absltest.main()
