"""A task as a record."""

import math

from absl.testing import absltest
import numpy as np

from jaxopt_compress.train.tasks import task


class TaskTest(absltest.TestCase):
  def test_ratio(self):
    self.assertEqual(task.ratio(np.float64(3), np.float64(2)), 1.5)
    self.assertTrue(math.isnan(task.ratio(np.float64(0), np.float64(0))))

  def test_told(self):
    metrics = {'a:f1': task.Metric(None, spec='.1%'), 'mae': task.Metric(None)}
    made = task.Task(None, 'mse', metrics)
    numbers = {'a:f1': 0.25, 'mae': 3.0, 'loss': 2.0}
    self.assertEqual(made.told(numbers, 'a:f1'), 'f1 25.0%, loss 2.0000')
    self.assertEqual(made.told(numbers, 'mae'), 'mae 3.0000, loss 2.0000')
    self.assertFalse(made.classes)
    self.assertIs(made.scaled(numbers), numbers)


if __name__ == '__main__':
  absltest.main()
