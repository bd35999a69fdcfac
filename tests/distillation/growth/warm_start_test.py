"""Warm starts: what comes from where, by numbers the eye can check."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import array
from jaxopt_compress.distillation.growth import warm_start


def block(value, width=2):
  return {'kernel': jnp.full((width, width), value, jnp.float32)}


def network(values, width=2):
  return {'blocks': {str(i): block(v, width) for i, v in enumerate(values)}}


def values(tree):
  blocks = tree['blocks']
  return [float(blocks[str(i)]['kernel'][0, 0]) for i in range(len(blocks))]


class WarmStartTest(parameterized.TestCase):
  def test_same_size_is_a_copy(self):
    source = {'w': jnp.arange(6.0).reshape(2, 3), 'n': jnp.int32(3)}
    target = jax.tree.map(jnp.zeros_like, source)
    got = warm_start.warm_start(target, source)
    jax.tree.map(np.testing.assert_array_equal, got, source)

  def test_large_to_small_leads_consistently(self):
    # y = relu(x up) down, with hidden units 0, 1 kept.
    up, down = jnp.arange(12.0).reshape(3, 4), jnp.arange(8.0).reshape(4, 2)
    target = {'down': jnp.zeros((2, 2)), 'up': jnp.zeros((3, 2))}
    got = warm_start.warm_start(target, {'down': down, 'up': up})
    np.testing.assert_array_equal(got['up'], up[:, :2])
    np.testing.assert_array_equal(got['down'], down[:2])

  def test_keep_says_which(self):
    up, down = jnp.arange(12.0).reshape(3, 4), jnp.arange(8.0).reshape(4, 2)
    target = {'down': jnp.zeros((2, 2)), 'up': jnp.zeros((3, 2))}
    best = np.array([3, 1])
    keep = [(r'up', {-1: best}), (r'down', {-2: best}), (r'.*', None)]
    got = warm_start.warm_start(target, {'down': down, 'up': up}, keep=keep)
    np.testing.assert_array_equal(got['up'], up[:, best])
    np.testing.assert_array_equal(got['down'], down[best])

  @parameterized.parameters(
    ('target', [[1, 2, 9], [3, 4, 9], [9, 9, 9]]),
    ('zeros', [[1, 2, 0], [3, 4, 0], [0, 0, 0]]),
  )
  def test_small_to_large_fills_the_rest(self, fill, expected):
    target = {'w': jnp.full((3, 3), 9.0)}
    source = {'w': jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    got = warm_start.warm_start(target, source, fill=fill)
    np.testing.assert_array_equal(got['w'], expected)

  def test_zeros_keep_the_function(self):
    x = jax.random.normal(jax.random.key(0), (5, 3))
    f = lambda p: jnp.tanh(x @ p['up']) @ p['down']
    k = jax.random.split(jax.random.key(1), 4)
    small = {
      'down': jax.random.normal(k[0], (4, 2)),
      'up': jax.random.normal(k[1], (3, 4)),
    }
    large = {
      'down': jax.random.normal(k[2], (8, 2)),
      'up': jax.random.normal(k[3], (3, 8)),
    }
    got = warm_start.warm_start(large, small, fill='zeros')
    np.testing.assert_allclose(f(got), f(small), rtol=1e-5, atol=1e-6)

  @parameterized.parameters((2, 4), (4, 2))
  def test_channels_of_a_flattened_image(self, before, after):
    # A convolution of one row, flattened to [positions * channels], and a layer.
    def f(p, x):
      y = jax.nn.relu(x[..., None] * p['conv']['kernel'])
      return y.reshape(1, -1) @ p['head']['kernel']

    def network(channels, value=0.0):
      head = jnp.arange(3.0 * channels).reshape(-1, 1) + value
      return {
        'conv': {'kernel': jnp.arange(1.0, channels + 1).reshape(1, 1, -1)},
        'head': {'kernel': head},
      }

    x = jnp.array([[1.0, 2.0, 3.0]])
    source, target = network(before), network(after, 100.0)
    with self.assertRaisesRegex(
      ValueError,
      rf'^head/kernel: axis -2 goes .* 3 times .* {before} to {after}',
    ):
      warm_start.warm_start(target, source, fill='zeros')
    blocks = [(r'head/kernel', {-2: 3}), (r'.*', None)]
    got = warm_start.warm_start(target, source, fill='zeros', blocks=blocks)
    if after > before:
      self.assertEqual(f(got, x).tolist(), f(source, x).tolist())
    head = source['head']['kernel'].reshape(3, before)
    head = jnp.pad(head, ((0, 0), (0, max(after - before, 0))))[:, :after]
    self.assertEqual(
      got['head']['kernel'].ravel().tolist(), head.ravel().tolist()
    )

  def test_keep_counts_within_a_block(self):
    source = {'w': jnp.arange(12.0).reshape(1, 12, 1)}
    got = warm_start.warm_start(
      {'w': jnp.zeros((1, 6, 1))},
      source,
      keep=[(r'w', {-2: [3, 1]})],
      blocks=[(r'w', {-2: 3})],
    )
    self.assertEqual(got['w'].ravel().tolist(), [3, 1, 7, 5, 11, 9])
    with self.assertRaisesRegex(
      ValueError, 'axis -2 of 6 is not .* of 4 blocks'
    ):
      warm_start.warm_start(
        {'w': jnp.zeros((1, 6, 1))}, source, blocks=[(r'w', {-2: 4})]
      )

  @parameterized.named_parameters(
    ('queries, keys and values at once', {'qkv': (1, 3), 'o': (1, 1)}, 'qkv'),
    ('heads of another size', {'q': (1, 2), 'norm': (1,), 'w': (1, 1)}, 'q'),
    ('a wide hidden layer', {'up': (1, 4), 'down': (4, 1)}, None),
    ('rows that are stored first', {'up': (4, 1), 'down': (1, 4)}, None),
  )
  def test_which_axes_seem_to_be_of_blocks(self, widths, refused):
    trees = [
      {k: jnp.zeros([n * width for width in v]) for k, v in widths.items()}
      for n in (8, 4)
    ]
    if refused is None:
      warm_start.warm_start(*trees)
      return
    with self.assertRaisesRegex(ValueError, f'^{refused}: axis -1 .*blocks='):
      warm_start.warm_start(*trees)
    warm_start.warm_start(*trees, blocks=[(refused, {-1: 1}), (r'.*', None)])

  def test_one_axis_larger_and_one_smaller(self):
    source = {'w': jnp.arange(8.0).reshape(2, 4)}
    got = warm_start.warm_start({'w': jnp.full((3, 2), 9.0)}, source)
    np.testing.assert_array_equal(got['w'], [[0, 1], [4, 5], [9, 9]])

  @parameterized.parameters(
    # source layers 1, 2, ...; target layers are -1 at first
    (2, 4, 'uniform', [1, 4]),
    (2, 4, 'first', [1, 2]),
    (2, 4, 'last', [3, 4]),
    (4, 2, 'uniform', [1, 1, 2, 2]),
    (4, 2, 'first', [1, 2, -1, -1]),
    (4, 2, 'last', [-1, -1, 1, 2]),
  )
  def test_depth_in_lists_and_in_stacks(self, n, m, layers, expected):
    source = network(range(1, m + 1))
    got = warm_start.warm_start(network([-1] * n), source, layers=layers)
    self.assertEqual(values(got), expected)
    stack = lambda tree: {
      'w': jnp.stack([b['kernel'] for b in tree['blocks'].values()])
    }
    got = warm_start.warm_start(
      stack(network([-1] * n)),
      stack(source),
      layers=layers,
      rules=[(r'w', 'stacked')],
    )
    self.assertEqual(got['w'][:, 0, 0].tolist(), expected)
    self.assertEqual(got['w'][:, 1, 1].tolist(), expected)

  def test_layers_by_rule(self):
    source = {
      'a': network([1, 2, 3, 4])['blocks'],
      'b': network([5, 6, 7])['blocks'],
      's': {'w': jnp.arange(4.0)[:, None] * jnp.ones((4, 2))},
    }
    target = {
      'a': network([0, 0])['blocks'],
      'b': network([0, 0])['blocks'],
      's': {'w': jnp.zeros((3, 2))},
    }
    got = warm_start.warm_start(
      target,
      source,
      rules=[('s/.*', 'stacked'), ('.*', 'copy')],
      layers=[('a', [2, 0]), ('s/w', [3, None, 1]), ('.*', 'last')],
    )
    self.assertEqual(values({'blocks': got['a']}), [3, 1])
    self.assertEqual(values({'blocks': got['b']}), [6, 7])
    self.assertEqual(got['s']['w'][:, 0].tolist(), [3, 0, 1])

  @parameterized.named_parameters(
    ('number', [('blocks', [0, 1, 2])], 'for each of 2 layers one of 0 to 2'),
    ('beyond', [('blocks', [0, 3])], 'one of 0 to 2'),
    ('word', [('blocks', 'lst')], "'last'"),
    (
      'unused',
      [('block', 'last'), ('.*', 'first')],
      r"rules \['block'\] match",
    ),
    ('uncovered', [('block', 'last')], 'No rule of layers covers blocks'),
  )
  def test_layers_by_rule_refused(self, layers, message):
    with self.assertRaisesRegex(ValueError, message):
      warm_start.warm_start(network([0, 0]), network([1, 2, 3]), layers=layers)

  def test_query_heads_of_fewer_queries_for_each_key_head(self):
    # Heads 0 and 1 read key head 0, heads 2 and 3 read key head 1; of each stays one.
    q, out = {'q': jnp.arange(8.0)[None]}, {'q': jnp.zeros((1, 4))}
    got = warm_start.warm_start(out, q, blocks=[('q', {-1: 2})])
    self.assertEqual(got['q'].tolist(), [[0, 1, 4, 5]])

  def test_weight_subcloning(self):
    """The recipe of the first page: with RMS norms it is the masked network."""

    def apply(params, x):
      for p in params['blocks']:
        y = x * p['gain'] / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        x = x + jnp.tanh(y @ p['up']) @ p['down']
      return x @ params['head']

    rng = np.random.default_rng(0)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    block = lambda: {
      'down': drawn(6, 8), 'gain': drawn(1, 8), 'up': drawn(8, 6)
    }  # fmt: skip
    params = {'blocks': [block(), block()], 'head': drawn(8, 3)}
    params['stem'] = drawn(5, 8)
    fun = lambda p, x: apply(p, x @ p['stem'])
    x = drawn(4, 5)
    structure = jc.structure(fun)(params, x)
    worth = jc.pruning.activations(structure, fun, params, [x])
    plan = jc.select(structure, worth, keep=0.5, by=[('.*', 'keep')])
    small = jc.analysis.fold_sizes(fun, plan)(jc.shrink(plan, params), x)[0]
    self.assertEqual(small['stem'].shape, (5, 4))
    np.testing.assert_allclose(
      fun(small, x), fun(plan.mask(params), x), rtol=1e-4, atol=1e-4
    )

  def test_depth_and_width_at_once(self):
    got = warm_start.warm_start(network([-1] * 3, 3), network([1, 2], 2))
    self.assertEqual(values(got), [1, 1, 2])
    np.testing.assert_array_equal(
      got['blocks']['2']['kernel'], [[2, 2, -1], [2, 2, -1], [-1, -1, -1]]
    )

  def test_lists_at_the_top_and_in_each_other(self):
    source = [[jnp.float32(10 * i + j) for j in range(4)] for i in range(3)]
    target = [[jnp.float32(-1)] * 2 for _ in range(2)]
    got = warm_start.warm_start(target, source, layers='last')
    self.assertEqual(jax.tree.map(float, got), [[12.0, 13.0], [22.0, 23.0]])

  def test_dtypes_are_the_targets(self):
    target = {'w': jnp.zeros((1, 1), jnp.bfloat16)}
    got = warm_start.warm_start(target, {'w': jnp.ones((2, 2))})
    self.assertEqual(got['w'].dtype, jnp.bfloat16)

  def test_rules_excuse(self):
    target = {'head': jnp.zeros(3), 'w': jnp.zeros(2)}
    source = {'old': jnp.ones(1), 'w': jnp.ones(2)}
    with self.assertRaisesRegex(
      ValueError, r"target has \['head'\].*\['old'\]"
    ):
      warm_start.warm_start(target, source)
    rules = [(r'head|old', None), (r'.*', 'copy')]
    got = warm_start.warm_start(target, source, rules=rules)
    self.assertEqual(got['head'].tolist(), [0, 0, 0])
    self.assertEqual(got['w'].tolist(), [1, 1])

  def test_a_leaf_that_one_layer_lacks(self):
    source = network([1, 2, 3])
    source['blocks']['2']['extra'] = jnp.ones(1)
    # Layer 2 starts a target layer, so its extra leaf has nowhere to go.
    with self.assertRaisesRegex(ValueError, 'blocks/2/extra'):
      warm_start.warm_start(network([0, 0]), source)
    # It is skipped with its layer.
    got = warm_start.warm_start(network([0, 0]), source, layers='first')
    self.assertEqual(values(got), [1, 2])
    # Lists of one length skip nothing.
    with self.assertRaisesRegex(ValueError, 'blocks/2/extra'):
      warm_start.warm_start(network([0, 0, 0]), source)

  @parameterized.named_parameters(
    ('rank', dict(), jnp.ones(4), r'w from w: rank 1'),
    ('layers', dict(layers='middle'), None, "layers='middle'"),
    ('fill', dict(fill='ones'), None, "fill='ones'"),
    ('how', dict(rules=[(r'.*', 'slice')]), None, "how='slice'"),
    ('few', dict(keep=[(r'w', {-1: [0]})]), None, '2 different indices'),
    ('twice', dict(keep=[(r'w', {-1: [1, 1]})]), None, '2 different'),
    ('beyond', dict(keep=[(r'w', {-1: [0, 4]})]), None, 'below 4'),
    ('unused', dict(keep=[(r'v', {-1: [0, 1]})]), None, 'No rule covers'),
  )
  def test_errors(self, kwargs, source, message):
    source = jnp.ones((4, 4)) if source is None else source
    with self.assertRaisesRegex(ValueError, message):
      warm_start.warm_start({'w': jnp.ones((2, 2))}, {'w': source}, **kwargs)

  @parameterized.parameters((1, True), (0, False))
  def test_numbers_that_do_not_start_at_0(self, first, told):
    w = jnp.ones(2)
    target, source = (
      {str(i + first): {'w': w} for i in range(n)} for n in (2, 3)
    )
    source['bias'] = w
    with self.assertRaises(ValueError) as caught:
      warm_start.warm_start(target, source)
    says = '3/w has, are layers only if they start at 0'
    self.assertEqual(says in str(caught.exception), told)

  def test_works_under_jit_and_on_compressed_sources(self):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True, eq=False)
    class Negated(array.CompressedArray):
      x: jax.Array

      shape = property(lambda self: self.x.shape)
      dtype = property(lambda self: self.x.dtype)

      def materialize(self):
        return -self.x

    f = jax.jit(warm_start.warm_start)
    got = f({'w': jnp.zeros(1)}, {'w': Negated(jnp.ones(2))})
    self.assertEqual(got['w'].tolist(), [-1])


if __name__ == '__main__':
  absltest.main()
