from absl.testing import absltest

from jaxopt_compress.analysis.structure import channels as channels_lib
from jaxopt_compress.analysis.structure import numbering


class NumberingTest(absltest.TestCase):
  def setUp(self):
    self.channels = channels_lib.Channels()
    self.kinds = numbering.Numbering(self.channels)

  def test_one_kind_is_of_one_axis(self):
    a, b = self.channels.axis(5), self.channels.axis(5)
    x, y = self.kinds.new(a), self.kinds.new(b)
    self.kinds.tie(x, y, 'compared')
    self.assertEqual(self.channels.factors(a), self.channels.factors(b))
    self.assertEqual(self.channels.locks(a[0]), ())

  def test_sizes_that_differ(self):
    a, b = self.channels.axis(5), self.channels.axis(6)
    self.kinds.tie(self.kinds.new(a), self.kinds.new(b), 'compared')
    for axis in (a, b):
      self.assertEqual(self.channels.locks(axis[0]), ('compared',))

  def test_what_was_said_before_the_axis_is_known(self):
    for n, want in ((5, ()), (6, ('indexed',))):
      ids, axis = self.kinds.new(), self.channels.axis(5)
      self.assertTrue(self.kinds.counted(ids, n))
      self.kinds.bind(ids, axis, 'indexed')
      self.assertEqual(
        self.channels.locks(axis[0]), (numbering.INPUT_NUMBERS, *want)
      )
      self.assertFalse(self.kinds.counted(ids, 7))


if __name__ == '__main__':
  absltest.main()
