from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.analysis.structure import channels as channels_lib


def _same(c, a, b):
  return c.factors(a) == c.factors(b)


class ChannelsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.c = channels_lib.Channels()

  def test_one_axis_is_no_channel(self):
    self.assertEqual(self.c.axis(1), ())
    self.assertEqual(self.c.size(()), 1)

  def test_split_before_or_after(self):
    #  12 = 3 * 4 says the same of all that is tied to it, before and after
    a, b, d = (self.c.axis(12) for _ in range(3))
    self.c.tie(a, b)
    major, minor = self.c.split(a, 4)
    self.c.tie(d, b)
    for axis in (a, b, d):
      self.assertEqual(self.c.describe(axis), '3 * 4')
      self.assertEqual(self.c.split(axis, 4), (major, minor))

  def test_two_ways_to_split(self):
    #  3 * 4 and 6 * 2 are 3 * 2 * 2
    a, b = self.c.axis(12), self.c.axis(12)
    self.c.split(a, 4)
    self.c.split(b, 2)
    self.c.tie(a, b)
    self.assertEqual(self.c.describe(a), '3 * 2 * 2')
    self.assertTrue(_same(self.c, a, b))

  def test_splits_that_do_not_fit_lock(self):
    #  3 * 4 and 4 * 3 tear each other apart
    a, b = self.c.axis(12), self.c.axis(12)
    self.c.split(a, 4)
    self.c.split(b, 3)
    self.c.tie(a, b)
    for axis in (a, b):
      for leaf in self.c.leaves(axis):
        self.assertNotEmpty(self.c.locks(leaf))

  def test_two_ways_to_cut(self):
    #  |--2--|----4----|
    #  |---3---|---3---|
    a, b = self.c.axis(6), self.c.axis(6)
    two, four = self.c.cut(a, [2, 4])
    three, _ = self.c.cut(b, [3, 3])
    self.c.tie(a, b)
    self.assertEqual(self.c.describe(four), '(1 + 3)')
    self.assertEqual(self.c.describe(three), '(2 + 1)')
    self.assertTrue(_same(self.c, two, self.c.cut(three, [2, 1])[0]))

  def test_cut_into_heads(self):
    #  q, k, v of two heads of four, behind each other
    whole = self.c.axis(24)
    q, k, v = self.c.cut(whole, [8, 8, 8])
    for part in (k, v):
      self.c.tie(q, part)
    self.c.split(k, 4)
    self.assertEqual(self.c.describe(whole), '(2 * 4 + 2 * 4 + 2 * 4)')
    self.assertLen(set(self.c.leaves(whole)), 2)

  def test_heads_that_are_cut(self):
    #  the same, of one axis that was split before: [3, 2, 4]
    whole = self.c.axis(24)
    self.c.split(whole, 8)
    pieces = self.c.cut(whole, [8, 8, 8])
    self.assertTrue(_same(self.c, pieces[0], pieces[2]))

  def test_joined_is_split(self):
    #  a flattened [h, a] beside [h, b] is no product; as [a + b, h] it is
    a, b = self.c.axis(12), self.c.axis(8)
    self.c.split(a, 4)
    self.c.split(b, 4)
    both = self.c.join([a, b])
    major, minor = self.c.split(both, 4)
    self.assertEqual(self.c.describe(major), '(3 + 2)')
    self.assertTrue(_same(self.c, self.c.split(a, 4)[1], minor))
    self.assertIsNone(self.c.split(self.c.join([a, b]), 5))

  @parameterized.parameters('before', 'after')
  def test_locks_pass_on(self, when):
    a, b = self.c.axis(12), self.c.axis(12)
    if when == 'before':
      self.c.lock(a, 'why')
    major, minor = self.c.split(a, 4)
    self.c.tie(b, a)
    first, _ = self.c.cut(minor, [2, 2])
    if when == 'after':
      self.c.lock(b, 'why')
    for axis in (major, first):
      self.assertEqual(self.c.locks(*self.c.factors(axis)), ('why',))


if __name__ == '__main__':
  absltest.main()
