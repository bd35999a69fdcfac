"""What happens to parameters while a stage trains."""

import dataclasses

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.pruning import state as state_lib
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import stages

DATA = options.Data(name='digits')
X = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
INT8 = options.Quantize(rules=((r'.*/kernel', 'W8A16'), (r'.*', None)))
HALF = options.Prune(rules=((r'.*/kernel', 0.5), (r'.*', None)))


def _stage(**asked):
  return options.Stage(name='s', model='mlp', **asked)


class CompressionTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    asked = dict(in_features=64, widths=(8,))
    cls.model = model_lib.build('mlp', asked, X)
    cls.params, cls.variables = cls.model.init(0)

  @parameterized.parameters(
    dict(method='static'),
    dict(method='sparse_evolutionary'),
    dict(method='rigl'),
    dict(score='random', schedule='constant'),
    dict(method='straight_through', score='random', schedule='constant'),
    dict(method='ac_dc', score='random'),
  )
  def test_random_masks_follow_the_seed(self, **said):
    def masks(seed, own=-1):
      stage = _stage(steps=4, prune=dataclasses.replace(HALF, seed=own, **said))
      built = stages.build(stage, self.model, (), DATA, seed=seed)
      [state] = state_lib.states(built.compression.init(self.params))
      return np.concatenate([m.ravel() for m in state.masks.values()])

    np.testing.assert_array_equal(masks(1), masks(1))
    self.assertFalse(np.array_equal(masks(1), masks(2)))
    np.testing.assert_array_equal(masks(1, own=3), masks(2, own=3))
