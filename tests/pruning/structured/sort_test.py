"""Sorted channels: the function stays, and its prefixes are the plans."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc


def _mlp(p, x):
  return jax.nn.relu(x @ p['a'] + p['b']) @ p['c']


def _rms(p, x):
  """Scanned layers under norms, and heads of attention of a residual stream."""

  def norm(x, gain):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain

  def layer(x, p):
    y = norm(x, p['gain'])
    q, k, v = (jnp.einsum('td,dhk->thk', y, p[n]) for n in 'qkv')
    y = jnp.einsum(
      'hts,shk->thk', jax.nn.softmax(jnp.einsum('thk,shk->hts', q, k)), v
    )
    x = x + jnp.einsum('thk,hkd->td', y, p['o'])
    return x + jax.nn.silu(x @ p['up']) @ p['down'], None

  return lax.scan(layer, x @ p['stem'], p['layers'])[0] @ p['head']


def _grouped(p, x):
  """Group norm of three groups, by hand."""
  y = (x @ p['a']).reshape(*x.shape[:-1], 3, -1)
  y = (y - y.mean(-1, keepdims=True)) * lax.rsqrt(
    jnp.var(y, -1, keepdims=True) + 1e-5
  )
  return jax.nn.relu(y.reshape(*x.shape[:-1], -1) * p['gain']) @ p['b']


NETWORKS = {
  'mlp': (_mlp, {'a': (3, 8), 'b': (1, 8), 'c': (8, 2)}),
  'group norm': (_grouped, {'a': (3, 12), 'gain': (1, 12), 'b': (12, 2)}),
  'transformer': (
    _rms,
    {
      'stem': (3, 8),
      'layers': {
        'gain': (2, 1, 8),
        **dict.fromkeys('qkv', (2, 8, 4, 6)),
        'o': (2, 4, 6, 8),
        'up': (2, 8, 16),
        'down': (2, 16, 8),
      },
      'head': (8, 5),
    },
  ),
}


def _made(name):
  fun, shapes = NETWORKS[name]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.float32(rng.standard_normal(s) / 2),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  x = jnp.float32(rng.standard_normal((5, 3)))
  found = jc.structure(fun)(params, x)
  return fun, params, x, found, jc.importance(found, params)


class SortTest(parameterized.TestCase):
  @parameterized.parameters(*NETWORKS)
  def test_function_stays(self, name):
    fun, params, x, found, importance = _made(name)
    order = jc.pruning.sort(found, importance)
    moved = [n for n, s in order.sources.items() if (np.diff(s) < 0).any()]
    self.assertGreaterEqual(len(moved), len(order.sources) // 2)
    out = jc.shrink(order, params)
    chex.assert_trees_all_equal_shapes(out, params)
    np.testing.assert_allclose(
      fun(out, x), fun(params, x), rtol=1e-5, atol=1e-5
    )

  @parameterized.parameters(*NETWORKS)
  def test_prefixes_are_plans(self, name):
    fun, params, x, found, importance = _made(name)
    order = jc.pruning.sort(found, importance)
    ordered = jc.shrink(order, params)
    by = [
      (re.escape(n), 'keep' if n in order.sources else None) for n in importance
    ]
    for keep in (0.25, 0.5):
      plan = jc.select(found, importance, keep=keep, by=by)
      short = jc.shrink(plan.leading, ordered)
      sources = {
        n: order.sources[n][..., :size] for n, size in plan.sizes.items()
      }
      in_order = jc.shrink(jc.Plan(found, sources), params)
      chex.assert_trees_all_equal(short, in_order)
      if name == 'mlp':
        np.testing.assert_allclose(
          fun(short, x), fun(jc.shrink(plan, params), x), rtol=1e-5
        )

  def test_drawn(self):
    _, params, _, found, _ = _made('mlp')
    importance = {'a:-1': np.array([1.0, 3, 2, 3, 0, 9, 8, 5])}
    order = jc.pruning.sort(found, importance)
    self.assertEqual(order.sources['a:-1'].tolist(), [5, 6, 7, 1, 3, 2, 0, 4])
    out = jc.shrink(order, params)
    np.testing.assert_array_equal(out['c'][0], params['c'][5])

  def test_layers_keep_their_order(self):
    *_, found, importance = _made('transformer')
    layers = [n for n, g in found.free.items() if g.size == 2]
    self.assertNotEmpty(layers)
    self.assertNotIn(layers[0], jc.pruning.sort(found, importance).sources)

  def test_refused(self):
    *_, found, importance = _made('mlp')
    bad = {'a:-1': importance['a:-1'] * np.nan}
    with self.assertRaisesRegex(ValueError, '8 numbers that are not finite'):
      jc.pruning.sort(found, bad)


if __name__ == '__main__':
  absltest.main()
