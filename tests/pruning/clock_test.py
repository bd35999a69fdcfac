"""What all methods promise: one program, shapes alone, types and shardings kept."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import optax

import jaxopt_compress as jc
from jaxopt_compress.core import compression
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import state as state_lib

X = jax.random.normal(jax.random.key(1), (8, 8))
SCORES = {'movement': optax.sgd(1.0), 'soft_movement': optax.sgd(1.0)}
NAMES = tuple(jc.methods.__all__)


def mlp(params, x):
  return jnp.tanh(x @ params['up'] + params['bias']) @ params['down']


def make_params(dtype=jnp.float32):
  up, down = jax.random.split(jax.random.key(0))
  return {
    'bias': jnp.zeros((1, 16), dtype),
    'down': jax.random.normal(down, (16, 4), dtype),
    'up': jax.random.normal(up, (8, 16), dtype),
  }


def method(name, **when):
  when = when or dict(begin=0, end=6, every=2)
  if name == 'sr_ste':
    spec = jc.Sparsity(kind='n_m', n=2, m=4, **when)
  else:
    spec = jc.Sparsity(0.5, **when)
  return getattr(jc.methods, name)(
    [('up|down', spec), ('.*', None)], in_out.IN_OUT
  )


def stepper(name, loss, comp=None):
  tx = jc.pruning.sparse(
    optax.adam(0.05), comp or method(name), SCORES.get(name)
  )

  @jax.jit
  def step(params, state):
    grads = jax.grad(lambda p: loss(jc.pruning.masked(p, state)))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return tx, step


def loss(params):
  return jnp.mean(jnp.square(mlp(params, X.astype(params['up'].dtype))))


class EveryMethodTest(parameterized.TestCase):
  @parameterized.product(name=NAMES, dtype=('float32', 'bfloat16'))
  def test_one_program_for_all_steps(self, name, dtype):
    tx, step = stepper(name, loss)
    params = make_params(dtype)
    state = tx.init(params)
    like = jax.eval_shape(tx.init, params)
    jax.tree.map(
      lambda x, s: self.assertEqual((x.shape, x.dtype), (s.shape, s.dtype)),
      state,
      like,
    )
    for _ in range(8):
      params, state = step(params, state)
    self.assertEqual(step._cache_size(), 1)
    self.assertEqual(params['up'].dtype, dtype)
    [found] = state_lib.states(state)
    if name != 'soft_movement':  # finds out how sparse it gets
      self.assertEqual(int(found.masks['up'].sum()), 64)
      self.assertEqual(int(found.masks['down'].sum()), 32)
    zero = [(~found.masks[p] & (params[p] == 0)).sum() for p in ('up', 'down')]
    self.assertEqual(int(sum(zero)), 96 if found.rest == 'zero' else 0)

  @parameterized.parameters(*NAMES)
  def test_rounded_behind_the_mask(self, name):
    comp = method(name)
    comp = jc.chain(
      comp,
      jc.fake_quantize([('up|down', 'int8'), ('.*', None)], uses=in_out.IN_OUT),
    )
    params = make_params()
    frozen = jc.freeze(comp.apply(params, comp.init(params)))
    [found] = state_lib.states(comp.init(params))
    self.assertEqual(frozen['up'].qvalue.dtype, jnp.int8)
    gone = jnp.where(found.masks['up'], 0, jc.materialize(frozen)['up'])
    np.testing.assert_array_equal(gone, 0)

  @parameterized.parameters(
    'gradual', 'rigl', 'sparse_evolutionary', 'movement'
  )
  def test_sharded_as_on_one_device(self, name):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('x',))
    cut = {
      'bias': PartitionSpec(),
      'down': PartitionSpec('x'),
      'up': PartitionSpec(None, 'x'),
    }
    cut = {path: NamedSharding(mesh, spec) for path, spec in cut.items()}
    tx, step = stepper(name, loss)
    params = make_params()
    sharded = jax.device_put(params, cut)
    plain = params, tx.init(params)
    got = sharded, jax.jit(tx.init)(sharded)
    for _ in range(4):
      plain, got = step(*plain), step(*got)
    [want], [found] = (state_lib.states(x[1]) for x in (plain, got))
    for path in ('up', 'down'):
      np.testing.assert_array_equal(found.masks[path], want.masks[path])
      self.assertTrue(got[0][path].sharding.is_equivalent_to(cut[path], 2))

  @parameterized.parameters(*NAMES)
  def test_begins_and_ends(self, name):
    params = make_params()
    comp = method(name, begin=3, end=7, every=2)
    state = comp.init(params)
    learned, rest = jc.core.split_learned(state)
    for path in learned:
      learned[path] = jnp.sin(params[path.rpartition('/')[2]])
    state = jc.core.merge_learned(learned, rest)
    update, changed = jax.jit(comp.update), []
    for step in range(1, 11):
      moved, grads = (
        jax.tree.map(lambda x, s=step, f=f: f(x * s), params)
        for f in (jnp.cos, jnp.sin)
      )
      new = update(state, moved, jc.Info(step, grads))
      if (new.masks['up'] != state.masks['up']).any():
        changed.append(step)
      state = new
    self.assertLessEqual(set(changed), {3, 5, 7})
    if name not in ('static', 'movement', 'soft_movement'):
      self.assertIn(5, changed)

  def test_gradients_are_needed_where_masks_grow_by_them(self):
    comp, params = method('rigl'), make_params()
    with self.assertRaisesRegex(ValueError, 'grows weights by their gradients'):
      comp.update(comp.init(params), params, compression.Info(2))

  @parameterized.parameters(*NAMES)
  def test_values_in_words(self, name):
    words = '2:4' if name == 'sr_ste' else 0.5
    rules = [('up|down', words), ('.*', None)]
    comp = getattr(jc.methods, name)(rules, in_out.IN_OUT)
    self.assertIn('up', jax.eval_shape(comp.init, make_params()).masks)

  def test_scores_are_of_float32(self):
    zeros = clock.zeros({'w': jnp.ones(2, jnp.bfloat16)})
    self.assertEqual(zeros['w'].dtype, jnp.float32)


if __name__ == '__main__':
  absltest.main()
