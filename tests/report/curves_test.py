"""When a curve reaches a loss."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.report import curves

CURVE = [(10.0, 4.0), (20.0, 2.0), (30.0, 3.0), (40.0, 1.0)]


class CurvesTest(parameterized.TestCase):
  @parameterized.parameters(
    # loss, cost: at a point, between two, at the first, never, the first of two
    (2.0, 20.0),
    (3.5, 12.5),
    (5.0, 10.0),
    (0.5, None),
    (3.0, 15.0),
    (1.5, 37.5),
  )
  def test_reached(self, loss, cost):
    self.assertEqual(curves.reached(CURVE, loss), cost)

  def test_nothing_is_reached_by_nothing(self):
    self.assertIsNone(curves.reached([], 1.0))


if __name__ == '__main__':
  absltest.main()
