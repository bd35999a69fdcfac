import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import in_out
import jax
import jax.numpy as jnp
from networks import made
from networks import NETWORKS
import numpy as np
import optax

import jaxopt_compress as jc
from jaxopt_compress.analysis.plan import plan as plan_lib


def _half(structure, params, x):
  """Keeps a half of every exact group, drawn."""
  rng = np.random.default_rng(0)
  sources = {
    name: np.sort(rng.choice(g.size, max(g.size // 2, 1), replace=False))
    for name, g in structure(params, x).free.items()
    if not g.inexact
  }
  return plan_lib.Plan(structure(params, x), sources)


# What a size of the program says itself: groups of 4 heads; two queries for a key; two
# groups of a convolution.
_FIXED = {
  'fused': 'layers/o:-2',
  'grouped_queries': 'o:-3',
  'shufflenet': 'depthwise:-1',
}


def _grouped_by_size(p, x):
  """`grouped_queries` with as many queries for a key as there are."""
  q, k, v = (jnp.einsum('btd,dhk->bthk', x, p[n]) for n in 'qkv')
  q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
  weights = jax.nn.softmax(jnp.einsum('bqhrd,bkhd->bhrqk', q, k))
  y = jnp.einsum('bhrqk,bkhd->bqhrd', weights, v)
  return jnp.einsum('bqhd,hdm->bqm', y.reshape(*x.shape[:2], -1, 6), p['o'])


OPTIMIZERS = {
  name: functools.partial(getattr(optax, name), 0.1)
  for name in (
    'adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad'
    ' fromage lamb lars lbfgs lion nadam nadamw novograd'
    ' optimistic_gradient_descent radam rmsprop rprop sign_sgd sm3 yogi'
  ).split()
} | {
  'noisy_sgd': lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
  'momentum': lambda: optax.sgd(0.1, momentum=0.9),
  'MultiSteps': lambda: optax.MultiSteps(optax.adam(0.1), 2),
  'apply_if_finite': lambda: optax.apply_if_finite(optax.adam(0.1), 3),
  'inject_hyperparams': lambda: optax.inject_hyperparams(optax.adam)(0.1),
  'masked': lambda: optax.masked(optax.adam(0.1), {'a': 1, 'b': 0, 'c': 1}),
  'ema': lambda: optax.chain(optax.ema(0.9), optax.clip_by_global_norm(1.0)),
  'lookahead': lambda: optax.lookahead(optax.adam(0.1), 5, 0.5),
  'muon': lambda: optax.contrib.muon(0.1),
  'prodigy': lambda: optax.contrib.prodigy(0.1),
  'schedule_free': lambda: optax.contrib.schedule_free_adamw(0.1),
}


class PlanTest(parameterized.TestCase):
  @parameterized.parameters(*NETWORKS)
  def test_masked_is_shrunk(self, name):
    fun, params, x = made(name)
    plan = _half(jc.structure(fun), params, x)
    sources = {g: s for g, s in plan.sources.items() if g != _FIXED.get(name)}
    plan = plan_lib.Plan(plan.structure, sources)
    run = jax.jit(jax.value_and_grad(lambda p: (fun(p, x) ** 2).sum()))
    (y, grads), (y_small, grads_small) = map(
      run, (plan.mask(params), plan.apply(params))
    )
    self.assertNotAlmostEqual(float(y), float(run(params)[0]), places=3)
    np.testing.assert_allclose(y, y_small, rtol=1e-5)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    chex.assert_trees_all_close(
      plan.apply(grads), grads_small, rtol=1e-4, atol=1e-5 * scale
    )

  @parameterized.parameters(
    ('grouped_queries', 'o:-3'),
    ('grouped_queries', 'k:-1'),
    ('fused', 'layers/down:-2'),
    ('fused', 'layers/qkv:-1 layers/o:-2.1'),
    ('experts', 'down:-2'),
  )
  def test_masked_is_shrunk_within(self, name, groups):
    # Each channel of what the group lies within keeps channels of its own.
    fun, params, x = made(name)
    found = jc.structure(fun)(params, x)
    group, *others = groups.split()
    rows = [found.groups[g].size for g in found.groups[group].within]
    self.assertNotEmpty(rows)
    rng, n = np.random.default_rng(0), found.groups[group].size
    drawn = rng.permuted(np.broadcast_to(np.arange(n), (*rows, n)), axis=-1)
    sources = dict.fromkeys([group, *others], np.sort(drawn[..., : n // 2]))
    plan = plan_lib.Plan(found, sources)
    self.assertIs(type(plan.sizes[group]), int)
    if name == 'grouped_queries':
      # The program has two queries for each key: it repeats one for the other.
      if group == 'o:-3':
        fun = _grouped_by_size
      else:
        plan = plan_lib.Plan(found, sources | {'k:-2': [0, 3], 'o:-3': [1, 0]})
    loss = jax.value_and_grad(lambda p: (fun(p, x) ** 2).sum())
    small = plan.apply(params)
    (y, grads), (y_small, grads_small) = loss(plan.mask(params)), loss(small)
    np.testing.assert_allclose(y, y_small, rtol=1e-5)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    chex.assert_trees_all_close(
      plan.apply(grads), grads_small, rtol=1e-4, atol=1e-5 * scale
    )
    again = plan_lib.Plan.from_json(plan.to_json())
    chex.assert_trees_all_equal(again.apply(params), small)

  def test_groups_of_a_convolution_keep_their_own(self):
    def fun(p, x):  # as in RegNet: groups are as many as the kernel leaves
      kernel = p['kernel'][None]
      h = jax.lax.conv_general_dilated(
        jnp.tanh(x @ p['a']),
        kernel,
        (1,),
        'SAME',
        dimension_numbers=('NWC', 'WIO', 'NWC'),
        feature_group_count=p['a'].shape[1] // kernel.shape[1],
      )
      return h @ p['c']

    shapes = {'a': (3, 6), 'kernel': (2, 6), 'c': (6, 4)}
    params = {
      n: jax.random.normal(jax.random.key(0), shape)
      for n, shape in shapes.items()
    }
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    found = jc.structure(fun)(params, x)
    own = [[0], [1], [0]]
    plan = plan_lib.Plan(found, {'a:-1.1': own, 'c:-2': own})
    small = plan.apply(params)
    self.assertEqual(small['kernel'].shape, (1, 3))
    np.testing.assert_allclose(
      fun(plan.mask(params), x), fun(small, x), rtol=1e-5, atol=1e-6
    )

  def test_within_drawn(self):
    #            two keys with three queries each; the first loses 1, the other 0
    fun = lambda p, x: jnp.einsum('kar,kr->k', p['q'], p['o']) @ p['k'] * x
    params = {
      'q': jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])[:, None],
      'o': jnp.ones((2, 3)),
      'k': jnp.ones((2, 2)),
    }
    found = jc.structure(fun)(params, jnp.ones(()))
    (group,) = (g for g in found.groups.values() if g.within)
    plan = plan_lib.Plan(found, {group.name: [[0, 2], [1, 2]]})
    self.assertEqual(plan.apply(params)['q'][:, 0].tolist(), [[1, 3], [5, 6]])
    self.assertEqual(
      plan.mask(params)['q'][:, 0].tolist(), [[1, 0, 3], [0, 5, 6]]
    )
    one = plan_lib.Plan(found, {group.name: [[0, 2], [1, 2]], 'k:-2': [1]})
    self.assertEqual(one.apply(params)['q'][:, 0].tolist(), [[5, 6]])
    for sources, why in (
      ([[0]] * 3, '3 rows for k:-2, which has 2'),
      ([[[0]]], 'lists of one size for each channel of k:-2'),
    ):
      with self.assertRaisesRegex(ValueError, why):
        plan_lib.Plan(found, {group.name: sources})

  def test_drawn(self):
    #                 a -> b -> c: channel 1 of three goes
    fun, params = (
      lambda p, x: x @ p['a'] @ p['b'],
      {
        'a': jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        'b': jnp.array([[1.0], [2.0], [3.0]]),
      },
    )
    found = jc.structure(fun)(params, jnp.ones((1, 2)))
    plan = plan_lib.Plan(found, {'a:-1': [0, 2]})
    self.assertEqual(plan.shapes, {'a': (2, 2), 'b': (2, 1)})
    small = jax.tree.map(
      np.ndarray.tolist, jax.tree.map(np.asarray, plan.apply(params))
    )
    self.assertEqual(small, {'a': [[1, 3], [4, 6]], 'b': [[1], [3]]})
    masked = plan.mask(params)
    self.assertEqual(masked['a'].tolist(), [[1, 0, 3], [4, 0, 6]])
    self.assertEqual(masked['b'].tolist(), [[1], [0], [3]])
    wide = plan_lib.Plan(found, {'a:-1': [0, 1, 1, 2]}).apply(params)
    self.assertEqual(wide['a'].tolist(), [[1, 2, 2, 3], [4, 5, 5, 6]])
    again = plan_lib.Plan.from_json(plan.to_json())
    self.assertEqual(again.structure, plan.structure)
    self.assertEqual(again.shapes, plan.shapes)

  def test_says_what_is_not_exact(self):
    fun = lambda p, x: (x @ p['a'] - (x @ p['a']).mean(-1)[:, None]) @ p['b']
    params = {'a': jnp.ones((3, 8)), 'b': jnp.ones((8, 2))}
    found = jc.structure(fun)(params, jnp.ones((2, 3)))
    said = [str(plan_lib.Plan(found, {'a:-1': np.arange(n)})) for n in (4, 8)]
    self.assertRegex(said[0], r'8 -> +4  a:-1\n +not exact: .*plan_test.py:')
    self.assertNotIn('not exact', said[1])

  def test_each_layer_keeps_another(self):
    fun = lambda p, x: jax.lax.scan(
      lambda x, p: (x + jax.nn.relu(x @ p['a']) @ p['b'], None), x, p
    )[0]
    params = {'a': jnp.arange(18.0).reshape(3, 2, 3), 'b': jnp.ones((3, 3, 2))}
    found = jc.structure(fun)(params, jnp.ones((1, 2)))
    #  layer i keeps channel i alone
    plan = plan_lib.Plan(found, {'a:-1': [[0], [1], [2]]})
    small = jc.shrink(plan, params)
    self.assertEqual(
      small['a'].tolist(), [[[0], [3]], [[7], [10]], [[14], [17]]]
    )

  @parameterized.parameters(*OPTIMIZERS)
  def test_state_of_optimizers(self, name):
    fun, params, x = made('mlp')
    optimizer = OPTIMIZERS[name]()
    plan = plan_lib.Plan(jc.structure(fun)(params, x), {'a:-1': [1, 4, 6]})
    small = plan.apply(params)
    state = optimizer.init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      plan.apply(state), optimizer.init(small)
    )

  def test_training_goes_on(self):
    fun, params, x = made('mlp')
    optimizer = optax.adam(0.01)
    plan = plan_lib.Plan(jc.structure(fun)(params, x), {'a:-1': [1, 4, 6]})

    @jax.jit
    def step(params, state, _):
      grads = jax.grad(lambda p: (fun(p, x) ** 2).sum())(params)
      updates, state = optimizer.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    masked = plan.mask(params)
    state = optimizer.init(masked)
    for i in range(3):
      masked, state = step(masked, state, i)
      masked = plan.mask(masked)
    small, small_state = jc.shrink(plan, (masked, state))
    for i in range(10):
      masked, state = step(masked, plan.mask(state), i)
      masked = plan.mask(masked)
      small, small_state = step(small, small_state, i)
    chex.assert_trees_all_close(plan.apply(masked), small, rtol=1e-5, atol=1e-6)

  def test_collections(self):
    """Of parameters beside statistics, as Linen has them, and of either alone."""
    fun = lambda v, x: (
      jax.nn.relu(x @ v['params']['d']['w'] - v['stats']['d']['mean'])
      @ v['params']['e']['w']
    )
    variables = {
      'params': {'d': {'w': jnp.ones((3, 8))}, 'e': {'w': jnp.ones((8, 2))}},
      'stats': {'d': {'mean': jnp.ones((1, 8))}},
    }
    plan = plan_lib.Plan(
      jc.structure(fun)(variables, jnp.ones((2, 3))),
      {'params/d/w:-1': [1, 4, 6]},
    )
    small = jc.shrink(plan, variables)
    state = optax.adam(0.1).init(variables['params'])
    chex.assert_trees_all_equal_shapes(
      jc.shrink(plan, state), optax.adam(0.1).init(small['params'])
    )
    chex.assert_trees_all_equal(
      jc.shrink(plan, variables['params']), small['params']
    )
    with self.assertRaisesRegex(ValueError, 'holds all 48 parameters'):
      jc.shrink(plan, optax.flatten(optax.adam(0.1)).init(variables))

  def test_state_without_axes_of_parameters(self):
    fun, params, x = made('mlp')
    plan = plan_lib.Plan(jc.structure(fun)(params, x), {'a:-1': [1, 4, 6]})
    state = optax.sgd(0.1).init(params)
    self.assertEqual(plan.apply(state), state)
    # What is left of a is square: which axis a vector is of would not be known.
    optimizer = optax.adafactor(0.1, min_dim_size_to_factor=2)
    with self.assertRaisesRegex(ValueError, 'v_row/a.*is not known'):
      plan.apply(optimizer.init(params))

  def test_factored_state(self):
    fun, params, x = made('mlp')
    plan = plan_lib.Plan(jc.structure(fun)(params, x), {'a:-1': [1, 4, 6, 7]})
    optimizer = optax.adafactor(0.1, min_dim_size_to_factor=2)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      plan.apply(optimizer.init(params)), optimizer.init(plan.apply(params))
    )

  def test_sharding_is_kept(self):
    fun, params, x = made('mlp')
    mesh = jax.make_mesh((2,), ('model',), devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec(None, 'model')
    sharding = jax.sharding.NamedSharding(mesh, spec)
    params['a'] = jax.device_put(params['a'], sharding)
    found = jc.structure(fun)(params, x)
    small = plan_lib.Plan(found, {'a:-1': [0, 1, 2, 5]}).apply(params)
    self.assertEqual(small['a'].sharding, sharding)
    with self.assertRaisesRegex(ValueError, 'multiples of the number of dev'):
      plan_lib.Plan(found, {'a:-1': [0, 1, 2]}).apply(params)

  @parameterized.parameters(
    ({'a:-2': [0]}, 'a:-2 has to stay as it is: the size of an input'),
    ({'a:-3': [0]}, "'a:-3'"),
    ({'a:-1': []}, 'one at least'),
    ({'a:-1': [0.5]}, 'not integers'),
    ({'a:-1': [0, 8]}, 'channels 0 to 7'),
  )
  def test_refused(self, sources, message):
    fun, params, x = made('mlp')
    with self.assertRaisesRegex(ValueError, message):
      plan_lib.Plan(jc.structure(fun)(params, x), sources)

  def test_growing_is_no_shrinking(self):
    """Copies alone would be read twice."""
    fun, params, x = made('mlp')
    plan = plan_lib.Plan(jc.structure(fun)(params, x), {'a:-1': [*range(8), 0]})
    self.assertEqual(plan.apply(params)['a'].shape, (3, 9))
    with self.assertRaisesRegex(ValueError, r'8 channels.* 9: .*jc.grow\('):
      jc.shrink(plan, params)

  def test_trees_that_are_refused(self):
    fun, params, x = made('mlp')
    plan = plan_lib.Plan(jc.structure(fun)(params, x), {'a:-1': [1, 4]})
    q = jc.quantize(params, [('a', jc.W8A8), ('.*', None)], uses=in_out.IN_OUT)
    for tree, message in (
      (dict(params, a=jnp.ones((3, 9))), r'a has shape \(3, 9\), not \(3, 8\)'),
      ({'other': jnp.ones(3)}, "No leaf of the tree.*'a'"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        plan.apply(tree)
    with self.assertRaisesRegex(ValueError, 'a is int8.*mask what it was made'):
      plan.mask(q)


if __name__ == '__main__':
  absltest.main()
