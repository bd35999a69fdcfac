"""What a stage leaves behind."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.train import final as final_lib
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import stages

DATA = options.Data(name='digits')
X = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
INT8 = options.Quantize(rules=((r'.*/kernel', 'W8A16'), (r'.*', None)))
HALF = options.Prune(rules=((r'.*/kernel', 0.5), (r'.*', None)))


def _stage(**asked):
  return options.Stage(name='s', model='mlp', **asked)


class FinishTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    asked = dict(in_features=64, widths=(8,))
    cls.model = model_lib.build('mlp', asked, X)
    cls.params, cls.variables = cls.model.init(0)

  def _finished(self, stage):
    built = stages.build(stage, self.model, (), DATA)
    state = built.create(
      self.params, self.variables, jax.random.key(0), built.ranges
    )
    final = final_lib.finish(state, stage, self.model, built.compression)
    self.assertEqual(jax.tree.structure(final), jax.tree.structure(built.final))
    return built, final

  def test_compressed_as_it_is(self):
    built, final = self._finished(
      _stage(init='float', prune=HALF, quantize=INT8)
    )
    self.assertIsNone(built.step)
    leaf = final['params']['layers']['0']['kernel']
    self.assertIsInstance(leaf, jc.QArray)
    zeros = float(jnp.mean(leaf.materialize() == 0))
    self.assertAlmostEqual(zeros, 0.5, places=1)
    plain = final['plain']['layers']['0']['kernel']
    np.testing.assert_array_equal(plain, self.params['layers']['0']['kernel'])

  def test_what_was_trained_is_what_is_stored(self):
    built, final = self._finished(_stage(steps=3, quantize=INT8))
    self.assertIsNotNone(built.step)
    rules = [(r'.*/kernel', jc.W8A16), (r'.*', None)]
    expected = jc.quantize(self.params, rules, self.model.uses)
    for a, b in zip(
      jax.tree.leaves(final['params']), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_array_equal(a, b)

  def test_stored_is_what_inference_needs(self):
    _, final = self._finished(_stage(steps=1))
    self.assertEqual(set(final_lib.stored(final)), {'params', 'variables'})
