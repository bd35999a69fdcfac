"""Microbatches: the gradient of the whole batch, however a mask cuts it."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_compress.analysis import statistics
from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.train.step import accumulate
from jaxopt_compress.train.step import loss as loss_lib
from jaxopt_compress.train.step import state as state_lib
from jaxopt_compress.train.step import train_step as train_step_lib

RNG = np.random.default_rng(0)
BATCH = {
  'x': RNG.normal(size=(16, 4)).astype(np.float32),
  'y': RNG.normal(size=(16, 3)).astype(np.float32),
  'mask': np.arange(16) < 11,
}
W = RNG.normal(size=(4, 3)).astype(np.float32)


def _apply(params, variables, x, *, train=False, rngs=None):
  return x @ params['w'], {}, {'calls': variables['calls'] + 1}


def _loss(seen):
  """Two parts, of which each counts other examples."""
  (y, _), mask = seen.outputs, seen.batch['mask']
  error = jnp.square(y - seen.batch['y']).sum(-1)
  few = mask & (seen.batch['y'][:, 0] > 0)
  return {
    'error': loss_lib.Part(jnp.where(mask, error, 0).sum(), mask.sum()),
    'size': loss_lib.Part(
      jnp.where(few, jnp.abs(y).sum(-1), 0).sum(), few.sum(), 0.5
    ),
  }


def _watching():
  """Adds up the spans of what w meets."""

  def update(state, params, info):
    met = info.statistics['w'].state
    return state + met.high - met.low

  return compression_lib.Compression(
    init=lambda params: jnp.zeros(()),
    apply=lambda params, state: params,
    update=update,
    observes=lambda params: {'w': statistics.minmax('tensor')},
  )


class AccumulateTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 'jit'), (2, 'jit'), (4, 'shard_map'), (4, 'pmap')
  )
  def test_equals_numpy(self, devices, mode):
    optimizer, mesh = optax.sgd(0.1), mesh_lib.data_mesh(devices)
    state = state_lib.create(
      {'w': jnp.asarray(W)},
      {'calls': jnp.int32(0)},
      jax.random.key(0),
      optimizer,
      compression=_watching(),
    )
    body = train_step_lib.train_step(
      _apply,
      _loss,
      optimizer,
      inputs='x',
      compression=_watching(),
      accumulate=4,
    )
    step = step_lib.data_parallel(body, mode, mesh)
    state, told = step(mesh_lib.replicate(state, mesh), BATCH)

    x, y, w = (a.astype(float) for a in (BATCH['x'], BATCH['y'], W))
    some = BATCH['mask']
    few = some & (y[:, 0] > 0)
    out = x @ w
    error = np.square(out - y).sum(-1)[some].mean()
    size = np.abs(out).sum(-1)[few].mean()
    grad = 2 * x[some].T @ (out - y)[some] / some.sum()
    grad += 0.5 * x[few].T @ np.sign(out[few]) / few.sum()
    np.testing.assert_allclose(state.params['w'], w - 0.1 * grad, atol=1e-5)
    np.testing.assert_allclose(told['loss'], error + 0.5 * size, rtol=1e-5)
    np.testing.assert_allclose(told['size'], size, rtol=1e-5)
    np.testing.assert_allclose(state.comp_state, np.ptp(BATCH['x']), rtol=1e-6)
    self.assertEqual(int(state.variables['calls']), 4)

  def test_padding_alone_changes_nothing(self):
    state = state_lib.create(
      {'w': jnp.asarray(W)},
      {'calls': jnp.int32(0)},
      jax.random.key(0),
      optax.sgd(1.0),
    )
    step = train_step_lib.train_step(
      _apply, _loss, optax.sgd(1.0), inputs='x', accumulate=2
    )
    batch = BATCH | {'mask': np.zeros(16, bool)}
    after, told = jax.jit(step, static_argnums=2)(
      state, batch, step_lib.Replicas()
    )
    np.testing.assert_array_equal(after.params['w'], W)
    self.assertEqual(float(told['loss']), 0.0)

  def test_gradients_add_up_in_float32(self):
    """300 times 1 is no number of bfloat16 above 256 in steps of 1."""

    def gradient(batch, variables, key, counts):
      one = jnp.bfloat16(1.0)
      return (jnp.float32(0), ({}, variables, {})), one

    found = accumulate.accumulated(
      gradient,
      lambda batch, variables, key: {},
      {'x': jnp.zeros(300)},
      {},
      jax.random.key(0),
      n=300,
    )
    self.assertEqual(found[1].dtype, jnp.bfloat16)
    self.assertEqual(float(found[1]), 300.0)
