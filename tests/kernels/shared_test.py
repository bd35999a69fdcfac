"""Products that read the same: what is found, and what it computes."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import structural
from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import shared

K, HEADS, TIME = 16, 2, 5
X = jax.random.normal(jax.random.key(0), (2, TIME, K))


def _weight(i, *shape):
  return jax.random.normal(jax.random.key(i), shape) / shape[0] ** 0.5


PARAMS = {
  'q': _weight(1, K, K),
  'k': _weight(2, K, K // 2),
  'v': _weight(3, K, K // 2),
  'up': _weight(4, K, 2 * K),
  'down': _weight(5, 2 * K, K),
  'heads': _weight(6, K, HEADS, K // HEADS),
  'a': _weight(7, K) + 1,
  'b': _weight(8, K),
}


def norm(p, x):
  x = x - x.mean(-1, keepdims=True)
  x = x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x * p['a'][None, None] + p['b'][None, None]


def alike(p, x):
  return x @ p['q'], x @ p['k'], x @ p['v']


def with_epilogues(p, x):
  q = jax.nn.silu(x @ p['q'] + p['b'][None, None])
  return q, (x @ p['k']) * 0.5, jax.nn.relu(x @ p['v'])


def after_a_norm(p, x):
  return alike(p, norm(p, x))


def post_norm(p, x):
  x = norm(p, x)
  y = jax.nn.gelu(x @ p['up']) @ p['down']
  return norm(p, x + y)


def gated(p, x):
  up = jnp.concatenate([p['b'], p['b']])[None, None]
  gate = jax.nn.silu(x @ p['up'])
  return (gate * (x @ p['up'] + up)) @ p['down']


def heads(p, x):
  b = p['b'].reshape(HEADS, -1)
  q = jnp.einsum('btk,khd->bthd', x, p['heads']) + b[None, None]
  return q * 0.5, x @ p['k']


def views(p, x):
  a, b = (x.reshape(-1, K) for _ in range(2))
  return a @ p['q'], b @ p['k']


def of_the_norm_itself(p, x):
  y = norm(p, x)
  return y @ p['q'] + y


def in_scan(p, x):
  return lax.scan(lambda x, p: (post_norm(p, x), None), x, p)[0]


def chain(p, x):
  return (x @ p['q']) @ p['q'], x @ p['k']


def over_other_axes(p, x):
  return x @ p['q'], jnp.einsum('btk,bn->tkn', x, p['q'][:2])


# For each group: how many products, whether a norm, what follows them, and how many
# variables are the norm that others read.
FOUND = {
  'alike': (alike, [(3, False, ['', '', ''], 0)]),
  'with epilogues': (
    with_epilogues,
    [(3, False, ['add silu', 'mul', 'relu'], 0)],
  ),
  'after a norm': (after_a_norm, [(3, True, ['', '', ''], 0)]),
  'post norm': (post_norm, [(1, True, ['gelu'], 1)]),
  'gated': (gated, [(2, False, ['silu', 'add'], 0)]),
  'heads': (heads, [(2, False, ['add mul', ''], 0)]),
  'views': (views, [(2, False, ['', ''], 0)]),
  'of the norm itself': (of_the_norm_itself, [(1, True, [''], 1)]),
  'chain': (chain, [(2, False, ['', ''], 0)]),
  'one': (lambda p, x: x @ p['q'] + p['b'][None, None], []),
  'one with a norm': (lambda p, x: norm(p, x) @ p['q'], [(1, True, [''], 0)]),
  'of different rows': (lambda p, x: (x @ p['q'], (2 * x) @ p['k']), []),
  'over other axes': (over_other_axes, []),
  'a norm of nothing': (lambda p, x: norm(p, x), []),
}


def _words(chain):
  other = 'times' if chain.times else 'other' if chain.other is not None else ''
  words = [name for name, _, _ in chain.steps] + [chain.curve or '', other]
  return ' '.join(filter(None, [*words, 'relu' if chain.relu else '']))


def _groups(f, params=PARAMS, x=X):
  jaxpr = jax.make_jaxpr(f)(params, x).jaxpr
  jaxpr = jaxprs.flattened(jaxpr, structural.plain_body)
  leaves = [v for v in jaxpr.invars[: len(params)] if v.aval.ndim > 1]
  return shared.find(jaxpr, leaves), jaxpr


def _packed(f, params, x, words='W8A8', axes=2):
  uses = jc.uses(f)(params, x)
  matrices = [
    n
    for n, w in jc.rules.named_leaves(params)
    if w.ndim == axes or n == 'heads'
  ]
  rules = [(n, words) for n in matrices if uses.get(n)]
  q = jc.quantize(params, [*rules, (r'.*', None)], uses)
  return q, jc.pack(q, uses, target='cpu')


class FindTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in FOUND)
  def test_found(self, name):
    f, want = FOUND[name]
    got = [
      (
        len(group.members),
        group.norm is not None,
        [_words(chain) for chain in group.chains],
        len(group.keeps),
      )
      for group in _groups(f)[0]
    ]
    self.assertEqual(got, want)

  def test_what_is_left_has_its_epilogue(self):
    groups, jaxpr = _groups(post_norm)
    leaves = [v for v in jaxpr.invars[:8] if v.aval.ndim > 1]
    taken = [i for group in groups for i in group.indices]
    (chain,) = epilogues.find(jaxpr, leaves, taken).values()
    self.assertEqual(_words(chain), 'other')

  def test_only_products_of_leaves(self):
    jaxpr = jax.make_jaxpr(alike)(PARAMS, X).jaxpr
    names = list(PARAMS)
    leaves = [jaxpr.invars[sorted(names).index(n)] for n in ('q', 'v')]
    (group,) = shared.find(jaxpr, leaves)
    self.assertLen(group.members, 2)
    self.assertEmpty(shared.find(jaxpr, leaves[:1]))


class ValuesTest(parameterized.TestCase):
  @parameterized.product(
    name=[
      n for n in FOUND if n not in ('a norm of nothing', 'over other axes')
    ],
    words=['int8', 'W8A8', 'int8, int8 token asym'],
  )
  def test_the_law(self, name, words):
    f, _ = FOUND[name]
    q, packed = _packed(f, PARAMS, X, words)
    want = jax.jit(jc.lift(f))(q, X)
    got = jax.jit(jc.lift(f))(packed, X)
    jax.tree.map(lambda a, b: self._near(a, b, words), got, want)

  def _near(self, got, want, words):
    # A row whose largest entry differs in its last bit may be rounded otherwise.
    error = 1e-5 if words == 'int8' else 0.02
    scale = float(abs(want).max())
    np.testing.assert_allclose(got, want, atol=error * scale, rtol=0)
    self.assertLess(float(abs(got - want).mean()), 2e-3 * scale)

  @parameterized.named_parameters(
    ('vmap', jax.vmap, (None, 0)), ('remat', jax.checkpoint, None)
  )
  def test_under(self, transform, axes):
    q, packed = _packed(post_norm, PARAMS, X, 'int8')
    x = X[None] if axes else X

    def run(p, x):
      if axes:
        return transform(jc.lift(post_norm), axes)(p, x)
      return jc.lift(transform(post_norm))(p, x)

    np.testing.assert_allclose(
      jax.jit(run)(packed, x), jax.jit(run)(q, x), atol=2e-4
    )

  def test_in_scan(self):
    names = 'up', 'down', 'a', 'b'
    layers = {n: jnp.stack([PARAMS[n], -PARAMS[n]]) for n in names}
    q, packed = _packed(in_scan, layers, X, 'int8', 3)
    want, got = (jax.jit(jc.lift(in_scan))(p, X) for p in (q, packed))
    np.testing.assert_allclose(got, want, atol=2e-4)

  def test_derivative(self):
    q, packed = _packed(post_norm, PARAMS, X, 'int8')

    def loss(x, p):
      return (jc.lift(post_norm)(p, x) ** 2).sum()

    want, got = (jax.jit(jax.grad(loss))(X, p) for p in (q, packed))
    np.testing.assert_allclose(got, want, atol=1e-3, rtol=1e-3)

  def test_cut_over_devices(self):
    mesh = jax.make_mesh((2,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
    q, packed = _packed(post_norm, PARAMS, X, 'int8')

    def run(p, x):
      cut = dict(mesh=mesh, in_specs=(P(), P('d')), out_specs=P('d'))
      return jax.shard_map(post_norm, **cut)(p, x)

    want, got = (jax.jit(jc.lift(run))(p, X) for p in (q, packed))
    np.testing.assert_allclose(got, want, atol=2e-4)

  def test_explained(self):
    _, packed = _packed(alike, PARAMS, X)
    met = jc.explain(alike)(packed, X)
    self.assertEqual(
      [(m.path, m.primitive, m.native) for m in met],
      [(n, 'dot_general', True) for n in 'qkv'],
    )
    self.assertEqual([m.together for m in met], [('q', 'k', 'v')] * 3)
    lines = [m.source.split(' ')[0] for m in met]
    self.assertRegex(lines[0], r'shared_test\.py:\d+')
    jax.jit(jc.lift(alike, strict=True))(packed, X)

  def test_a_norm_in_front_is_told(self):
    _, packed = _packed(after_a_norm, PARAMS, X)
    first, *others = jc.explain(after_a_norm)(packed, X)
    self.assertEqual(
      (first.path, first.primitive, first.native), ('', 'norm', True)
    )
    self.assertEqual([m.path for m in others], [*'qkv'])


def _block(norm_of, dtype):
  class Block(nnx.Module):
    def __init__(self):
      rngs, how = nnx.Rngs(0), dict(dtype=dtype)
      self.norm = norm_of(K, rngs=rngs, **how)
      self.attend = nnx.MultiHeadAttention(
        HEADS, K, decode=False, rngs=rngs, **how
      )
      self.gate = nnx.Linear(K, 2 * K, use_bias=False, rngs=rngs, **how)
      self.up = nnx.Linear(K, 2 * K, rngs=rngs, **how)
      self.down = nnx.Linear(2 * K, K, rngs=rngs, **how)

    def __call__(self, x):
      x = x + self.attend(self.norm(x))
      y = self.norm(x)
      return x + self.down(nnx.silu(self.gate(y)) * self.up(y))

  graph, state = nnx.split(Block())
  return lambda state, x: nnx.merge(graph, state)(x), state


class LinenBlock(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
    y = nn.RMSNorm()(x)
    return x + nn.Dense(K)(nn.gelu(nn.Dense(2 * K)(y)))


class FlaxTest(parameterized.TestCase):
  @parameterized.product(
    norm_of=[nnx.LayerNorm, nnx.RMSNorm], dtype=[None, jnp.bfloat16]
  )
  def test_nnx(self, norm_of, dtype):
    apply, state = _block(norm_of, dtype)
    x = X.astype(dtype or X.dtype)
    jaxpr = jax.make_jaxpr(apply)(state, x).jaxpr
    jaxpr = jaxprs.flattened(jaxpr, structural.plain_body)
    leaves = [v for v in jaxpr.invars[:-1] if v.aval.ndim > 1]
    groups = shared.find(jaxpr, leaves)
    self.assertEqual([len(g.members) for g in groups], [3, 2])
    self.assertTrue(all(g.norm and not g.keeps for g in groups))
    words = [[_words(c) for c in g.chains] for g in groups]
    self.assertEqual(words, [['add'] * 3, ['silu', 'add']])

  def test_linen(self):
    model = LinenBlock()
    params = model.init(jax.random.key(0), X)
    uses = jc.uses(model.apply)(params, X)
    q = jc.quantize(params, jc.rules_for(uses, dot='int8', at_least=1), uses)
    packed = jc.pack(q, uses, target='cpu', rows=(1,))
    want, got = (jax.jit(jc.lift(model.apply))(p, X) for p in (q, packed))
    np.testing.assert_allclose(got, want, atol=2e-4)


if __name__ == '__main__':
  absltest.main()
