"""Batches by step: the same for the same (seed, step), every example an epoch."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress import data


def rows(stream, steps):
  return [stream[step]['x'].tolist() for step in steps]


class BatchesTest(parameterized.TestCase):
  def stream(self, n=10, batch_size=4, seed=0, **kwargs):
    arrays = {'x': np.arange(n), 'y': np.arange(n) * 2}
    return data.batches(arrays, batch_size=batch_size, seed=seed, **kwargs)

  @parameterized.parameters((10, 4), (10, 5), (10, 10), (7, 3), (1, 1))
  def test_each_epoch_has_each_example_once(self, n, batch_size):
    stream = self.stream(n, batch_size)
    flat = np.concatenate(rows(stream, range(3 * n)))
    self.assertLen(flat, 3 * n * batch_size)
    for epoch in flat.reshape(-1, n):
      self.assertCountEqual(epoch.tolist(), range(n))

  def test_epochs_differ(self):
    flat = np.concatenate(rows(self.stream(100, 50), range(4)))
    self.assertFalse(np.array_equal(flat[:100], flat[100:]))

  def test_resume_is_asking_for_a_later_step(self):
    want = rows(self.stream(), range(20))
    self.assertEqual(rows(self.stream(), range(13, 20)), want[13:])
    backwards = self.stream()
    self.assertEqual(rows(backwards, range(19, -1, -1)), want[::-1])

  def test_far_steps_cost_no_more(self):
    self.assertEqual(self.stream()[10**12]['x'].shape, (4,))

  def test_seeds_differ_at_every_epoch(self):
    # A seed that is added to the epoch would make stream 1 stream 0, delayed.
    epochs = [
      tuple(row)
      for seed in range(4)
      for row in rows(self.stream(30, 30, seed), range(5))
    ]
    self.assertLen(set(epochs), 20)

  def test_rows_stay_together(self):
    batch = self.stream()[5]
    np.testing.assert_array_equal(batch['y'], 2 * batch['x'])

  def test_transform_gets_a_generator_of_the_step(self):
    def draw(batch, rng):
      return {'x': batch['x'], 'noise': rng.uniform(size=2)}

    noise = lambda seed, step: tuple(  # noqa: E731
      self.stream(seed=seed, transform=draw)[step]['noise']
    )
    self.assertEqual(noise(0, 3), noise(0, 3))
    self.assertLen({noise(0, 3), noise(0, 4), noise(1, 3)}, 3)

  def test_iterates_from_step_zero(self):
    stream = self.stream()
    for step, batch in zip(range(3), stream, strict=False):
      np.testing.assert_array_equal(batch['x'], stream[step]['x'])

  @parameterized.parameters(
    ({}, 1, 'nothing to batch'),
    ({'x': []}, 1, "nothing to batch: the lengths are {'x': 0}"),
    ({'x': [1, 2], 'y': [1]}, 1, "different lengths: {'x': 2, 'y': 1}"),
    ({'x': [1, 2]}, 3, 'batch_size is 3, and there are 2 examples'),
    ({'x': [1, 2]}, 0, 'from 1 to 2'),
  )
  def test_errors(self, arrays, batch_size, message):
    arrays = {name: np.array(x) for name, x in arrays.items()}
    with self.assertRaisesRegex(ValueError, message):
      data.batches(arrays, batch_size=batch_size, seed=0)

  def test_negative_steps_are_refused(self):
    with self.assertRaisesRegex(IndexError, 'numbered from 0; this is -1'):
      self.stream()[-1]


class EvalBatchesTest(parameterized.TestCase):
  @parameterized.parameters(
    (4, 2, [[0, 1], [2, 3]], [[1, 1], [1, 1]]),
    (5, 2, [[0, 1], [2, 3], [4, 4]], [[1, 1], [1, 1], [1, 0]]),
    (2, 4, [[0, 1, 0, 0]], [[1, 1, 0, 0]]),
  )
  def test_batches(self, n, batch_size, want, mask):
    got = data.eval_batches({'x': np.arange(n)}, batch_size)
    self.assertEqual([b['x'].tolist() for b in got], want)
    self.assertEqual([b['mask'].tolist() for b in got], mask)
    self.assertEqual(got[0]['mask'].dtype, np.bool_)

  @parameterized.parameters(
    ({'x': []}, 1, 'nothing to batch'),
    ({'x': [1], 'y': [1, 2]}, 1, 'different lengths'),
    ({'x': [1]}, 0, 'must be at least 1'),
    ({'x': [1], 'mask': [1]}, 1, 'another name'),
  )
  def test_errors(self, arrays, batch_size, message):
    arrays = {name: np.array(x) for name, x in arrays.items()}
    with self.assertRaisesRegex(ValueError, message):
      data.eval_batches(arrays, batch_size)


if __name__ == '__main__':
  absltest.main()
