"""The law for packed leaves: what they compute is what they were packed from."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc

# What is packed, and what it is called then.
SCHEMES = {
  'W8A8': 'int8 channel, int8 asym activations, packed',
  'int8, int8 token': 'int8 channel, int8 activations, packed',
  'W8A16': 'int8 channel, packed',
  'int4 g32 bfloat16': 'int4 g32, packed',
  'int4 g16 asym, int8 token asym': 'int4 g16 asym, int8 asym activations, packed',
  'int3 g32 asym, int8': 'int3 g32 asym, int8 activations, packed',
  'W2A16': 'int2 channel asym, packed',
  'binary': 'binary channel, packed in 2 bits',
  'ternary, int8': 'ternary channel, int8 activations, packed',
  'int6': 'int6 channel, packed in 8 bits',
  'int8 tensor, int8 tensor asym': 'int8 channel, int8 asym activations, packed',
  'W4A4': 'int4 channel, int4 activations, packed',
  'int8, int2 token asym': 'int8 channel, int2 asym activations, packed',
  'int8, int2 tensor asym': 'int8 channel, int2 asym activations, packed',
  'NF4': 'nf4 channel, packed',
  'nf4 g32, int8': 'nf4 g32, int8 activations, packed',
  'MXFP4': 'e2m1 g32 mx, e2m1 activations, packed',
  'MXFP6': 'e2m3 g32 mx, e2m3 activations, packed in 8 bits',
  'NVFP4': 'e2m1 g16 nv, e2m1 activations, packed',
  'int8 g32, e4m3 token': 'int8 g32, e4m3 activations, packed',
}

# On machines without the library, too: the portable path computes the same.
pack = functools.partial(jc.pack, target='cpu')

_KEYS = [jax.random.key(i) for i in range(8)]
X = jax.random.normal(_KEYS[0], (2, 5, 64))
W = jax.random.normal(_KEYS[1], (64, 40))


def _distance(y, expected):
  return float(jnp.abs(y - expected).max() / jnp.abs(expected).max())


def _both(f, params, x, words):
  """(quantised, packed) parameters of f."""
  uses = jc.uses(f)(params, x)
  path = next(p for p, leaf in jc.rules.named_leaves(params) if leaf.ndim > 1)
  q = jc.quantize(params, [(path, words), (r'.*', None)][: len(params)], uses)
  return q, pack(q, uses)


def _matmul(p, x):
  return x @ p['w']


class LawTest(parameterized.TestCase):
  @parameterized.named_parameters((w, w, d) for w, d in SCHEMES.items())
  def test_values_and_gradients(self, words, described):
    q, p = _both(_matmul, {'w': W}, X, words)
    self.assertEqual(p['w'].describe(), described)
    self.assertIsInstance(p['w'], jc.PackedArray)
    for leaf in (p['w'], jc.unpack(p)['w']):
      self.assertLess(_distance(leaf.materialize(), q['w'].materialize()), 1e-6)
    f = jc.lift(_matmul, strict=True)
    loss = lambda q, x: jnp.mean(f(q, x) ** 2)
    run = jax.jit(
      lambda q, x: (f(q, x), *jax.grad(loss, (0, 1), allow_int=True)(q, x))
    )
    y, of_p, of_x = run(p, X)
    expected, of_q, of_x_expected = run(q, X)
    self.assertLess(_distance(y, expected), 2e-5)
    self.assertLess(_distance(of_x, of_x_expected), 2e-5)
    weight = getattr(of_q['w'], 'weight', of_q['w'])
    same = weight.scale.dtype == p['w'].scale.dtype != jnp.float8_e8m0fnu
    if same and weight.scale.shape == p['w'].scale.shape:
      close = _distance(
        of_p['w'].scale.astype(jnp.float32), weight.scale.astype(jnp.float32)
      )
      self.assertLess(close, 1e-2 if weight.scale.itemsize < 4 else 2e-5)

  def test_bfloat16(self):
    x, w = X.astype(jnp.bfloat16), W.astype(jnp.bfloat16)
    for words in ('W8A8', 'int4 g32'):
      q, p = _both(_matmul, {'w': w}, x, words)
      y, expected = (jax.jit(jc.lift(_matmul))(leaf, x) for leaf in (p, q))
      self.assertEqual(y.dtype, jnp.bfloat16)
      self.assertLess(_distance(y, expected), 2**-7)

  def test_under_vmap(self):
    q, p = _both(_matmul, {'w': W}, X, 'int4 g32, int8 token')
    f = jc.lift(_matmul, strict=True)
    self.assertLess(
      _distance(jax.vmap(f, (None, 0))(p, X), jax.vmap(f, (None, 0))(q, X)),
      2e-5,
    )
    many = jnp.stack([W, 2 * W, W**2])
    x = jax.random.normal(_KEYS[2], (3, 5, 64))
    q, p = _both(jax.vmap(_matmul), {'w': many}, x, 'W8A8')
    y, expected = (jax.vmap(f)(leaf, x) for leaf in (p, q))
    self.assertLess(_distance(y, expected), 2e-5)
    # Matrices that are stacked, rows that are not.
    y, expected = (jax.vmap(f, (0, None))(leaf, X) for leaf in (p, q))
    self.assertLess(_distance(y, expected), 2e-5)

  def test_matrices_of_a_stack(self):
    def f(p, x, i):
      x = jnp.tanh(x @ p['w'][i])  # one that is not known
      x = jnp.tanh(x @ p['w'][1])
      return jnp.einsum('baf,afg->bag', x, p['w'][1:].reshape(1, 2, 64, 64)[0])

    w = jax.random.normal(_KEYS[2], (3, 64, 64)) / 8
    x = jax.random.normal(_KEYS[3], (4, 2, 64))
    uses = jc.uses(f)({'w': w}, x, 2)
    q = jc.quantize({'w': w}, [('w', 'int4 g32 asym')], uses)
    pack = functools.partial(jc.pack, uses=uses, target='cpu')
    run = jax.jit(jc.lift(f, strict=True))
    y, expected = (run(leaf, x, 2) for leaf in (pack(q), q))
    self.assertLess(_distance(y, expected), 2e-5)
    for part in (lambda w: w[:, 1], lambda w: w.reshape(-1)):
      with self.assertRaisesRegex(ValueError, 'slice of the matr|reshape that'):
        jax.jit(jc.lift(part, strict=True))(pack(q)['w'])

  def test_under_scan_remat_and_grad(self):
    def f(p, x):
      step = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
      return jax.lax.scan(step, x, p['w'])[0]

    w = jax.random.normal(_KEYS[2], (3, 64, 64)) / 8
    q, p = _both(f, {'w': w}, X, 'int4 g32 asym, int8 token asym')
    loss = jax.jit(
      jax.value_and_grad(lambda x, q: jnp.sum(jc.lift(f, strict=True)(q, x)))
    )
    (y, of_x), (expected, of_x_expected) = loss(X, p), loss(X, q)
    self.assertLess(_distance(y, expected), 2e-4)
    self.assertLess(_distance(of_x, of_x_expected), 2e-4)

  @parameterized.parameters(True, False)
  def test_under_shard_map(self, check_vma):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
    x = jax.random.normal(_KEYS[3], (8, 64))
    q, p = _both(_matmul, {'w': W}, x, 'W8A8')
    f = jax.jit(
      jc.lift(
        jax.shard_map(
          lambda p, x: jax.lax.psum(_matmul(p, x).sum(0), 'data'),
          mesh=mesh,
          in_specs=(P(), P('data')),
          out_specs=P(),
          check_vma=check_vma,
        ),
        strict=True,
      )
    )
    self.assertLess(_distance(f(p, x), f(q, x)), 2e-5)

  def test_many_axes(self):
    # Three axes that move, merge and split before the product.
    f = lambda p, x: jnp.einsum(
      'btk,ohk->btoh', x, jnp.transpose(p['w'], (1, 2, 0)).reshape(4, 10, 64)
    )
    w = W.reshape(64, 8, 5)
    q, p = _both(f, {'w': w}, X, 'int4 g32')
    g = jax.jit(jc.lift(f, strict=True))
    self.assertLess(_distance(g(p, X), g(q, X)), 2e-5)

  def test_attention(self):
    model = nn.MultiHeadDotProductAttention(num_heads=4)
    params = model.init(_KEYS[4], X)['params']
    f = lambda p, x: model.apply({'params': p}, x)
    uses = jc.uses(f)(params, X)
    rules = [(r'.*/kernel', 'int4 g16, int8'), (r'.*', None)]
    q = jc.quantize(params, rules, uses)
    p = pack(q, uses)
    g = jax.jit(jc.lift(f, strict=True))
    self.assertLess(_distance(g(p, X), g(q, X)), 2e-2)

  def test_experts(self):
    f = lambda p, x: jnp.einsum('ebk,ekn->nbe', x, p['w'])
    w = jax.random.normal(_KEYS[5], (3, 64, 40))
    x = jax.random.normal(_KEYS[6], (3, 7, 64))
    q, p = _both(f, {'w': w}, x, 'W8A8')
    g = jax.jit(jc.lift(f, strict=True))
    self.assertLess(_distance(g(p, x), g(q, x)), 2e-5)

  def test_ragged_experts_are_not_packed(self):
    sizes = jnp.array([2, 0, 5])
    f = lambda p, x: jax.lax.ragged_dot(x, p['w'], sizes)
    w = jax.random.normal(_KEYS[5], (3, 64, 40))
    x = jax.random.normal(_KEYS[6], (7, 64))
    with self.assertWarnsRegex(UserWarning, 'no dot product or convolution'):
      _both(f, {'w': w}, x, 'W8A16')

  def test_tied_embedding(self):
    def f(p, tokens):
      return jnp.take(p['w'], tokens, axis=0) @ p['w'].T

    table = jax.random.normal(_KEYS[7], (100, 64))
    tokens = jnp.array([[1, 99, 3], [0, 50, 31]])
    for words in ('int4 g32', 'int3 g16 asym', 'nf4 g32', 'int8'):
      q, p = _both(f, {'w': table}, tokens, words)
      g = jax.jit(jc.lift(f, strict=True))
      self.assertLess(_distance(g(p, tokens), g(q, tokens)), 2e-5, words)
    outside = jnp.array([[100, 5, -200]])
    np.testing.assert_array_equal(
      jnp.isnan(g(p, outside)), jnp.isnan(g(q, outside))
    )

  def test_no_rows(self):
    q, p = _both(_matmul, {'w': W}, X, 'W8A8')
    x = jnp.zeros((0, 64))
    self.assertEqual(jax.jit(jc.lift(_matmul))(p, x).shape, (0, 40))

  def test_a_product_over_other_axes_is_dense(self):
    q, p = _both(_matmul, {'w': W}, X, 'W8A16')
    f = lambda p, x: x @ p['w'].T
    x = jnp.ones((2, 40))
    met = jc.explain(f)(p, x)
    self.assertEqual(
      met[-1].reason, 'it is packed for a product over other axes'
    )
    y, expected = (jax.jit(jc.lift(f))(leaf, x) for leaf in (p, q))
    self.assertLess(_distance(y, expected), 2e-5)


if __name__ == '__main__':
  absltest.main()
