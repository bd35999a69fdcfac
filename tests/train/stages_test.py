"""A stage: its loss, and what it leaves behind."""

import dataclasses

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_compress as jc
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
    final = stages.finish(state, stage, self.model, built.compression)
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

  def test_stored_is_what_inference_needs(self):
    _, final = self._finished(_stage(steps=1))
    self.assertEqual(set(stages.stored(final)), {'params', 'variables'})

  def test_a_mistake_names_the_stage(self):
    quantize = options.Quantize(rules=((r'.*/kernl', 'W8A8'), (r'.*', None)))
    with pytest.raises(ValueError, match="Stage 's': .*kernl"):
      stages.build(_stage(steps=1, quantize=quantize), self.model, (), DATA)


class ReadTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('method', dict(quantize=dict(calibrate='minmax')), 'static ranges'),
    ('batches', dict(quantize=dict(calibrate_batches=2)), 'static ranges'),
    ('batch_size', dict(batch_size=2), 'steps, or static ranges'),
    ('rate', dict(optimizer=dict(learned_rate=0.2), steps=1), 'lsq'),
  )
  def test_options_of_what_is_not_there(self, said, need):
    quantize = dataclasses.replace(INT8, **said.pop('quantize', {}))
    optimizer = options.Optimizer(**said.pop('optimizer', {}))
    stage = _stage(quantize=quantize, optimizer=optimizer, init='t', **said)
    model = model_lib.build('mlp', dict(widths=(8,)), X)
    with self.assertRaisesRegex(
      ValueError, rf"^Stage 's': config.stage.s\.\w+ is .* without {need}"
    ):
      stages.build(stage, model, (), DATA)


class StartTest(parameterized.TestCase):
  @parameterized.parameters((8,), (12,), (4,))
  def test_statistics_come_with_the_parameters(self, width):
    """All of a twin's, and those of the channels that another size shares."""
    base, other = (
      model_lib.build(name, dict(name='cnn', widths=(n,)), X)
      for name, n in (('base', 8), ('other', width))
    )
    params, variables = base.init(0)
    variables = jax.tree.map(lambda x: x + 0.5, variables)
    source = dict(params=params, variables=variables)
    own = other.init(1)
    built = stages.build(_stage(init='t', steps=1), other, (), DATA)
    found = stages.start(built, 'base', own, source)
    shared = min(width, 8)
    self.assertNotEmpty(jax.tree.leaves(variables))
    for left, right, fresh in zip(
      *map(jax.tree.leaves, (found[1], variables, own[1])), strict=True
    ):
      np.testing.assert_array_equal(left[:shared], right[:shared])
      np.testing.assert_array_equal(left[shared:], fresh[shared:])
    if width == 8:
      x = np.random.default_rng(0).random(X.shape, np.float32)
      np.testing.assert_array_equal(
        other.forward(*found, x), base.forward(params, variables, x)
      )

  def test_other_layouts(self):
    cnn, mlp = (
      model_lib.build(name, dict(widths=(8,)), X) for name in ('cnn', 'mlp')
    )
    built = stages.build(_stage(init='t', steps=1), mlp, (), DATA)
    params, variables = cnn.init(0)
    source = dict(params=params, variables=variables)
    with self.assertRaisesRegex(
      ValueError, "^Stage 's' starts model 'mlp' from model 'cnn': Only the"
    ):
      stages.start(built, 'cnn', mlp.init(0), source)
