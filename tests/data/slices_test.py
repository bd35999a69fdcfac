"""Parts of a split."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress.data import slices


class SlicesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('train', ('train', 0.0, 1.0)),
    ('train[:80%]', ('train', 0.0, 0.8)),
    ('npz@/a/b.npz[12.5% : 25%]', ('npz@/a/b.npz', 0.125, 0.25)),
    ('a[0:3]@/b', ('a[0:3]@/b', 0.0, 1.0)),  # brackets of a path
  )
  def test_read(self, said, expected):
    self.assertEqual(tuple(slices.read(said)), expected)

  @parameterized.parameters(
    'train[80]', 'train[80%]', 'train[:0.8]', 'train[90%:80%]', 'train[:120%]'
  )
  def test_mistakes(self, said):
    with self.assertRaisesRegex(ValueError, r"no part .* 'train\[:80%\]'"):
      slices.read(said)

  def test_parts_are_apart_and_all_together(self):
    # Ten classes of ten, one of three, in order, as folders of images are.
    label = np.repeat(np.arange(11), [10] * 10 + [3])
    whole = {'label': label, 'i': np.arange(len(label))}
    parts = [
      slices.cut(whole, slices.read(f'x[{said}]'), 'label')
      for said in (':60%', '60%:80%', '80%:')
    ]
    everything = np.concatenate([p['i'] for p in parts])
    self.assertCountEqual(everything, whole['i'])
    self.assertEqual([len(p['i']) for p in parts], [62, 20, 21])
    for p, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
      counts = np.bincount(p['label'], minlength=11)[:10]
      np.testing.assert_allclose(counts, 10 * share, atol=1)
      np.testing.assert_array_equal(p['i'], np.sort(p['i']))

  def test_numbers_are_shuffled_whole(self):
    whole = {'y': np.arange(50.0)}
    part = slices.cut(whole, slices.read('x[:20%]'), 'y')['y']
    self.assertLen(part, 10)
    self.assertGreater(part.max(), 10)
    with self.assertRaisesRegex(ValueError, 'has 50 examples, and none'):
      slices.cut(whole, slices.read('x[:0.1%]'), 'y')

  @parameterized.parameters(
    ('train', 'train[80%:]', 'all of .train. and 80% to 100%'),
    ('train[:80%]', 'train[70%:]', '0% to 80% of .train. and 70%'),
    ('train[:80%]', 'train[80%:]', ''),
    ('train', 'test', ''),
    ('train', 'train', ''),  # what was written so is meant so
  )
  def test_apart(self, a, b, message):
    def check():
      slices.check_apart({'a': slices.read(a), 'b': slices.read(b)})

    if not message:
      return check()
    with self.assertRaisesRegex(ValueError, f'a and b have .*{message}'):
      check()


if __name__ == '__main__':
  absltest.main()
