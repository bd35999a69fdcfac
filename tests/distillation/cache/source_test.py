"""A finished cache is read by number, through grain, and by nobody whom it misleads."""

import pickle

from absl.testing import absltest
from absl.testing import parameterized
import grain
import numpy as np
import pytest

from jaxopt_compress.distillation import cache

N = 7
MADE = cache.Manifest(
  model='m', data='d', vocabulary=9, k=2, examples=N, positions=(3,), shard=3
)


def answers(indices):
  ids = np.broadcast_to(indices[:, None, None] + [0, 1], (len(indices), 3, 2))
  log_tail = np.full(ids.shape[:-1], np.log(0.25))
  return ids, np.broadcast_to(np.log([0.5, 0.25]), ids.shape), log_tail


class Examples:
  """A source as users write one."""

  def __len__(self):
    return N

  def __getitem__(self, i):
    return {'x': np.float32(i)}


class SourceTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path
    cache.write(tmp_path, MADE, answers, batch_size=4)
    self.cache = cache.read(tmp_path, data='d', vocabulary=9, model='m')

  def test_by_number(self):
    self.assertLen(self.cache, N)
    one, many = self.cache[np.int64(5)], self.cache.take([5, 0, 5])
    shapes = {'ids': (3, 2), 'log_probs': (3, 2), 'log_tail': (3,)}
    self.assertEqual({n: x.shape for n, x in one.items()}, shapes)
    self.assertEqual(many['ids'][:, 0, 0].tolist(), [5, 0, 5])
    for name, x in many.items():
      np.testing.assert_array_equal(x[0], one[name])
    self.assertEqual(self.cache.take(np.zeros(0, int))['ids'].shape, (0, 3, 2))

  @parameterized.parameters(-1, N)
  def test_what_is_not_there(self, index):
    with self.assertRaisesRegex(IndexError, f'no example {index}.*has 7'):
      self.cache[index]

  @parameterized.parameters(
    (np.ones(N, bool), r'bool \[7\]'),
    ([0.0, 1.0], r'float64 \[2\]'),
    (3, r'int64 \[\]'),
  )
  def test_what_is_no_number(self, indices, found):
    with self.assertRaisesRegex(ValueError, f'indices are {found}; the num'):
      self.cache.take(indices)

  def test_joined_and_read_through_grain(self):
    source = cache.Joined(Examples(), self.cache)
    batches = grain.MapDataset.source(source).shuffle(seed=0).repeat().batch(4)
    for i in range(3):
      batch = batches[i]
      self.assertEqual(batch['log_tail'].shape, (4, 3))
      np.testing.assert_array_equal(batch['ids'][:, 0, 0], batch['x'])

  def test_by_a_loader_with_a_sampler(self):
    sampler = grain.samplers.IndexSampler(
      N, shard_options=grain.sharding.NoSharding(), num_epochs=1, seed=0
    )
    loader = grain.DataLoader(
      data_source=cache.Joined(Examples(), self.cache),
      sampler=sampler,
      operations=[grain.transforms.Batch(N)],
      worker_count=0,
    )
    [batch] = loader
    np.testing.assert_array_equal(batch['ids'][:, 0, 0], batch['x'])
    self.assertEqual(sorted(batch['x']), list(range(N)))

  def test_sent_to_another_process(self):
    self.cache.check()
    sent = pickle.dumps(self.cache)
    self.assertLess(len(sent), 2000)  # not the answers
    np.testing.assert_array_equal(pickle.loads(sent)[6]['ids'][0], [6, 7])

  def test_another_number_of_examples(self):
    with self.assertRaisesRegex(ValueError, '3 examples, and answers to 7'):
      cache.Joined([{'x': 0}] * 3, self.cache)

  def test_two_of_one_name(self):
    with self.assertRaisesRegex(ValueError, r"Examples have \['ids'\]"):
      cache.Joined([{'ids': 0}] * N, self.cache)[0]

  @parameterized.parameters(
    (dict(data='e'), "its data is 'd', and 'e' is expected"),
    (dict(vocabulary=8), 'its vocabulary is 9, and 8 is'),
    (dict(model='n', tokenizer='t'), "its model .*; its tokenizer is ''"),
    (dict(temperature=2.0), 'its temperature is 1.0, and 2.0'),
    (dict(temprature=2.0), "Did you mean 'temperature'"),
  )
  def test_a_cache_of_something_else(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      cache.read(self.dir, **({'data': 'd', 'vocabulary': 9} | change))


if __name__ == '__main__':
  absltest.main()
