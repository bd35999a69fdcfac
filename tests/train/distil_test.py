"""The loss of a stage: its parts, their counts, and what they do not read."""

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import losses
from jaxopt_compress.train import distil
from jaxopt_compress.train import options
from jaxopt_compress.train import state as state_lib

DATA = options.Data(name='digits')
RNG = np.random.default_rng(0)
Y, OTHER = RNG.normal(size=(2, 3, 5)).astype(np.float32)
BATCH = {'label': np.array([1, 2, 3]), 'mask': np.array([1, 1, 0]) > 0}


def _parts(y=Y, batch=BATCH, teachers=(), step=0, **asked):
  """{name: (sum, count, weight)} as numbers."""
  stage = options.Stage(name='s', model='mlp', steps=11, **asked)
  said = tuple((t, {}) for t in teachers)
  seen = state_lib.Seen((y, {}), batch, said, jnp.int32(step))
  found = distil.loss_of(stage, DATA)(seen)
  return {name: tuple(map(float, part)) for name, part in found.items()}


def _total(parts):
  return sum(weight * total / count for total, count, weight in parts.values())


class LossTest(parameterized.TestCase):
  def test_of_labels(self):
    parts = _parts(label_smoothing=0.1)
    expected, _ = losses.cross_entropy(
      Y[:2], BATCH['label'][:2], label_smoothing=0.1
    )
    self.assertEqual(list(parts), ['hard'])
    np.testing.assert_allclose(parts['hard'], (expected, 2, 1), rtol=1e-6)

  def test_of_a_teacher(self):
    asked = options.Distil(teacher='t', alpha=0.7, temperature=2.0)
    parts = _parts(distil=asked, teachers=[OTHER])
    expected, _ = losses.distill(
      Y[:2], OTHER[:2], BATCH['label'][:2], alpha=0.7, temperature=2.0
    )
    self.assertEqual(list(parts), ['hard', 'soft'])
    self.assertEqual([count for _, count, _ in parts.values()], [2, 2])
    np.testing.assert_allclose(_total(parts), expected / 2, rtol=1e-6)

  def test_a_mask_of_examples_covers_all_their_targets(self):
    batch = {'label': np.array([[1, 2, 3], [0, 4, 1]])}
    batch['mask'] = np.array([False, True])
    parts = _parts(y=np.stack([Y, OTHER]), batch=batch)
    expected, _ = losses.cross_entropy(OTHER, batch['label'][1])
    np.testing.assert_allclose(parts['hard'], (expected, 3, 1), rtol=1e-6)
