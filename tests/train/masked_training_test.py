"""Methods of pruning in the trainer: resumed to the bit, equal on all replicas."""

import functools

from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_compress as jc
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.pruning import state as pruning_state
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train.step import loss as loss_lib
from jaxopt_compress.train.step import state as state_lib
from jaxopt_compress.train.step import train_step as train_step_lib

STEPS = 7
KEYS = jax.random.split(jax.random.key(0), 2 + STEPS)
PARAMS = {'v': jax.random.normal(KEYS[0], (8, 3)), 'w': jnp.ones((4, 8))}
PARAMS['w'] = jax.random.normal(KEYS[1], (4, 8))
BATCHES = [{'x': np.asarray(jax.random.normal(k, (8, 4)))} for k in KEYS[2:]]


def model(params, variables, x, *, train=False, rngs=None):
  return jnp.tanh(x @ params['w']) @ params['v'], {}, variables


def loss(seen):
  y, _ = seen.outputs
  part = loss_lib.Part(jnp.square(y - 1).sum(), jnp.int32(y.shape[0]))
  return {'loss': part}


@functools.cache
def made(name, mode, rounded=True):
  """(first state, step) of a method, behind rounding or not."""
  spec = jc.Sparsity(0.5, end=6, every=2)
  if name == 'sr_ste':
    spec = jc.Sparsity(kind='n_m', n=2, m=4, end=6, every=2)
  method = getattr(jc.methods, name)([('.*', spec)], in_out.IN_OUT)
  rounding = (
    [jc.fake_quantize([('.*', 'int8 lsq')], uses=in_out.IN_OUT)]
    if rounded
    else []
  )
  both = jc.chain(method, *rounding)
  mesh = mesh_lib.data_mesh(4)
  adam, sgd = optax.adam(0.05), optax.sgd(0.5)
  state = state_lib.create(
    PARAMS, {}, KEYS[0], adam, compression=both, learned_optimizer=sgd
  )
  step = train_step_lib.train_step(
    model,
    loss,
    adam,
    inputs='x',
    compression=both,
    learned_optimizer=sgd,
  )
  return (
    mesh_lib.replicate(state, mesh),
    step_lib.data_parallel(step, mode, mesh),
  )


def trained(name, mode, batches, state=None, **kwargs):
  first, step = made(name, mode, **kwargs)
  state = state or jax.tree.map(jnp.copy, first)
  for batch in batches:
    state, _ = jax.block_until_ready(step(state, batch))
  return state


class MaskedTrainingTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _quickly(self, tmp_path):
    self.dir = tmp_path
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)

  @parameterized.parameters(*jc.methods.__all__)
  def test_resumed_it_is_the_same_to_the_bit(self, name):
    whole = trained(name, 'shard_map', BATCHES)
    part = trained(name, 'shard_map', BATCHES[:3])
    checkpoint.save(self.dir / 'at', part, {})
    template = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      part,
    )
    part = checkpoint.restore(self.dir / 'at', template, {})
    resumed = trained(name, 'shard_map', BATCHES[3:], part)
    for (path, x), (_, y) in zip(
      jc.rules.named_leaves(whole), jc.rules.named_leaves(resumed), strict=True
    ):
      if path != 'rng':
        np.testing.assert_array_equal(x, y, path)

  @parameterized.parameters(*jc.methods.__all__)
  def test_masks_are_the_same_on_all_replicas(self, name):
    state = trained(name, 'shard_map', BATCHES)
    [found] = pruning_state.states(state.comp_state)
    for path, mask in found.masks.items():
      first, *others = (np.asarray(s.data) for s in mask.addressable_shards)
      self.assertLen(others, 3)
      for other in others:
        np.testing.assert_array_equal(other, first)
      if name != 'soft_movement':  # finds out how sparse it gets
        self.assertEqual(first.sum(), first.size // 2)
      held = np.asarray(state.params[path])[~first]
      moment = np.asarray(state.opt_state[0].mu[path])[~first]
      if found.rest == 'zero':
        np.testing.assert_array_equal(held, 0)
      if found.rest != 'trained':
        np.testing.assert_array_equal(moment, 0)

  @parameterized.parameters('jit', 'pmap')
  def test_modes_agree(self, mode):
    # Not rounded: codes at ties would tell in which order gradients are added.
    want = trained('rigl', 'shard_map', BATCHES, rounded=False)
    got = trained('rigl', mode, BATCHES, rounded=False)
    for path in PARAMS:
      np.testing.assert_allclose(
        got.params[path], want.params[path], rtol=1e-4, atol=1e-5
      )
    found = [pruning_state.states(s.comp_state)[0].masks for s in (want, got)]
    jax.tree.map(np.testing.assert_array_equal, *found)
