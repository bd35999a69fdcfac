"""Warm starts: what comes from where, by numbers the eye can check."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.distillation import grow


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
    got = grow.warm_start(target, source)
    jax.tree.map(np.testing.assert_array_equal, got, source)

  def test_large_to_small_leads_consistently(self):
    # y = relu(x up) down, with hidden units 0, 1 kept.
    up, down = jnp.arange(12.0).reshape(3, 4), jnp.arange(8.0).reshape(4, 2)
    target = {'down': jnp.zeros((2, 2)), 'up': jnp.zeros((3, 2))}
    got = grow.warm_start(target, {'down': down, 'up': up})
    np.testing.assert_array_equal(got['up'], up[:, :2])
    np.testing.assert_array_equal(got['down'], down[:2])

  def test_keep_says_which(self):
    up, down = jnp.arange(12.0).reshape(3, 4), jnp.arange(8.0).reshape(4, 2)
    target = {'down': jnp.zeros((2, 2)), 'up': jnp.zeros((3, 2))}
    best = np.array([3, 1])
    keep = [(r'up', {-1: best}), (r'down', {-2: best}), (r'.*', None)]
    got = grow.warm_start(target, {'down': down, 'up': up}, keep=keep)
    np.testing.assert_array_equal(got['up'], up[:, best])
    np.testing.assert_array_equal(got['down'], down[best])

  @parameterized.parameters(
    ('target', [[1, 2, 9], [3, 4, 9], [9, 9, 9]]),
    ('zeros', [[1, 2, 0], [3, 4, 0], [0, 0, 0]]),
  )
  def test_small_to_large_fills_the_rest(self, fill, expected):
    target = {'w': jnp.full((3, 3), 9.0)}
    source = {'w': jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    got = grow.warm_start(target, source, fill=fill)
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
    got = grow.warm_start(large, small, fill='zeros')
    np.testing.assert_allclose(f(got), f(small), rtol=1e-5, atol=1e-6)

  def test_one_axis_larger_and_one_smaller(self):
    source = {'w': jnp.arange(8.0).reshape(2, 4)}
    got = grow.warm_start({'w': jnp.full((3, 2), 9.0)}, source)
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
    got = grow.warm_start(network([-1] * n), source, layers=layers)
    self.assertEqual(values(got), expected)
    stack = lambda tree: {
      'w': jnp.stack([b['kernel'] for b in tree['blocks'].values()])
    }
    got = grow.warm_start(
      stack(network([-1] * n)),
      stack(source),
      layers=layers,
      rules=[(r'w', 'stacked')],
    )
    self.assertEqual(got['w'][:, 0, 0].tolist(), expected)
    self.assertEqual(got['w'][:, 1, 1].tolist(), expected)

  def test_depth_and_width_at_once(self):
    got = grow.warm_start(network([-1] * 3, 3), network([1, 2], 2))
    self.assertEqual(values(got), [1, 1, 2])
    np.testing.assert_array_equal(
      got['blocks']['2']['kernel'], [[2, 2, -1], [2, 2, -1], [-1, -1, -1]]
    )

  def test_lists_at_the_top_and_in_each_other(self):
    source = [[jnp.float32(10 * i + j) for j in range(4)] for i in range(3)]
    target = [[jnp.float32(-1)] * 2 for _ in range(2)]
    got = grow.warm_start(target, source, layers='last')
    self.assertEqual(jax.tree.map(float, got), [[12.0, 13.0], [22.0, 23.0]])

  def test_dtypes_are_the_targets(self):
    target = {'w': jnp.zeros((1, 1), jnp.bfloat16)}
    got = grow.warm_start(target, {'w': jnp.ones((2, 2))})
    self.assertEqual(got['w'].dtype, jnp.bfloat16)

  def test_rules_excuse(self):
    target = {'head': jnp.zeros(3), 'w': jnp.zeros(2)}
    source = {'old': jnp.ones(1), 'w': jnp.ones(2)}
    with self.assertRaisesRegex(
      ValueError, r"target has \['head'\].*\['old'\]"
    ):
      grow.warm_start(target, source)
    rules = [(r'head|old', None), (r'.*', 'copy')]
    got = grow.warm_start(target, source, rules=rules)
    self.assertEqual(got['head'].tolist(), [0, 0, 0])
    self.assertEqual(got['w'].tolist(), [1, 1])

  def test_a_leaf_that_one_layer_lacks(self):
    source = network([1, 2, 3])
    source['blocks']['2']['extra'] = jnp.ones(1)
    # Layer 2 starts a target layer, so its extra leaf has nowhere to go.
    with self.assertRaisesRegex(ValueError, 'blocks/2/extra'):
      grow.warm_start(network([0, 0]), source)
    # It is skipped with its layer.
    got = grow.warm_start(network([0, 0]), source, layers='first')
    self.assertEqual(values(got), [1, 2])
    # Lists of one length skip nothing.
    with self.assertRaisesRegex(ValueError, 'blocks/2/extra'):
      grow.warm_start(network([0, 0, 0]), source)

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
      grow.warm_start({'w': jnp.ones((2, 2))}, {'w': source}, **kwargs)

  def test_works_under_jit_and_on_compressed_sources(self):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True, eq=False)
    class Negated(array.CompressedArray):
      x: jax.Array

      shape = property(lambda self: self.x.shape)
      dtype = property(lambda self: self.x.dtype)

      def materialize(self):
        return -self.x

    f = jax.jit(grow.warm_start)
    got = f({'w': jnp.zeros(1)}, {'w': Negated(jnp.ones(2))})
    self.assertEqual(got['w'].tolist(), [-1])


if __name__ == '__main__':
  absltest.main()
