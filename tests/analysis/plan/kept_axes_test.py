"""Which axes of a parameter an array has that an optimizer keeps of it."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.analysis.plan import kept_axes


class KeptAxesTest(parameterized.TestCase):
  @parameterized.parameters(
    ((3, 8), (3, 8), '', (3, 16), {0: 0, 1: 1}),
    ((5, 3, 1), (3, 8), '', (3, 16), {1: 0}),
    ((8,), (3, 8), '1', (3, 16), {0: 1}),
    # Means over one axis, of matrices and of kernels of convolutions.
    ((3,), (3, 8), '', (3, 16), {0: 0}),
    ((8,), (3, 8), '', (3, 16), {0: 1}),
    ((3, 3, 8), (3, 3, 4, 8), '', (3, 3, 4, 16), {0: 0, 1: 1, 2: 3}),
    # Which axis is missing is not known: of one side, and of the other.
    ((8,), (8, 8), '', (8, 16), None),
    ((3,), (3, 8), '', (3, 3), None),
    # Another axis is then the largest, whose means are kept elsewhere.
    ((3,), (3, 8), '', (12, 8), None),
    ((1,), (1, 8), '', (2, 8), None),
  )
  def test_of(self, shape, whole, rest, other, want):
    self.assertEqual(kept_axes.of(shape, whole, rest, other), want)


if __name__ == '__main__':
  absltest.main()
