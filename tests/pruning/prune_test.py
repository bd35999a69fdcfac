"""Pruning over steps: the clock, the program, the shardings."""

import warnings

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import compression
from jaxopt_compress.core import lift
from jaxopt_compress.pruning import measure
from jaxopt_compress.pruning import prune
from jaxopt_compress.pruning.storage import sparsify

Sparsity = prune.Sparsity
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


class PruneTest(parameterized.TestCase):
  def test_one_shot_is_final_at_init(self):
    params = make_params()
    comp = prune.prune(kernels(Sparsity(0.5)))
    state = comp.init(params)
    got = comp.apply(params, state)
    for name, n in {'up': 64, 'down': 32}.items():
      w = np.asarray(got[name].materialize())
      self.assertEqual((w == 0).sum(), n)
      kept, gone = abs(w[w != 0]), abs(np.asarray(params[name])[w == 0])
      self.assertGreater(kept.min(), gone.max())
    self.assertIs(got['bias'], params['bias'])
    again = prune.prune_now(params, kernels(Sparsity(0.5)))
    jax.tree.map(np.testing.assert_array_equal, again, got)

  @parameterized.parameters(
    ('cubic', [0, 0, 0, 51, 51, 86, 86, 102, 102, 102]),
    ('constant', [0, 102, 102, 102, 102, 102, 102, 102, 102, 102]),
  )
  def test_zeros_follow_the_schedule(self, schedule, expected):
    # 128 weights, target 0.8: 102 zeros; ramp over steps 1 to 7.
    params = make_params()
    spec = Sparsity(0.8, begin=1, end=7, every=2, schedule=schedule)
    comp = prune.prune([(r'up', spec), (r'.*', None)])
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
    comp = prune.prune(kernels(Sparsity(0.5, begin=0, end=10, every=4)))
    state = comp.init(params)
    for step in (3, 17):  # 10 was never seen
      state = comp.update(state, params, Info(step))
    self.assertEqual(zeros(comp, params, state)['up'], 64)

  def test_masks_are_fixed_after_the_end(self):
    comp = prune.prune(kernels(Sparsity(0.5, begin=0, end=2)))
    state = comp.init(make_params(0))
    state = comp.update(state, make_params(0), Info(2))
    later = comp.update(state, make_params(1), Info(3))
    jax.tree.map(np.testing.assert_array_equal, later.masks, state.masks)

  def test_a_pruned_weight_comes_back(self):
    spec = Sparsity(0.5, end=10, schedule='constant')
    comp = prune.prune([(r'w', spec)])
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
    comp = prune.prune(kernels(Sparsity(0.5)))
    state = comp.init(params)

    def loss(params):
      return jnp.square(lift.lift(mlp)(comp.apply(params, state), x)).sum()

    grads = jax.grad(loss)(params)
    for name, mask in state.masks.items():
      self.assertEqual(float(jnp.abs(jnp.where(mask, 0, grads[name])).max()), 0)
      self.assertGreater(float(jnp.abs(grads[name]).max()), 0)

  def test_n_m_from_uses_runs_along_what_is_contracted(self):
    params = {'w': jax.random.normal(jax.random.key(0), (8, 16))}
    f = lambda p, x: x @ p['w'].T  # the last axis is the input
    uses = uses_lib.uses(f)(params, jnp.ones((2, 16)))
    spec = Sparsity(kind='n_m', n=2, m=4)
    got = prune.prune_now(params, [(r'w', spec)], uses)['w'].mask
    np.testing.assert_array_equal(got.reshape(8, 4, 4).sum(-1), 2)
    got = prune.prune_now(params, [(r'w', spec)])['w'].mask
    np.testing.assert_array_equal(got.reshape(2, 4, 16).sum(1), 2)

  def test_n_m_does_not_jump(self):
    params = make_params()
    spec = Sparsity(kind='n_m', n=2, m=4, end=5)
    comp = prune.prune([(r'up', spec), (r'.*', None)])
    state, counts = comp.init(params), []
    for step in range(1, 7):
      state = comp.update(state, params, Info(step))
      counts.append(zeros(comp, params, state)['up'])
    # 32 groups that lose 2 each: round(32 (1 - (1 - t)^3)).
    self.assertEqual(counts, [2 * n for n in (16, 25, 30, 32, 32, 32)])

  def test_neurons_of_a_scanned_stack(self):
    params = {'w': jax.random.normal(jax.random.key(0), (3, 4, 4))}

    def f(p, x):
      return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p['w'])[0]

    uses = uses_lib.uses(f)(params, jnp.ones((2, 4)))
    rules = [(r'w', Sparsity(0.5, kind='neurons'))]
    mask = prune.prune_now(params, rules, uses)['w'].mask
    np.testing.assert_array_equal(mask.all(-2).sum(-1), [2, 2, 2])
    np.testing.assert_array_equal(mask.any(-2).sum(-1), [2, 2, 2])

  def test_soft_threshold_ranks_by_what_sticks_out(self):
    w = jnp.stack([jnp.ones(4), jnp.array([3.0, 0, 0, 0])], -1)  # [4, 2]
    for score, k, kept in (
      ('magnitude', 0.0, [True, False]),
      ('soft_threshold', 1.0, [False, True]),
    ):
      spec = Sparsity(0.5, kind='neurons', score=score, k=k)
      mask = prune.prune_now({'w': w}, [(r'w', spec)])['w'].mask
      self.assertEqual(mask[0].tolist(), kept)

  @parameterized.parameters('unstructured', 'neurons')
  def test_what_is_below_k_is_ranked_by_magnitude(self, kind):
    w = jnp.array([[1.0, 3.0, 2.0, 4.0]])
    for k, dtype in ((10.0, 'float32'), (10.0, 'float16'), (3.5, 'bfloat16')):
      spec = Sparsity(0.5, kind=kind, score='soft_threshold', k=k)
      got = prune.prune_now({'w': w.astype(dtype)}, [(r'w', spec)])
      self.assertEqual(got['w'].mask.tolist(), [[False, True, False, True]])

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
      prune.prune(rules).init(params)
      jax.jit(prune.prune(rules).init)(params)
    self.assertEqual(len(caught), told)
    if told:
      self.assertRegex(str(caught[0].message), r'^w: .* of its 64 weights')
    # No two weights are equal, or which of them stays is all the same.
    for w in (jnp.arange(1.0, 65.0), jnp.maximum(jnp.arange(64.0) - 40, 0)):
      prune.prune(rules).init({'w': w.reshape(8, 8)})

  def test_leaves_of_zeros_are_told(self):
    with self.assertWarnsRegex(UserWarning, '^w: whether 4 of its 4 weights'):
      prune.prune_now({'w': jnp.zeros((2, 2))}, [(r'w', Sparsity(0.5))])

  def test_layers_of_a_stack_are_not_emptied_without_uses(self):
    w = jax.random.normal(jax.random.key(0), (3, 8, 8))
    params = {'w': w * jnp.array([1.0, 1e-3, 1.0])[:, None, None]}
    comp = prune.prune([(r'w', Sparsity(0.5))])
    for init in (comp.init, jax.jit(comp.init)):
      kept = init(params).masks['w'].sum((-2, -1)).tolist()
      self.assertEqual((kept[1], sum(kept)), (3, 96))

  def test_a_column_is_no_stack(self):
    params = {'w': jnp.arange(1.0, 7.0).reshape(6, 1)}
    f = lambda p, x: x + p['w']
    uses = uses_lib.uses(f)(params, jnp.ones((6, 1)))
    got = prune.prune_now(params, [(r'w', Sparsity(0.5))], uses)['w']
    self.assertEqual(got.mask.ravel().tolist(), [False] * 3 + [True] * 3)

  def test_scales_of_a_scan_are_a_stack(self):
    params = {'w': jnp.outer(jnp.array([1e-3, 1.0]), jnp.arange(1.0, 21.0))}
    f = lambda p, x: jax.lax.scan(lambda x, w: (x * w, None), x, p['w'])[0]
    uses = uses_lib.uses(f)(params, jnp.ones(20))
    got = prune.prune_now(params, [(r'w', Sparsity(0.5))], uses)['w']
    self.assertEqual(got.mask.sum(1).tolist(), [1, 19])

  def test_global_scope(self):
    params = make_params()
    params['up'] *= 10
    comp = prune.prune(kernels(Sparsity(0.25, scope='global')))
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
      comp = prune.prune(kernels(spec))
      state = jax.eval_shape(comp.init, params)
      same = lambda a, b: self.assertEqual(
        (a.shape, a.dtype), (b.shape, b.dtype)
      )
      jax.tree.map(same, state, comp.init(params))
      out = jax.eval_shape(comp.apply, params, state)
      self.assertEqual(out['up'].shape, (8, 16))

  def test_composes_by_path_and_in_a_chain(self):
    params = make_params()
    one = prune.prune([(r'up', Sparsity(0.5))])
    comp = compression.chain(
      compression.by_path([(r'up', one), (r'.*', None)]),
      prune.prune([(r'down', Sparsity(0.5)), (r'.*', None)]),
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
    comp = prune.prune(kernels(Sparsity(0.5, end=4)))
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
    comp = prune.prune(kernels(Sparsity(0.5, end=1)))
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
    comp = prune.prune(kernels(Sparsity(0.5)))
    got = comp.apply(params, comp.init(params))
    self.assertEqual(got['up'].materialize().dtype, jnp.bfloat16)
    self.assertEqual(int((got['up'].materialize() == 0).sum()), 64)

  def test_biases_can_be_pruned_weight_by_weight(self):
    params, x = make_params(), jnp.ones((2, 8))
    params['bias'] = jnp.arange(16.0).reshape(1, 16)
    uses = uses_lib.uses(mlp)(params, x)
    rules = [(r'.*', Sparsity(0.5))]
    got = prune.prune_now(params, rules, uses)
    self.assertEqual(got['bias'].mask.sum(), 8)

  def test_uses_of_another_tree_are_refused(self):
    uses = uses_lib.uses(mlp)(make_params(), jnp.ones((2, 8)))
    for spec in (Sparsity(0.5), Sparsity(kind='n_m', n=2, m=4)):
      with self.assertRaisesRegex(ValueError, 'uses has no entry for w'):
        prune.prune_now({'w': jnp.ones((4, 4))}, [(r'w', spec)], uses)

  def test_what_is_compressed_already_is_ranked_by_its_meaning(self):
    params = {'w': jnp.array([3.0, 1.0, 2.0, 4.0])}
    once = prune.prune_now(params, [(r'w', Sparsity(0.25))])
    twice = prune.prune_now(once, [(r'w', Sparsity(0.5))])
    np.testing.assert_array_equal(
      array.materialize(twice)['w'], [3.0, 0.0, 0.0, 4.0]
    )

  @parameterized.named_parameters(
    ('uncovered', [(r'up', Sparsity(0.5))], 'No rule covers'),
    ('not a spec', [(r'.*', 0.5)], 'a Sparsity or None is expected'),
    ('a typo', kernels(Sparsity(0.5))[:1] + [(r'bais', None)], 'bias'),
    ('ragged', kernels(Sparsity(kind='n_m', n=2, m=5)), '^down: 2:5.*axis -2'),
    ('rank', [(r'.*', Sparsity(0.5, kind='neurons'))], 'integers is int32'),
  )
  def test_errors(self, rules, message):
    params = make_params()
    if 'integers' in message:
      params = {'integers': jnp.ones((2, 2), jnp.int32)}
    with self.assertRaisesRegex(ValueError, message):
      prune.prune_now(params, rules)

  def test_shares_and_rows_need_axes(self):
    params = {'w': jnp.ones((2, 4, 4)), 'v': jnp.ones((4, 4))}
    for options in (dict(allocation='erk'), dict(scope='row')):
      rules = [('.*', Sparsity(0.5, **options))]
      with self.assertRaisesRegex(ValueError, 'Which axes of w.*Pass uses'):
        prune.prune_now(params, rules)
    # Without uses, a kernel and a window are clear.
    params = {
      'conv': jax.random.uniform(jax.random.key(0), (3, 3, 4, 4)),
      'v': jax.random.uniform(jax.random.key(1), (8, 3)),
    }
    got = prune.prune_now(params, [('.*', Sparsity(0.6, allocation='erk'))])
    kept = {p: float(x.mask.mean()) for p, x in got.items()}
    self.assertGreater(kept['v'], kept['conv'])

  def test_given_scores_are_of_the_leaves(self):
    leaves = {'w': jnp.ones((2, 3))}
    for scores in ({'v': jnp.ones((2, 3))}, {'w': jnp.ones((3, 2))}):
      with self.assertRaisesRegex(ValueError, 'a number for each weight'):
        prune.compute(Sparsity(0.5), leaves, scores=scores)

  def test_nan_names_its_leaf(self):
    params = make_params()
    params['down'] = params['down'].at[3, 1].set(jnp.nan)
    with self.assertRaisesRegex(ValueError, '^down: 1 scores are NaN'):
      prune.prune(kernels(Sparsity(0.5))).init(params)

  @parameterized.parameters('unstructured', 'neurons')
  def test_nan_does_not_hide_behind_a_mask(self, kind):
    params = make_params()
    params['down'] = params['down'].at[3, 1].set(jnp.nan)
    comp = prune.prune(kernels(Sparsity(0.5, kind=kind)))
    self.assertTrue(jax.jit(comp.init)(params).masks['down'][3, 1])

  @parameterized.parameters(
    dict(spec=Sparsity(0.9)), dict(spec=Sparsity(kind='n_m', n=1, m=4))
  )
  def test_weights_without_their_zeros_are_pruned_again_as_arrays(self, spec):
    rules = [('.*', spec)]
    w = jax.random.normal(jax.random.key(0), (64, 32))
    once = sparsify.sparsify(prune.prune_now({'w': w}, rules))[0]
    with self.assertRaisesRegex(
      ValueError, r'^w is .* already; .* Prune jc.materialize\(params\)'
    ):
      prune.prune_now(once, rules)
    again = prune.prune_now(lift.materialize(once), rules)['w']
    np.testing.assert_array_equal(again.mask, once['w'].materialize() != 0)

  def test_masks_of_other_parameters_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'no such leaf'):
      prune.apply_masks({'w': jnp.ones(2)}, {'v': jnp.ones(2, bool)})
    with self.assertRaisesRegex(ValueError, r'shape \(2,\)'):
      prune.apply_masks({'w': jnp.ones(2)}, {'w': jnp.ones(3, bool)})
    comp = prune.prune([('w', Sparsity(0.5, end=4))])
    state = comp.init({'w': jnp.arange(3.0)})
    with self.assertRaisesRegex(
      ValueError, r"shape \(3,\) for 'w': shape \(2,"
    ):
      comp.update(state, {'w': jnp.arange(2.0)}, Info(1))


if __name__ == '__main__':
  absltest.main()
