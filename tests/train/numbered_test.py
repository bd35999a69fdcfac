"""Each answer belongs to the inputs of its number."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress import data as data_lib
from jaxopt_compress.train import numbered
from jaxopt_compress.train import options

X = np.arange(10, dtype=np.float32)
DATA = options.Data(name='digits', input='x', target='y')
STAGE = options.Stage(name='s', model='m', steps=5, batch_size=4)


def made(stage=STAGE, x=X, seed=0, transform=None, content=None):
  batches = data_lib.batches(
    {'x': x, 'y': x},
    batch_size=stage.batch_size,
    seed=seed,
    transform=transform,
  )
  content = x if content is None else content
  return batches, numbered.numbered(batches, stage, DATA, content)


def noise(batch, rng):
  return batch | {'x': batch['x'] + rng.normal(size=len(batch['x']))}


class NumberedTest(parameterized.TestCase):
  @parameterized.parameters(
    # What comes again unchanged, for an epoch or more, is numbered by example.
    (None, 5, 'example', 10),
    (None, 3, 'example', 10),
    (None, 2, 'step', 8),
    (noise, 5, 'step', 20),
  )
  def test_numbers_belong_to_inputs(self, transform, steps, by, count):
    stage = dataclasses.replace(STAGE, steps=steps)
    batches, found = made(stage, transform=transform)
    self.assertEqual((found.by, found.count), (by, count))
    for step in range(steps):
      numbers = found.numbers(step)
      self.assertTrue((numbers < count).all())
      np.testing.assert_array_equal(found.inputs(numbers), batches[step]['x'])

  def test_by_example_only_inputs_count(self):
    one = made()[1].data
    self.assertEqual(one, made(seed=1, content=X + 1)[1].data)
    self.assertNotEqual(one, made(x=X + 1)[1].data)

  @parameterized.parameters(
    dict(seed=1),
    dict(x=X + 1),
    # In the middle of what batches are cut from, which none of the ends shows.
    dict(content=X + 1),
    dict(stage=dataclasses.replace(STAGE, steps=6)),
    dict(stage=dataclasses.replace(STAGE, batch_size=2)),
    dict(transform=lambda batch, rng: noise(batch, rng) | {'x': batch['x']}),
  )
  def test_by_step_all_that_batches_are_made_of_counts(self, **change):
    one = made(transform=noise)[1].data
    self.assertEqual(one, made(transform=noise)[1].data)
    self.assertNotEqual(one, made(**({'transform': noise} | change))[1].data)


if __name__ == '__main__':
  absltest.main()
