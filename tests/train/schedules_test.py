"""Numbers that change with the steps."""

from absl.testing import parameterized
import numpy as np

from jaxopt_compress.train import schedules


class SchedulesTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.3, 5, [0.3] * 5),
    ('linear 0 -> 0.8', 5, [0, 0.2, 0.4, 0.6, 0.8]),
    ('linear 8->1', 1, [8]),
    ('cosine 0 -> 1', 5, [0, 0.146447, 0.5, 0.853553, 1]),
    ('cosine 1e1 -> 2 over 0.5', 5, [10, 6, 2, 2, 2]),
  )
  def test_values(self, said, steps, expected):
    found = [float(schedules.at(said, steps)(t)) for t in range(steps)]
    np.testing.assert_allclose(found, expected, atol=1e-5)

  @parameterized.parameters('0.9', 'linear', 'linear 0 -> 1..2', 'exp 0 -> 1')
  def test_no_schedule(self, said):
    with self.assertRaisesRegex(
      ValueError, rf"^c\.alpha is '{said}'; a number"
    ):
      schedules.check('c.alpha', said, '[0, 1]')
