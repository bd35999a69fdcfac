"""A stage: its options, its mistakes, and what it starts from."""

import dataclasses
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import stages

DATA = options.Data(name='digits')
X = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
INT8 = options.Quantize(rules=((r'.*/kernel', 'W8A16'), (r'.*', None)))
HALF = options.Prune(rules=((r'.*/kernel', 0.5), (r'.*', None)))


def _stage(**asked):
  return options.Stage(name='s', model='mlp', **asked)


class BuildTest(parameterized.TestCase):
  def test_a_mistake_names_the_stage(self):
    model = model_lib.build('mlp', dict(in_features=64, widths=(8,)), X)
    quantize = options.Quantize(rules=((r'.*/kernl', 'W8A8'), (r'.*', None)))
    with pytest.raises(ValueError, match="Stage 's': .*kernl"):
      stages.build(_stage(steps=1, quantize=quantize), model, (), DATA)

  def test_what_a_model_raises_is_a_mistake(self):
    """Of one's own it is said in a line; of ours it is a fault of ours."""
    model = model_lib.build('mlp', dict(in_features=64, widths=(8,)), X)
    own = dataclasses.replace(model, name='m', keywords={'name': 'nets:Mine'})
    raised = mock.Mock(side_effect=RuntimeError('other shapes'))
    with mock.patch.object(stages.compressing, 'compression_of', raised):
      with pytest.raises(ValueError, match="'s': config.models.m .*: other"):
        stages.build(_stage(steps=1), own, (), DATA)
      with pytest.raises(RuntimeError):
        stages.build(_stage(steps=1), model, (), DATA)


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
