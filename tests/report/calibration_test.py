"""Calibration error, against the definition in float64."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxopt_compress.report import calibration


def _error(logits, labels, bins):
  """Guo et al. 2017, eq. 3, one bin after the other."""
  p = special.softmax(np.asarray(logits, np.float64), -1)
  confidence, right = p.max(-1), p.argmax(-1) == labels
  total = 0.0
  for b in range(bins):
    inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
    if inside.any():
      gap = abs(right[inside].mean() - confidence[inside].mean())
      total += inside.mean() * gap
  return total


class CalibrationTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.logits = (3 * rng.normal(size=(40, 7, 4))).astype(np.float32)
    self.labels = rng.integers(0, 4, (40, 7))

  def test_of_the_definition(self):
    for bins in (1, 5, 15):
      sums = calibration.reliability(self.logits, self.labels, bins=bins)
      expected = _error(self.logits, self.labels, bins)
      self.assertAlmostEqual(calibration.error(sums), expected, places=5)

  def test_batches_add_up_and_padding_has_no_part(self):
    whole = calibration.reliability(self.logits, self.labels)
    logits = np.concatenate([self.logits[20:], np.full((2, 7, 4), np.nan)])
    labels = np.concatenate([self.labels[20:], np.full((2, 7), -1)])
    mask = np.broadcast_to(np.arange(22)[:, None] < 20, (22, 7))
    parts = calibration.reliability(self.logits[:20], self.labels[:20])
    parts += calibration.reliability(logits, labels, mask)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)

  def test_certain_answers(self):
    certain = jnp.array([[0.0, -jnp.inf], [0.0, -jnp.inf]])
    sums = calibration.reliability(certain, np.array([0, 1]))
    self.assertEqual(sums[:, -1].tolist(), [2, 2, 1])
    self.assertEqual(calibration.error(sums), 0.5)

  def test_an_answer_that_is_no_number(self):
    sums = calibration.reliability(jnp.full((1, 3), jnp.nan), np.array([0]))
    self.assertTrue(np.isnan(calibration.error(sums)))

  def test_what_is_refused(self):
    with self.assertRaisesRegex(ValueError, r'labels \[40\]; \[40, 7\] is'):
      calibration.reliability(self.logits, self.labels[:, 0])
    with self.assertRaisesRegex(ValueError, 'No answer counts'):
      calibration.error(np.zeros((3, 15)))


if __name__ == '__main__':
  absltest.main()
