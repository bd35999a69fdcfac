"""What passes through each operation: freedoms counted by hand, and used."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import rules

_RNG = np.random.default_rng(0)


def _w(*shape):
  return jnp.asarray(_RNG.normal(size=shape), jnp.float32)


def _conv(x, w, groups=1, stride=1):
  return lax.conv_general_dilated(
    x,
    w,
    (stride, stride),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def _attention(p, x):
  q, k, v = (jnp.einsum('bti,ihd->bthd', x, p[n]) for n in 'qkv')
  a = jax.nn.softmax(jnp.einsum('bthd,bshd->bhts', q, k))
  return jnp.einsum(
    'bthd,hdo->bto', jnp.einsum('bhts,bshd->bthd', a, v), p['o']
  )


def _scanned(p, x):
  def layer(h, w):
    return h + jax.nn.relu(h @ w['a'] + w['c']) @ w['b'], None

  return lax.scan(jax.checkpoint(layer), x, p, reverse=True)[0]


def _branches(p, x):
  h = x @ p['a']
  h = lax.cond(x[0, 0] > 0, jax.nn.relu, lambda h: 2 * h, h)
  return h @ p['b']


def _pooled(p, x):
  h = jax.nn.relu(_conv(x, p['a']))
  h = nnx.max_pool(h, (2, 2), strides=(2, 2))
  h = nnx.avg_pool(h, (2, 2), strides=(1, 1))
  return h.mean((1, 2)) @ p['b']


def _joined(p, x):
  a, b = jax.nn.relu(x @ p['a']), jax.nn.leaky_relu(x @ p['b'])
  return jnp.concatenate([a, b], -1) @ p['c']


def _norm(p, x):
  h = x @ p['a']
  h = (h - p['mean']) / jnp.sqrt(p['var'] + 1e-3) * p['gain'] + p['bias']
  return jax.nn.relu(h) @ p['b']


_IMAGE = (2, 8, 8, 4)

# A model, shapes of its parameters, the shape of its input, and how many freedoms it
# has: counted by hand.
CASES = {
  'relu': (
    lambda p, x: jax.nn.relu(x @ p['a'] + p['c']) @ p['b'],
    dict(a=(4, 6), c=(1, 6), b=(6, 3)),
    (5, 4),
    6,
  ),
  'gelu': (
    lambda p, x: jax.nn.gelu(x @ p['a']) @ p['b'],
    dict(a=(4, 6), b=(6, 3)),
    (5, 4),
    0,
  ),
  'relu6': (
    lambda p, x: jax.nn.relu6(x @ p['a']) @ p['b'],
    dict(a=(4, 6), b=(6, 3)),
    (5, 4),
    0,
  ),
  'the other side, transposed': (
    lambda p, x: p['b'].T @ jnp.maximum(p['a'] @ x.T, 0),
    dict(a=(6, 4), b=(6, 3)),
    (5, 4),
    6,
  ),
  'one weight twice': (
    lambda p, x: jax.nn.relu(jax.nn.relu(x @ p['a']) @ p['a']) @ p['b'],
    dict(a=(4, 4), b=(4, 3)),
    (5, 4),
    0,
  ),
  'a bias twice': (
    lambda p, x: jax.nn.relu(x @ p['a'] + p['c']) @ p['b'] + p['c'],
    dict(a=(4, 3), c=(1, 3), b=(3, 3)),
    (5, 4),
    0,
  ),
  'gated': (
    lambda p, x: (jax.nn.silu(x @ p['g']) * (x @ p['u'])) @ p['d'],
    dict(g=(4, 6), u=(4, 6), d=(6, 4)),
    (5, 4),
    6,
  ),
  # Queries with keys, and values with the output: heads x features each.
  'attention': (
    _attention,
    {**dict.fromkeys('qkv', (4, 2, 3)), 'o': (2, 3, 4)},
    (2, 5, 4),
    12,
  ),
  'residual': (
    lambda p, x: (
      (x @ p['e'] + jax.nn.relu(x @ p['e'] @ p['a']) @ p['b']) @ p['h']
    ),
    dict(e=(4, 5), a=(5, 6), b=(6, 5), h=(5, 3)),
    (2, 4),
    6,
  ),
  'residual, shared': (
    lambda p, x: (lambda h: (h + jax.nn.relu(h @ p['a']) @ p['b']) @ p['h'])(
      x @ p['e']
    ),
    dict(e=(4, 5), a=(5, 6), b=(6, 5), h=(5, 3)),
    (2, 4),
    11,
  ),
  'scanned': (
    _scanned,
    dict(a=(3, 4, 6), c=(3, 1, 6), b=(3, 6, 4)),
    (2, 4),
    18,
  ),
  'branches': (_branches, dict(a=(4, 6), b=(6, 3)), (2, 4), 6),
  'pooled': (_pooled, dict(a=(3, 3, 4, 6), b=(6, 3)), _IMAGE, 6),
  'grouped': (
    lambda p, x: _conv(jax.nn.relu(_conv(x, p['a'], 2)), p['b'], 3, 2),
    dict(a=(3, 3, 2, 6), b=(3, 3, 2, 9)),
    _IMAGE,
    6,
  ),
  'depthwise': (
    lambda p, x: _conv(
      jax.nn.relu(_conv(jax.nn.relu(_conv(x, p['a'])), p['b'], 6)), p['c']
    ),
    dict(a=(1, 1, 4, 6), b=(3, 3, 1, 6), c=(1, 1, 6, 2)),
    _IMAGE,
    12,
  ),
  'flattened': (
    lambda p, x: jax.nn.relu(_conv(x, p['a'])).reshape(2, -1) @ p['b'],
    dict(a=(3, 3, 4, 3), b=(8 * 8 * 3, 2)),
    _IMAGE,
    3,
  ),
  'joined': (_joined, dict(a=(4, 3), b=(4, 2), c=(5, 3)), (2, 4), 5),
  'split': (
    lambda p, x: sum(
      h @ w
      for h, w in zip(
        jnp.split(jax.nn.relu(x @ p['a']), 2, -1), (p['b'], p['c'])
      )
    ),
    dict(a=(4, 6), b=(3, 2), c=(3, 2)),
    (2, 4),
    6,
  ),
  'embedding': (
    lambda p, x: jax.nn.relu(p['t'][x.astype(int).clip(0, 6)]) @ p['b'],
    dict(t=(7, 5), b=(5, 3)),
    (4,),
    5,
  ),
  # Before its gain (mean and gain take it up), and after.
  'norm': (
    _norm,
    dict(a=(4, 6), mean=(1, 6), var=(1, 6), gain=(1, 6), bias=(1, 6), b=(6, 3)),
    (5, 4),
    12,
  ),
  'square': (
    lambda p, x: jnp.square(x @ p['a']) @ p['b'],
    dict(a=(4, 6), b=(6, 3)),
    (5, 4),
    0,
  ),
  # Only one factor for all channels may pass where they are summed.
  'summed': (
    lambda p, x: jax.nn.relu(x @ p['a']).sum(-1, keepdims=True) @ p['b'],
    dict(a=(4, 6), b=(1, 3)),
    (5, 4),
    1,
  ),
}


class RulesTest(parameterized.TestCase):
  @parameterized.named_parameters(*((name, *c) for name, c in CASES.items()))
  def test_function_stays(self, f, shapes, x_shape, num):
    params = {
      k: jnp.abs(_w(*s)) if k == 'var' else _w(*s) for k, s in shapes.items()
    }
    x = _w(*x_shape)
    freedoms = jc.analysis.rescalings(f)(params, x)
    self.assertEqual(freedoms.num, num)
    moved = freedoms.apply(params, _RNG.normal(size=num))
    want, got = f(params, x), f(moved, x)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    for (path, a), b in zip(
      rules.named_leaves(params), jax.tree.leaves(moved), strict=True
    ):
      self.assertEqual(a.dtype, b.dtype)
      if num == 0 or path == 'var':
        np.testing.assert_array_equal(a, b)
    if num:
      for (path, _), a, b in zip(
        rules.named_leaves(params),
        jax.tree.leaves(params),
        jax.tree.leaves(moved),
        strict=True,
      ):
        if path in ('a', 'b', 'q', 'k', 'v', 'o'):
          self.assertGreater(float(jnp.abs(a - b).max()), 1e-3, path)


if __name__ == '__main__':
  absltest.main()
