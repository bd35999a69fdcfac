"""Numbers of widths, folded: masked is shrunk, in norms, heads and scanned layers."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import in_out
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc


def _rms(x, gain):
  return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain


def _norm(p, x):
  return jnp.tanh(_rms(x @ p['in'], p['gain']) @ p['out'])


def _no_gain(p, x):
  return _rms(x @ p['in'], 1.0) @ p['out']


def _layer_norm(p, x):
  x = x @ p['in']
  x = x - x.mean(-1, keepdims=True)
  return _rms(x, p['gain']) @ p['out']


def _attention(p, x):
  q, k, v = (jnp.einsum('td,dhk->thk', x, p[n]) + p[f'{n}_bias'] for n in 'qkv')
  logits = jnp.einsum('thk,shk->hts', q, k) / np.sqrt(q.shape[-1])
  y = jnp.einsum('hts,shk->thk', jax.nn.softmax(logits), v)
  return jnp.einsum('thk,hkd->td', y, p['o'])


def _normed_keys(p, x):
  """Norms of queries and keys over the features that the product is scaled by."""
  q, k = (
    _rms(jnp.einsum('td,dhk->thk', x, p[n]), p[f'{n}_gain']) for n in 'qk'
  )
  logits = jnp.einsum('thk,shk->hts', q, k) * q.shape[-1] ** -0.5
  return jax.nn.softmax(logits).sum(0) @ p['out']


def _decoder(p, x):
  """Scanned layers, each with two norms, attention and a gated product."""

  def layer(x, p):
    y = _rms(x, p['norm1'])
    q, k, v = (jnp.einsum('td,dhk->thk', y, p[n]) for n in 'qkv')
    logits = jnp.einsum('thk,shk->hts', q, k) / np.sqrt(q.shape[-1])
    mask = jnp.tril(jnp.ones(logits.shape[1:], bool))
    logits = jnp.where(mask, logits, -1e30)
    y = jnp.einsum('hts,shk->thk', jax.nn.softmax(logits), v)
    x = x + jnp.einsum('thk,hkd->td', y, p['o'])
    y = _rms(x, p['norm2'])
    return x + (jax.nn.silu(y @ p['gate']) * (y @ p['up'])) @ p['down'], None

  x = lax.scan(layer, x @ p['in'], p['layers'])[0]
  return _rms(x, p['gain']) @ p['out']


_HEADS = {
  **dict.fromkeys('qkv', (5, 2, 8)),
  **dict.fromkeys(('q_bias', 'k_bias', 'v_bias'), (1, 2, 8)),
}
# {name: (fun, shapes, {size of groups: new size}, what is multiplied by what)}
NETWORKS = {
  'rms norm': (
    _norm,
    {'in': (5, 16), 'gain': (1, 16), 'out': (16, 3)},
    {16: 4},
    {'gain': 2.0},
  ),
  'no gain': (_no_gain, {'in': (5, 16), 'out': (16, 3)}, {16: 4}, {'out': 2.0}),
  'attention': (
    _attention,
    {**_HEADS, 'o': (2, 8, 5)},
    {8: 2},
    {'k': 0.5, 'k_bias': 0.5},
  ),
  'normed keys': (
    _normed_keys,
    {
      **dict.fromkeys('qk', (5, 2, 8)),
      **dict.fromkeys(('q_gain', 'k_gain'), (1, 1, 8)),
      'out': (6, 3),
    },
    {8: 2},
    None,
  ),
  'decoder': (
    _decoder,
    {
      'in': (5, 16),
      'layers': {
        **dict.fromkeys(('norm1', 'norm2'), (2, 1, 16)),
        **dict.fromkeys('qkv', (2, 16, 2, 8)),
        'o': (2, 2, 8, 16),
        **dict.fromkeys(('gate', 'up'), (2, 16, 12)),
        'down': (2, 12, 16),
      },
      'gain': (1, 16),
      'out': (16, 3),
    },
    {16: 4, 8: 4},
    None,
  ),
}


def _planned(name):
  fun, shapes, sizes, _ = NETWORKS[name]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.float32(rng.standard_normal(s)),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  x = jnp.float32(rng.standard_normal((6, 5)))
  found = jc.structure(fun)(params, x)
  plan = jc.Plan(
    found,
    {
      n: np.sort(rng.permutation(g.size)[: sizes[g.size]])
      for n, g in found.free.items()
      if g.size in sizes
    },
  )
  return fun, params, x, plan


class FoldSizesTest(parameterized.TestCase):
  @parameterized.parameters(*NETWORKS)
  def test_masked_is_shrunk(self, name):
    fun, params, x, plan = _planned(name)
    small = jc.shrink(plan, params)
    want = fun(plan.mask(params), x)
    self.assertGreater(float(jnp.abs(fun(small, x) - want).max()), 1e-2)
    out, folded = jc.analysis.fold_sizes(fun, plan)(small, x)
    np.testing.assert_allclose(fun(out, x), want, rtol=1e-5, atol=1e-5)
    self.assertEqual(folded.left, ())
    factors = NETWORKS[name][-1]
    if factors:
      self.assertEqual(set(folded.factors), set(factors))
      for path, factor in factors.items():
        self.assertAlmostEqual(folded.factors[path], factor, places=6)

  def test_layer_norm_is_left(self):
    fun, params, x, plan = _planned('rms norm')
    small = jc.shrink(plan, params)
    _, folded = jc.analysis.fold_sizes(_layer_norm, plan)(small, x)
    self.assertLen(folded.left, 1)
    self.assertRegex(folded.left[0], 'sub at .*fold_sizes_test.py')

  def test_modules(self):
    """A module with sizes of its own, built again, and one that follows its state."""

    def built(heads):
      rngs = nnx.Rngs(0)
      return nnx.Sequential(
        nnx.Linear(5, 16, rngs=rngs),
        nnx.RMSNorm(16, rngs=rngs),
        nnx.MultiHeadAttention(2, 16, heads, decode=False, rngs=rngs),
        nnx.Linear(16, 3, rngs=rngs),
      )

    graphdef, state = nnx.split(built(16))
    smaller, _ = nnx.split(built(4))
    fun, rebuilt = (
      lambda state, x, g=g: nnx.merge(g, state)(x) for g in (graphdef, smaller)
    )
    x = jax.random.normal(jax.random.key(0), (1, 6, 5))
    found = jc.structure(fun)(state, x)
    features = {n: g for n, g in found.free.items() if g.size == 8}
    plan = jc.Plan(found, dict.fromkeys(features, [1, 4]))
    small = jc.shrink(plan, state)
    with self.assertRaisesRegex(ValueError, 'as rebuilt='):
      jc.analysis.fold_sizes(fun, plan)(small, x)
    out, folded = jc.analysis.fold_sizes(fun, plan, rebuilt)(small, x)
    np.testing.assert_allclose(
      rebuilt(out, x), fun(plan.mask(state), x), rtol=1e-4, atol=1e-5
    )
    self.assertEqual(folded.left, ())

  @parameterized.parameters(True, False)
  def test_plans_of_layers(self, follows):
    """Widths of the layers that stay are folded, under the numbers they get."""

    def layers(p, x, depth=None):
      x = x @ p['in']
      for i in range(depth or len(p['blocks'])):
        block = p['blocks'][i]
        y = jnp.tanh(x @ block['w']) @ block['v']
        norm = jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-9)
        x = x + y * norm * block['gain']
      return x @ p['out']

    keys = iter(jax.random.split(jax.random.key(0), 9))
    made = lambda *s: jax.random.normal(next(keys), s)
    blocks = [
      {'w': made(16, 8), 'v': made(8, 16), 'gain': jnp.full((1, 16), i + 1.0)}
      for i in range(3)
    ]
    params = {'in': made(5, 16), 'blocks': blocks, 'out': made(16, 3)}
    x = made(2, 5)
    found = jc.structure(layers)(params, x)
    (name,) = (n for n in found.free if n.endswith(':layers'))
    (wide,) = (n for n, g in found.free.items() if g.size == 16)
    plan = jc.Plan(found, {name: [0, 2], wide: [1, 2, 5, 6]})
    small = jc.shrink(plan, params)
    fun = layers if follows else lambda p, x: layers(p, x, 2)
    if not follows:
      three = lambda p, x: layers(p, x, 3)
      with self.assertRaisesRegex(ValueError, 'without the layers that go'):
        jc.analysis.fold_sizes(three, plan)(small, x)
    out, folded = jc.analysis.fold_sizes(fun, plan)(small, x)
    self.assertEqual(folded.factors, dict.fromkeys(folded.factors, 2.0))
    self.assertEqual(set(folded.factors), {f'blocks/{i}/gain' for i in (0, 1)})
    masked = plan.mask(params)
    masked = masked | {'blocks': [masked['blocks'][i] for i in (0, 2)]}
    np.testing.assert_allclose(layers(out, x), layers(masked, x), rtol=1e-4)

  def test_refused(self):
    fun, params, x, plan = _planned('rms norm')
    q = jc.quantize(
      jc.shrink(plan, params),
      [('gain', 'int8 tensor'), ('.*', None)],
      uses=in_out.IN_OUT,
    )
    for tree, message in (
      (
        params,
        r'in has shape \(5, 16\)|gain has shape \(1, 16\), and the plan',
      ),
      (q, 'gain is int8.*multiplied by 2: fold before'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        jc.analysis.fold_sizes(fun, plan)(tree, x)


if __name__ == '__main__':
  absltest.main()
