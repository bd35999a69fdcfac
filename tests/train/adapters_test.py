"""A stage that trains adapters leaves everything else as it was, to the bit."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_compress as jc
from jaxopt_compress import parallel
from jaxopt_compress.train import final as final_lib
from jaxopt_compress.train import loop
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import plan as plan_lib
from jaxopt_compress.train import preemption
from jaxopt_compress.train import stages

# Runs that died leave files and event loops open, which is no mistake here.
pytestmark = [
  pytest.mark.filterwarnings(f'ignore::{name}')
  for name in ('pytest.PytestUnraisableExceptionWarning', 'ResourceWarning')
]

NF4 = ((r'.*/kernel', 'nf4 g16 dq'), (r'.*', None))
RANKS = ((r'layers/.*/kernel', 2), (r'.*', None))


def _config(**changes):
  train = dict(model='mlp', batch_size=16, learning_rate=0.01)
  adapted = dict(steps=6, init='base', quantize=NF4, lora=RANKS, **train)
  return dict(
    seed=0,
    data=dict(name='digits', test='validation', eval_batch_size=64),
    models=dict(mlp=dict(in_features=64, widths=(16, 8))),
    stages=('base', 'adapted'),
    stage=dict(base=dict(steps=4, **train), adapted={**adapted, **changes}),
    report=dict(batches=(1,), seconds=0.0, plots=False),
    run=dict(devices=1, log_every=2, save_every=2),
  )


def _built(**changes):
  plan = plan_lib.parse(_config(**changes))
  x = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32)
  model = model_lib.build('mlp', plan.models['mlp'], x)
  return stages.build(plan.stage('adapted'), model, (), plan.data), model


def _step(built, state):
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.normal(size=(16, 8, 8, 1)).astype(np.float32),
    'label': rng.integers(0, 10, 16),
    'mask': np.ones(16, bool),
  }
  run = jax.jit(lambda s, b: built.step(s, b, parallel.step.Replicas()))
  return run(state, batch)


class StageTest(parameterized.TestCase):
  def test_only_adapters_are_trained(self):
    built, model = _built()
    params, variables = model.init(0)
    state = built.create(params, variables, jax.random.key(0), {})
    numbers = 2 * (64 + 16) + 2 * (16 + 8)
    self.assertEqual(
      sum(x.size for x in jax.tree.leaves(state.params)), numbers
    )
    # Two moments, and counts.
    held = sum(x.size for x in jax.tree.leaves(state.opt_state))
    self.assertBetween(held, 2 * numbers, 2 * numbers + 4)

    before = built.compression.apply(state.params, state.comp_state)
    rules = [(p, jc.quantization.schemes.scheme(s)) for p, s in NF4]
    base = jc.quantize(params, rules, model.uses)
    y = model.forward(base, variables, jnp.ones((2, 8, 8, 1)))
    np.testing.assert_array_equal(
      model.forward(before, variables, jnp.ones((2, 8, 8, 1))), y
    )

    for _ in range(3):
      state, metrics = _step(built, state)
    self.assertGreater(float(metrics['grad_norm']), 0)
    for f in jax.tree.leaves(state.params):
      self.assertGreater(float(jnp.abs(f).max()), 0)
    final = final_lib.finish(state, built.stage, model, built.compression)
    leaf = final['params']['layers']['0']['kernel']
    self.assertIsInstance(leaf, jc.adapters.LoRA)
    same = final['params'] | {
      'layers': {
        i: layer | {'kernel': layer['kernel'].base}
        for i, layer in final['params']['layers'].items()
      }
    }
    self.assertEqual(jax.tree.structure(same), jax.tree.structure(base))
    for a, b in zip(*map(jax.tree.leaves, (same, base)), strict=True):
      np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
      final['plain']['layers']['0']['kernel'], leaf.materialize()
    )

  def test_scale(self):
    built, model = _built(lora_alpha=4.0, lora_rank_stabilized=True)
    params, variables = model.init(0)
    state = built.create(params, variables, jax.random.key(0), {})
    tree = built.compression.apply(state.params, state.comp_state)
    self.assertAlmostEqual(tree['layers']['0']['kernel'].scale, 4 / 2**0.5)

  @parameterized.named_parameters(
    ('rank', dict(lora=((r'.*/kernel', 11), (r'.*', None))), 'from 1 to 8'),
    ('rule', dict(lora=((r'kernl', 2), (r'.*', None))), 'matches no path'),
    ('prune', dict(prune=((r'.*', 0.5),)), 'prune in a stage before'),
    ('steps', dict(steps=0, learning_rate=1e-3), 'Set steps and init'),
    ('init', dict(init=''), 'Set steps and init'),
  )
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      _built(**change)


@pytest.mark.usefixtures('compiled')
class LoopTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path, monkeypatch):
    self.dir, self.monkeypatch = tmp_path, monkeypatch

  def test_goes_on_where_it_was_stopped(self):
    loop.run(_config(), self.dir / 'whole')
    requested = preemption.Watch.requested
    calls = []

    def stop(watch):
      calls.append(1)
      return len(calls) == 8 or requested(watch)  # in the adapters' third step

    with self.monkeypatch.context() as patch:
      patch.setattr(preemption.Watch, 'requested', stop)
      with pytest.raises(preemption.Preempted, match="stage 'adapted'"):
        loop.run(_config(), self.dir / 'twice')
    loop.run(_config(), self.dir / 'twice')
    weights = [
      pathlib.Path(self.dir / d / 'stages/adapted/weights.safetensors')
      for d in ('whole', 'twice')
    ]
    self.assertEqual(*[w.read_bytes() for w in weights])


if __name__ == '__main__':
  absltest.main()
