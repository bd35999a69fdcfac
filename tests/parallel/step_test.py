"""Three ways to run a step, one result."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import step as step_lib

LEARNING_RATE = 0.1


def _loss(params, batch):
  """Masked squared error of a two-layer network, as (sum, count)."""
  h = jnp.tanh(batch['x'] @ params['w1'])
  error = jnp.square(h @ params['w2'] - batch['y']).sum(-1)
  return jnp.where(batch['mask'], error, 0).sum(), batch['mask'].sum()


def _sgd(params, batch, replicas):
  """The library's idiom: sums and counts are averaged, then divided."""

  def loss(params):
    total, count = _loss(params, batch)
    return total, count.astype(jnp.float32)

  (total, count), grads = jax.value_and_grad(loss, has_aux=True)(params)
  total, count, grads = replicas((total, count, grads))
  params = jax.tree.map(
    lambda p, g: p - LEARNING_RATE * g / count, params, grads
  )
  return params, {'loss': total / count}


def _params():
  rng = np.random.default_rng(0)
  return {
    'w1': jnp.asarray(rng.normal(size=(5, 8)), jnp.float32),
    'w2': jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
  }


def _batch(i, size=16):
  """The last quarter is padding, so one replica of four has no example at all."""
  rng = np.random.default_rng(100 + i)
  return {
    'x': rng.normal(size=(size, 5)).astype(np.float32),
    'y': rng.normal(size=(size, 3)).astype(np.float32),
    'mask': np.arange(size) < 3 * size // 4,
  }


class DriftTest(parameterized.TestCase):
  def _run(self, mode, step):
    mesh = mesh_lib.data_mesh(2)
    return step_lib.data_parallel(step, mode, mesh)(_params(), _batch(0))

  @parameterized.product(
    mode=('shard_map', 'pmap'),
    forgets=(
      # what is averaged, what differs
      (
        lambda replicas, grads, loss: (grads, loss),
        r'3 of.*0/w1.*0/w2.*1/loss',
      ),
      (lambda replicas, grads, loss: (grads, replicas(loss)), '2 of the 3'),
      (
        lambda replicas, grads, loss: (replicas(grads), loss),
        r"1 of the 3 results.*\['1/loss'\]",
      ),
    ),
  )
  def test_results_that_differ_are_refused(self, mode, forgets):
    average, message = forgets

    def step(params, batch, replicas):
      loss, grads = jax.value_and_grad(lambda p: _loss(p, batch)[0])(params)
      grads, loss = average(replicas, grads, loss)
      return jax.tree.map(jnp.subtract, params, grads), {'loss': loss}

    with self.assertRaisesRegex(ValueError, f'(?s){message}.*Average'):
      self._run(mode, step)

  @parameterized.parameters('shard_map', 'pmap')
  def test_so_is_the_index_of_a_replica(self, mode):
    def step(params, batch, replicas):
      key = replicas.fold_in(jax.random.key(0))
      noise = jax.random.normal(key, params['w1'].shape)
      return {**params, 'w1': params['w1'] + noise}, {}

    with self.assertRaisesRegex(ValueError, r"1 of the 2 results.*\['0/w1'\]"):
      self._run(mode, step)

  def test_one_program_sees_the_whole_batch(self):
    def step(params, batch, replicas):
      return params, {'loss': _loss(params, batch)[0]}

    self._run('jit', step)


class ModesTest(parameterized.TestCase):
  def _oracle(self, steps=20):
    """One device on the whole batch, with the plain mean."""

    @jax.jit
    def step(params, batch):
      def mean(params):
        total, count = _loss(params, batch)
        return total / count

      loss, grads = jax.value_and_grad(mean)(params)
      return (
        jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads),
        loss,
      )

    params, losses = _params(), []
    for i in range(steps):
      params, loss = step(params, _batch(i))
      losses.append(float(loss))
    return params, losses

  @parameterized.product(mode=step_lib.MODES, devices=(1, 4))
  def test_equals_one_device_on_the_whole_batch_after_20_steps(
    self, mode, devices
  ):
    mesh = mesh_lib.data_mesh(devices)
    step = step_lib.data_parallel(_sgd, mode, mesh)
    params, losses = mesh_lib.replicate(_params(), mesh), []
    for i in range(20):
      params, metrics = jax.block_until_ready(step(params, _batch(i)))
      losses.append(float(metrics['loss']))
    expected, expected_losses = self._oracle()
    np.testing.assert_allclose(losses, expected_losses, atol=1e-5)
    for name in expected:
      np.testing.assert_allclose(params[name], expected[name], atol=1e-5)

  @parameterized.product(
    mode=step_lib.MODES, state=(('w',), ('v', 'w')), batch=(('x',), ('x', 'y'))
  )
  def test_any_number_of_leaves(self, mode, state, batch):
    def mean(state, batch, replicas):
      means = [replicas(x.mean()) for x in batch.values()]
      return state, {'mean': sum(means), 'w': state['w']}

    step = step_lib.data_parallel(mean, mode, mesh_lib.data_mesh(4))
    w, x = jnp.arange(4.0), np.arange(8.0, dtype='f')
    kept, metrics = step({k: w for k in state}, {k: x for k in batch})
    self.assertEqual(float(metrics['mean']), 3.5 * len(batch))
    for array in (metrics['w'], *kept.values()):
      np.testing.assert_array_equal(array, w)

  @parameterized.parameters(*step_lib.MODES)
  def test_traces_once(self, mode):
    traces = []

    def counted(params, batch, replicas):
      traces.append(1)
      return _sgd(params, batch, replicas)

    mesh = mesh_lib.data_mesh(2)
    step = step_lib.data_parallel(counted, mode, mesh)
    params = mesh_lib.replicate(_params(), mesh)
    for i in range(3):
      params, _ = jax.block_until_ready(step(params, _batch(i)))
    self.assertLen(traces, 1)

  @parameterized.parameters(*step_lib.MODES)
  def test_frozen_arguments_reach_every_replica(self, mode):
    def add(state, batch, replicas, scale):
      return state + replicas(batch['x'].mean()) * scale, {}

    step = step_lib.data_parallel(add, mode, mesh_lib.data_mesh(2))
    state, _ = step(jnp.zeros(()), {'x': np.arange(4.0, dtype='f')}, 10.0)
    self.assertEqual(float(state), 15.0)

  @parameterized.parameters(('shard_map', 4), ('pmap', 4), ('jit', 1))
  def test_each_replica_has_its_own_key(self, mode, different):
    def draw(state, batch, replicas):
      bits = jax.random.bits(replicas.fold_in(jax.random.key(0)))
      low = (bits % 1000).astype(jnp.float32)
      return state, {'mean': replicas(low), 'mean_square': replicas(low**2)}

    step = step_lib.data_parallel(draw, mode, mesh_lib.data_mesh(4))
    _, drawn = step(jnp.zeros(()), {'x': np.zeros((4, 1), 'f')})
    variance = float(drawn['mean_square'] - drawn['mean'] ** 2)
    self.assertEqual(variance > 1.0, different > 1)

  def test_unknown_mode(self):
    with pytest.raises(
      ValueError, match="mode='pjit'; choose one of .*'shard_map'"
    ):
      step_lib.data_parallel(_sgd, 'pjit')

  @parameterized.parameters(*step_lib.MODES)
  def test_batch_that_does_not_divide(self, mode):
    step = step_lib.data_parallel(_sgd, mode, mesh_lib.data_mesh(4))
    with pytest.raises(ValueError, match='batch of 6 does not divide over 4'):
      step(_params(), _batch(0, size=6))

  @parameterized.parameters(*step_lib.MODES)
  def test_keys_are_no_rows(self, mode):
    step = step_lib.data_parallel(_sgd, mode, mesh_lib.data_mesh(4))
    keys = jax.random.split(jax.random.key(0), 8)
    with pytest.raises(ValueError, match='keys of a batch is .*the state or'):
      step(_params(), _batch(0, size=8) | {'keys': keys})


class TrapTest(parameterized.TestCase):
  """pmean(grad(...)) under `check_vma=True` is a sum: N times too large."""

  @parameterized.parameters((False, 1.0), (True, 4.0))
  def test_factor(self, check_vma, factor):
    mesh = mesh_lib.data_mesh(4)
    x = np.arange(8.0, dtype=np.float32)

    def pmean_of_grad(w, x):
      grads = jax.grad(lambda w: (w * x).mean())(w)
      return jax.lax.pmean(grads, mesh_lib.AXIS)

    mapped = jax.shard_map(
      pmean_of_grad,
      mesh=mesh,
      in_specs=(PartitionSpec(), PartitionSpec(mesh_lib.AXIS)),
      out_specs=PartitionSpec(),
      check_vma=check_vma,
    )
    grads = jax.jit(mapped)(jnp.float32(1.0), x)
    self.assertAlmostEqual(float(grads), factor * x.mean(), places=5)
