"""What a user's function gives, and what is said where that does not fit."""

from absl.testing import absltest
from absl.testing import parameterized
import grain
import numpy as np

from jaxopt_compress.data import own

X, Y = np.arange(6.0).reshape(3, 2), np.array([0, 1, 1])


def read(found):
  return own.arrays(found, ('x', 'y'), 'load')


class OwnTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(x=X, y=Y, name=['a', 'b', 'c']),
    dict(x=X.tolist(), y=Y.tolist()),
    [dict(x=x, y=y) for x, y in zip(X, Y)],
    grain.MapDataset.source([dict(x=x, y=y) for x, y in zip(X, Y)]),
  )
  def test_forms(self, *args, **kwargs):
    found = read(kwargs or (args[0] if len(args) == 1 else list(args)))
    np.testing.assert_array_equal(found['x'], X)
    np.testing.assert_array_equal(found['y'], Y)
    self.assertEqual(found['x'].dtype, np.float32)
    self.assertLen(found, 2)

  @parameterized.parameters(
    (dict(x=X, z=Y), r"input is|target is 'y'; choose one of"),
    (dict(x=X, y=Y[:2]), r"different lengths: {'x': 3, 'y': 2}"),
    (dict(x=X[:0], y=Y[:0]), 'gives no examples'),
    ([], 'gives no examples'),
    (
      iter([]),
      'gives a value of type list_iterator; a dict of arrays .*make a list',
    ),
    (grain.MapDataset.source([dict(x=1, y=1)]).repeat(), 'without an end'),
    (
      [dict(x=[1.0], y=0), dict(x=[1.0], z=0)],
      r"example 1 has no 'y', .* \['x', 'z'\]",
    ),
    ([dict(x=[1.0], y=0), 3], "example 1 has no 'x', .* it is 3"),
    ([3, 4], "a sequence of int; of dicts with 'x'"),
    (
      [dict(x=[1.0], y=0), dict(x=[1.0, 2.0], y=0)],
      r"'x' of example 1 is \[2\], and of example 0 \[1\]",
    ),
    (dict(x=[[1.0], [1.0, 2.0]], y=Y), "'x' has rows of different lengths"),
    ([dict(x=[[1], [1, 2]], y=0)], "'x' has rows of different lengths"),
    (dict(x=X, y=['cat', 'dog', 'dog']), 'cat.*np.unique'),
    (dict(x=X, y=np.array([None, 1, 2])), 'objects of Python'),
    (dict(x=X * 1j, y=Y), 'complex128'),
    (dict(x=X, y=3), "'y' is one number"),
    (dict(x=np.zeros((3, 4, 4), np.uint8), y=Y), "astype.'float32'. / 255"),
    (dict(x=X, y=np.array([2**40] * 3)), 'which int32 does not hold'),
    (
      dict(x=np.where(X == 5, np.nan, X), y=Y),
      'NaN or infinity in 1 of 3 examples, the first of them 2',
    ),
  )
  def test_mistakes(self, found, message):
    with self.assertRaisesRegex(ValueError, message):
      read(found)

  @parameterized.parameters(
    (np.array([0.0, 1.0]), "astype.'int32'.*task='regression'"),
    (np.array([0.5, 1.0]), "task='regression'"),
    (np.eye(3), r'take .argmax\(-1\)'),
    (np.array([True, False]), 'bool'),
    (np.array([3, -1]), 'with -1 in 1 of 2 places'),
  )
  def test_labels_that_are_none(self, labels, message):
    with self.assertRaisesRegex(ValueError, message):
      own.check_classes(labels, 'y')

  def test_labels(self):
    self.assertEqual(own.check_classes(np.uint8([1, 2]), 'y').dtype, np.int32)


if __name__ == '__main__':
  absltest.main()
