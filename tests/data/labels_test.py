"""Few labels, and wrong ones."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress.data import labels


def _examples(counts=(10, 20, 40)):
  label = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
  return {'x': np.arange(len(label)), 'label': label}


class LabelsTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.1, [1, 2, 4]), (0.5, [5, 10, 20]), (0.001, [1, 1, 1]), (1, [10, 20, 40])
  )
  def test_few_of_each_class(self, fraction, counts):
    examples = _examples()
    few = labels.few(examples, fraction)
    self.assertEqual(np.bincount(few['label']).tolist(), counts)
    np.testing.assert_array_equal(examples['label'][few['x']], few['label'])
    self.assertTrue((np.diff(few['x']) > 0).all())

  def test_seeds_choose_differently(self):
    a, b = (labels.few(_examples(), 0.5, seed=s)['x'] for s in (0, 1))
    self.assertFalse(np.array_equal(a, b))

  @parameterized.parameters(0.0, 0.2, 1.0)
  def test_so_many_are_wrong(self, fraction):
    examples = _examples()
    noisy = labels.noisy(examples, fraction)
    changed = noisy['label'] != examples['label']
    self.assertEqual(changed.sum(), round(fraction * 70))
    self.assertEqual(noisy['label'].dtype, np.int32)
    self.assertLessEqual(set(noisy['label']), {0, 1, 2})
    np.testing.assert_array_equal(noisy['x'], examples['x'])

  def test_noise_is_even(self):
    noisy = labels.noisy(_examples((9000, 1, 1)), 1.0)['label'][:9000]
    shares = np.bincount(noisy, minlength=3) / 9000
    np.testing.assert_allclose(shares, [0, 0.5, 0.5], atol=0.03)

  @parameterized.named_parameters(
    ('none', labels.few, 0.0, 'the part of the examples that stays'),
    ('percent', labels.noisy, 20, 'the part of the labels that is wrong'),
  )
  def test_fractions(self, f, fraction, message):
    with self.assertRaisesRegex(ValueError, message):
      f(_examples(), fraction)

  def test_labels_are_whole_numbers(self):
    with self.assertRaisesRegex(ValueError, r"'x' is float64\[2\]"):
      labels.few({'x': np.ones(2)}, 0.5, target='x')

  def test_one_class_has_no_other(self):
    with self.assertRaisesRegex(ValueError, 'of one class'):
      labels.noisy(_examples((3,)), 0.5)


if __name__ == '__main__':
  absltest.main()
