"""One step follows another: losses, gradients, compression, teachers, replicas."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_compress.analysis import statistics
from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.train.step import loss as loss_lib
from jaxopt_compress.train.step import state as state_lib
from jaxopt_compress.train.step import train_step as train_step_lib


def _apply(params, variables, x, *, train=False, rngs=None):
  """A linear model that counts its training calls and adds noise if it is told."""
  y = x @ params['w'] + params['b'][None]
  if train:
    variables = {
      'calls': variables['calls'] + 1,
      'mean': 0.5 * variables['mean'] + 0.5 * x.mean(),
    }
  return y, {}, variables


def _squared(seen):
  (y, _), mask = seen.outputs, seen.batch['mask']
  target = seen.teachers[0][0] if seen.teachers else seen.batch['y']
  error = jnp.square(y - target).sum(-1)
  return {'error': loss_lib.Part(jnp.where(mask, error, 0).sum(), mask.sum())}


def _scaled():
  """w is multiplied by a learned gain and halved after two steps."""

  def apply(params, state):
    gain = state['gain'].value * jnp.where(state['late'], 0.5, 1.0)
    return params | {'w': params['w'] * gain}

  return compression_lib.Compression(
    init=lambda params: {
      'gain': compression_lib.Learned(jnp.float32(2.0)),
      'late': jnp.bool_(False),
    },
    apply=apply,
    update=lambda state, params, info: state | {'late': info.step >= 2},
  )


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


def _params(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'w': jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
    'b': jnp.zeros((3,), jnp.float32),
  }


def _variables():
  return {'calls': jnp.int32(0), 'mean': jnp.float32(0)}


def _batch(i, size=8):
  rng = np.random.default_rng(50 + i)
  return {
    'x': rng.normal(size=(size, 4)).astype(np.float32),
    'y': rng.normal(size=(size, 3)).astype(np.float32),
    'mask': np.arange(size) < size - 3,
  }


def _run(mode, devices, steps, *, frozen=(), **kwargs):
  optimizer = optax.sgd(0.05)
  mesh = mesh_lib.data_mesh(devices)
  state = state_lib.create(
    _params(),
    _variables(),
    jax.random.key(0),
    optimizer,
    compression=kwargs.get('compression'),
  )
  traces = []
  body = train_step_lib.train_step(
    _apply, _squared, optimizer, inputs='x', **kwargs
  )

  def counted(*args):
    traces.append(1)
    return body(*args)

  step = step_lib.data_parallel(counted, mode, mesh)
  state = mesh_lib.replicate(state, mesh)
  losses = []
  for i in range(steps):
    state, metrics = jax.block_until_ready(step(state, _batch(i), *frozen))
    losses.append(float(metrics['loss']))
  return state, losses, len(traces)


class StepTest(parameterized.TestCase):
  @parameterized.product(mode=step_lib.MODES, devices=(1, 4))
  def test_modes_equal_numpy(self, mode, devices):
    state, losses, traces = _run(mode, devices, 20)
    w, b = (np.asarray(_params()[k], np.float64) for k in 'wb')
    for i in range(20):
      batch = _batch(i)
      x, y = batch['x'][:5].astype(float), batch['y'][:5].astype(float)
      error = x @ w + b - y
      self.assertAlmostEqual(losses[i], (error**2).sum(-1).mean(), places=4)
      w = w - 0.05 * 2 * x.T @ error / 5
      b = b - 0.05 * 2 * error.sum(0) / 5
    np.testing.assert_allclose(state.params['w'], w, atol=1e-5)
    np.testing.assert_allclose(state.params['b'], b, atol=1e-5)
    self.assertEqual(traces, 1)
    self.assertEqual(int(state.step), 20)
    self.assertEqual(int(state.variables['calls']), 20)

  def test_a_batch_of_padding_changes_nothing(self):
    optimizer = optax.sgd(0.05)
    state = state_lib.create(
      _params(), _variables(), jax.random.key(0), optimizer
    )
    step = train_step_lib.train_step(_apply, _squared, optimizer, inputs='x')
    batch = {**_batch(0), 'mask': np.zeros(8, bool)}
    after, metrics = step(state, batch, step_lib.Replicas())
    self.assertEqual(float(metrics['loss']), 0.0)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)

  def test_statistics_are_those_of_all_replicas(self):
    state, _, _ = _run('shard_map', 4, 1)
    np.testing.assert_allclose(
      state.variables['mean'], 0.5 * _batch(0)['x'].mean(), atol=1e-6
    )

  @parameterized.parameters(*step_lib.MODES)
  def test_compression_learns_and_keeps_time(self, mode):
    state, _, traces = _run(mode, 2, 3, compression=_scaled())
    w, gain, b = np.asarray(_params()['w'], np.float64), 2.0, 0.0
    for i in range(3):
      batch, late = _batch(i), 0.5 if i >= 2 else 1.0
      x, y = batch['x'][:5].astype(float), batch['y'][:5].astype(float)
      error = x @ (w * gain * late) + b - y
      grad = 2 * x.T @ error / 5 * late
      w, gain = w - 0.05 * grad * gain, gain - 0.05 * (grad * w).sum()
      b = b - 0.05 * 2 * error.sum(0) / 5
    np.testing.assert_allclose(state.params['w'], w, atol=1e-5)
    np.testing.assert_allclose(state.learned['gain'], gain, atol=1e-5)
    self.assertTrue(bool(state.comp_state['late']))
    self.assertEqual(traces, 1)
    seen = state_lib.compressed(state, _scaled())
    np.testing.assert_allclose(
      seen['w'], state.params['w'] * state.learned['gain'] * 0.5, rtol=1e-6
    )

  @parameterized.product(mode=step_lib.MODES, devices=(1, 4))
  def test_compression_is_told_what_all_replicas_met(self, mode, devices):
    state, _, traces = _run(mode, devices, 3, compression=_watching())
    seen = [_batch(i)['x'] for i in range(3)]
    np.testing.assert_allclose(
      state.comp_state, sum(x.max() - x.min() for x in seen), rtol=1e-5
    )
    self.assertEqual(traces, 1)

  def test_teacher_is_an_argument_and_is_not_a_constant(self):
    teacher = (_params(1), _variables())
    _, losses, _ = _run(
      'shard_map', 2, 30, teachers=[_apply], frozen=((teacher,),)
    )
    self.assertLess(losses[-1], 0.2 * losses[0])
    optimizer = optax.sgd(0.1)
    body = train_step_lib.train_step(
      _apply, _squared, optimizer, inputs='x', teachers=[_apply]
    )
    state = state_lib.create(
      _params(), _variables(), jax.random.key(0), optimizer
    )
    jaxpr = jax.make_jaxpr(body, static_argnums=2)(
      state, _batch(0), step_lib.Replicas(), (teacher,)
    )
    self.assertEmpty([c for c in jaxpr.consts if np.size(c) > 1])

  def test_a_teacher_that_follows_the_student(self):
    optimizer, mesh = optax.sgd(0.05), mesh_lib.data_mesh(4)
    state = state_lib.create(
      _params(),
      _variables(),
      jax.random.key(0),
      optimizer,
      compression=_scaled(),
      follow=True,
    )
    body = train_step_lib.train_step(
      _apply,
      _squared,
      optimizer,
      inputs='x',
      compression=_scaled(),
      ema_decay=0.6,
    )
    step = step_lib.data_parallel(body, 'shard_map', mesh)
    state, teacher = mesh_lib.replicate(state, mesh), np.zeros((4, 3))
    for done in range(1, 6):
      state, _ = step(state, _batch(done))
      # In the first steps it is the plain mean of all students so far.
      decay = min(0.6, 1 - 1 / done)
      student = state_lib.compressed(state, _scaled())['w']
      teacher = decay * teacher + (1 - decay) * np.asarray(student, np.float64)
      np.testing.assert_allclose(state.average[0]['w'], teacher, rtol=1e-5)
    self.assertEqual(int(state.average[1]['calls']), 5)

  def test_student_and_teacher_see_the_same_mixtures(self):
    def loss(seen):
      [(said, _)] = seen.teachers
      rows = {'own': seen.outputs[0][1, 0], 'said': said[1, 0]}
      rows |= {'share': seen.share}
      return {name: loss_lib.Part(x, jnp.ones(())) for name, x in rows.items()}

    optimizer, tree = optax.sgd(0.05), (_params(1), _variables())
    state = state_lib.create(
      _params(), _variables(), jax.random.key(0), optimizer
    )
    step = train_step_lib.train_step(
      _apply, loss, optimizer, inputs='x', teachers=[_apply], mixup=1.0
    )
    _, told = step(state, _batch(0), step_lib.Replicas(), (tree,))
    x, s = _batch(0)['x'], float(told['share'])
    self.assertBetween(s, 0.5, 1.0)
    mixed = s * x[1] + (1 - s) * x[0]
    for name, params in (('own', _params()), ('said', _params(1))):
      expected = mixed @ np.asarray(params['w'])[:, 0]
      self.assertAlmostEqual(float(told[name]), expected, places=5)

  def test_keys_depend_on_the_step_alone(self):
    def noisy(params, variables, x, *, train=False, rngs=None):
      noise = jax.random.normal(rngs, (1, 3)) if train else 0.0
      return x @ params['w'] + params['b'][None] + noise, {}, variables

    optimizer = optax.sgd(0.1)
    body = jax.jit(
      train_step_lib.train_step(noisy, _squared, optimizer, inputs='x'),
      static_argnums=2,
    )
    state = state_lib.create(
      _params(), _variables(), jax.random.key(0), optimizer
    )
    batch, alone = _batch(0), step_lib.Replicas()
    first = body(state, batch, alone)[1]['loss']
    again = body(state, batch, alone)[1]['loss']
    later = body(body(state, batch, alone)[0], batch, alone)[1]['loss']
    self.assertEqual(float(first), float(again))
    self.assertNotEqual(float(first), float(later))
