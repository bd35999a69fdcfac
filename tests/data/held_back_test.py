"""A share that is held back: of each class, and the same for the same seed."""

from absl.testing import parameterized
import numpy as np

from jaxopt_compress.data import held_back


class HeldBackTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('classes', np.repeat(np.arange(5), 20), 0.1, [2] * 5),
    ('small_classes', np.arange(100) % 50, 0.1, None),
    ('numbers', np.linspace(0, 1, 100), 0.1, None),
    ('rows', np.zeros((100, 3), int), 0.1, None),
  )
  def test_disjoint_and_of_that_size(self, labels, share, of_each):
    examples = {'x': np.arange(100), 'label': labels}
    train, back = held_back.held_back(examples, share, seed=1)
    self.assertLen(back['x'], 10)
    both = np.sort(np.concatenate([train['x'], back['x']]))
    np.testing.assert_array_equal(both, np.arange(100))
    for part in (train, back):
      np.testing.assert_array_equal(part['label'], labels[part['x']])
    if of_each:
      self.assertEqual(np.bincount(back['label']).tolist(), of_each)
    again = held_back.held_back(examples, share, seed=1)[1]
    np.testing.assert_array_equal(back['x'], again['x'])
    other = held_back.held_back(examples, share, seed=2)[1]
    self.assertFalse(np.array_equal(back['x'], other['x']))

  @parameterized.parameters(0.0, 1.0, 0.01, 0.99, float('nan'))
  def test_nothing_on_one_side(self, share):
    with self.assertRaisesRegex(ValueError, 'some that are held|expected'):
      held_back.held_back({'label': np.zeros(3, int)}, share)
