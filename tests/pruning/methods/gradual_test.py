"""Pruning over steps: the clock, the program, the shardings."""

import warnings

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from jaxopt_compress.core import compression
from jaxopt_compress.core import lift
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning import measure
from jaxopt_compress.pruning import prune
from jaxopt_compress.pruning.methods.gradual import gradual

Sparsity = masking.Sparsity
Info = compression.Info


def mlp(params, x):
  x = jnp.tanh(x @ params['up'] + params['bias'])
  return x @ params['down']


def make_params(key=0):
  up, down = jax.random.split(jax.random.key(key))
  return {
    'bias': jnp.zeros((1, 16)),
    'down': jax.random.normal(down, (16, 4)),
    'up': jax.random.normal(up, (8, 16)),
  }


def kernels(spec):
  return [(r'up|down', spec), (r'.*', None)]


def zeros(comp, params, state):
  tree = compression.freeze(comp.apply(params, state))
  return {path: c.zeros for path, c in measure.sparsity(tree).items()}


class GradualTest(parameterized.TestCase):
  def test_one_shot_is_final_at_init(self):
    params = make_params()
    comp = gradual(kernels(Sparsity(0.5)))
    state = comp.init(params)
    got = comp.apply(params, state)
    for name, n in {'up': 64, 'down': 32}.items():
      w = np.asarray(got[name].materialize())
      self.assertEqual((w == 0).sum(), n)
      kept, gone = abs(w[w != 0]), abs(np.asarray(params[name])[w == 0])
      self.assertGreater(kept.min(), gone.max())
    self.assertIs(got['bias'], params['bias'])
    again = prune.prune(params, kernels(Sparsity(0.5)))
    jax.tree.map(np.testing.assert_array_equal, again, got)

  @parameterized.parameters(
    ('cubic', [0, 0, 0, 51, 51, 86, 86, 102, 102, 102]),
    ('constant', [0, 102, 102, 102, 102, 102, 102, 102, 102, 102]),
  )
  def test_zeros_follow_the_schedule(self, schedule, expected):
    # 128 weights, target 0.8: 102 zeros; ramp over steps 1 to 7.
    params = make_params()
    spec = Sparsity(0.8, begin=1, end=7, every=2, schedule=schedule)
    comp = gradual([(r'up', spec), (r'.*', None)])
    update = jax.jit(comp.update)
    state = comp.init(params)
    got = [zeros(comp, params, state)['up']]
    for step in range(1, 10):
      state = update(state, params, Info(jnp.int32(step)))
      got.append(zeros(comp, params, state)['up'])
    if schedule == 'cubic':  # steps 3, 5 of 1..7: t = 1/3, 2/3
      ramp = [round(128 * 0.8 * (1 - (1 - t) ** 3)) for t in (1 / 3, 2 / 3)]
      expected = [0, 0, 0, ramp[0], ramp[0], ramp[1], ramp[1], 102, 102, 102]
    self.assertEqual(got, expected)
    self.assertEqual(update._cache_size(), 1)

  def test_target_is_reached_though_steps_were_skipped(self):
    params = make_params()
    comp = gradual(kernels(Sparsity(0.5, begin=0, end=10, every=4)))
    state = comp.init(params)
    for step in (3, 17):  # 10 was never seen
      state = comp.update(state, params, Info(step))
    self.assertEqual(zeros(comp, params, state)['up'], 64)

  def test_masks_are_fixed_after_the_end(self):
    comp = gradual(kernels(Sparsity(0.5, begin=0, end=2)))
    state = comp.init(make_params(0))
    state = comp.update(state, make_params(0), Info(2))
    later = comp.update(state, make_params(1), Info(3))
    jax.tree.map(np.testing.assert_array_equal, later.masks, state.masks)

  def test_a_pruned_weight_comes_back(self):
    spec = Sparsity(0.5, end=10, schedule='constant')
    comp = gradual([(r'w', spec)])
    state = comp.init({'w': jnp.array([3.0, 1.0])})
    self.assertEqual(state.masks['w'].tolist(), [True, False])
    params = {'w': jnp.array([0.5, 1.0])}  # the kept one shrank
    state = comp.update(state, params, Info(1))
    self.assertEqual(state.masks['w'].tolist(), [False, True])
    np.testing.assert_array_equal(
      comp.apply(params, state)['w'].materialize(), [0, 1]
    )

  def test_gradients_of_masked_weights_are_zero(self):
    params, x = make_params(), jnp.ones((2, 8))
    comp = gradual(kernels(Sparsity(0.5)))
    state = comp.init(params)

    def loss(params):
      return jnp.square(lift.lift(mlp)(comp.apply(params, state), x)).sum()

    grads = jax.grad(loss)(params)
    for name, mask in state.masks.items():
      self.assertEqual(float(jnp.abs(jnp.where(mask, 0, grads[name])).max()), 0)
      self.assertGreater(float(jnp.abs(grads[name]).max()), 0)

  def test_n_m_does_not_jump(self):
    params = make_params()
    spec = Sparsity(kind='n_m', n=2, m=4, end=5)
    comp = gradual([(r'up', spec), (r'.*', None)], in_out.IN_OUT)
    state, counts = comp.init(params), []
    for step in range(1, 7):
      state = comp.update(state, params, Info(step))
      counts.append(zeros(comp, params, state)['up'])
    # 32 groups that lose 2 each: round(32 (1 - (1 - t)^3)).
    self.assertEqual(counts, [2 * n for n in (16, 25, 30, 32, 32, 32)])

  @parameterized.parameters(
    (Sparsity(0.5), True),
    (Sparsity(0.05), False),  # 3 of 64 go
    (Sparsity(0.5, kind='neurons'), True),
    (Sparsity(0.5, scope='global'), True),
    (Sparsity(kind='n_m', n=2, m=4), True),
    (Sparsity(0.5, begin=1, end=1), False),  # nothing goes yet
  )
  def test_ties_are_told(self, spec, told):
    params = {'w': jnp.full((8, 8), 0.5)}
    rules = [(r'w', spec)]
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      gradual(rules, in_out.IN_OUT).init(params)
      jax.jit(gradual(rules, in_out.IN_OUT).init)(params)
    self.assertEqual(len(caught), told)
    if told:
      self.assertRegex(str(caught[0].message), r'^w: .* of its 64 weights')
    # No two weights are equal, or which of them stays is all the same.
    for w in (jnp.arange(1.0, 65.0), jnp.maximum(jnp.arange(64.0) - 40, 0)):
      gradual(rules, in_out.IN_OUT).init({'w': w.reshape(8, 8)})

  def test_layers_of_a_stack_are_not_emptied_without_uses(self):
    w = jax.random.normal(jax.random.key(0), (3, 8, 8))
    params = {'w': w * jnp.array([1.0, 1e-3, 1.0])[:, None, None]}
    comp = gradual([(r'w', Sparsity(0.5))])
    for init in (comp.init, jax.jit(comp.init)):
      kept = init(params).masks['w'].sum((-2, -1)).tolist()
      self.assertEqual((kept[1], sum(kept)), (3, 96))

  def test_global_scope(self):
    params = make_params()
    params['up'] *= 10
    comp = gradual(kernels(Sparsity(0.25, scope='global')))
    counts = zeros(comp, params, comp.init(params))
    self.assertEqual(counts['up'] + counts['down'], 48)
    self.assertGreater(counts['down'], counts['up'])

  def test_abstract_init(self):
    params = make_params()
    for spec in (
      Sparsity(0.5, end=3),
      Sparsity(kind='n_m', n=2, m=4),
      Sparsity(0.5, kind='neurons', scope='global'),
    ):
      comp = gradual(kernels(spec), in_out.IN_OUT)
      state = jax.eval_shape(comp.init, params)
      same = lambda a, b: self.assertEqual(
        (a.shape, a.dtype), (b.shape, b.dtype)
      )
      jax.tree.map(same, state, comp.init(params))
      out = jax.eval_shape(comp.apply, params, state)
      self.assertEqual(out['up'].shape, (8, 16))

  def test_composes_by_path_and_in_a_chain(self):
    params = make_params()
    one = gradual([(r'up', Sparsity(0.5))])
    comp = compression.chain(
      compression.by_path([(r'up', one), (r'.*', None)]),
      gradual([(r'down', Sparsity(0.5)), (r'.*', None)]),
    )
    state = comp.init(params)
    state = comp.update(state, params, Info(1, grads=params))
    got = zeros(comp, params, state)
    self.assertEqual(got, {'bias': 16, 'down': 32, 'up': 64})

  def test_masks_are_sharded_as_their_parameters(self):
    mesh = jax.make_mesh((4,), ('model',))
    specs = {
      'bias': PartitionSpec(),
      'down': PartitionSpec('model'),
      'up': PartitionSpec(None, 'model'),
    }
    shardings = {k: NamedSharding(mesh, s) for k, s in specs.items()}
    plain = make_params()
    params = jax.device_put(plain, shardings)
    comp = gradual(kernels(Sparsity(0.5, end=4)))
    state = jax.block_until_ready(jax.jit(comp.init)(params))
    state = jax.jit(comp.update)(state, params, Info(jnp.int32(4)))
    state = jax.block_until_ready(state)
    want = comp.update(comp.init(plain), plain, Info(4))
    for path, mask in state.masks.items():
      self.assertEqual(mask.dtype, bool)
      self.assertTrue(mask.sharding.is_equivalent_to(shardings[path], 2), path)
      np.testing.assert_array_equal(mask, want.masks[path])

  def test_inside_shard_map(self):
    mesh = jax.make_mesh((4,), ('data',))
    comp = gradual(kernels(Sparsity(0.5, end=1)))
    params = make_params()
    state = comp.init(params)

    def step(state, params, step):
      return comp.update(state, params, Info(step))

    run = jax.jit(
      jax.shard_map(
        step, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
      )
    )
    got = jax.block_until_ready(run(state, params, jnp.int32(1)))
    want = comp.update(state, params, Info(1))
    jax.tree.map(np.testing.assert_array_equal, got, want)

  def test_bfloat16_parameters(self):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params())
    comp = gradual(kernels(Sparsity(0.5)))
    got = comp.apply(params, comp.init(params))
    self.assertEqual(got['up'].materialize().dtype, jnp.bfloat16)
    self.assertEqual(int((got['up'].materialize() == 0).sum()), 64)

  def test_nan_names_its_leaf(self):
    params = make_params()
    params['down'] = params['down'].at[3, 1].set(jnp.nan)
    with self.assertRaisesRegex(ValueError, '^down: 1 scores are NaN'):
      gradual(kernels(Sparsity(0.5))).init(params)

  @parameterized.parameters('unstructured', 'neurons')
  def test_nan_does_not_hide_behind_a_mask(self, kind):
    params = make_params()
    params['down'] = params['down'].at[3, 1].set(jnp.nan)
    comp = gradual(kernels(Sparsity(0.5, kind=kind)), in_out.IN_OUT)
    self.assertTrue(jax.jit(comp.init)(params).masks['down'][3, 1])


if __name__ == '__main__':
  absltest.main()
