"""The law for packed leaves: what they compute is what they were packed from."""

import functools
import tempfile
import unittest
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.export import stablehlo
from jaxopt_compress.kernels.cpu import native

# What is packed, and what it is called then.
SCHEMES = {
  'W8A8': 'int8 channel, int8 activations, packed',
  'W8A16': 'int8 channel, packed',
  'int4 g32 bfloat16': 'int4 g32, packed',
  'int4 g16 asym, int8 token asym': 'int4 g16 asym, int8 activations, packed',
  'int3 g32 asym, int8': 'int3 g32 asym, int8 activations, packed',
  'W2A16': 'int2 channel asym, packed',
  'binary': 'binary channel, packed',
  'ternary, int8': 'ternary channel, int8 activations, packed',
  'int6': 'int6 channel, packed',
  'int8 tensor, int8 tensor asym': 'int8 channel, int8 activations, packed',
  'W4A4': 'int4 channel, int4 activations, packed',
  'int8, int2 token asym': 'int8 channel, int2 activations, packed',
  'int8, int2 tensor asym': 'int8 channel, int2 activations, packed',
  'NF4': 'nf4 channel, packed',
  'nf4 g32, int8': 'nf4 g32, int8 activations, packed',
  'MXFP4': 'e2m1 g32 mx, e2m1 activations, packed',
  'MXFP6': 'e2m3 g32 mx, e2m3 activations, packed',
  'NVFP4': 'e2m1 g16, e2m1 activations, packed',
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
  path = next(p for p, leaf in jc.named_leaves(params) if leaf.ndim > 1)
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
    with self.assertRaisesRegex(ValueError, 'no dot product or convolution'):
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


class WithoutZerosTest(parameterized.TestCase):
  @parameterized.parameters(
    ('int8', 0.5, 'int8 channel, packed without zeros'),
    ('int8 g32, int8', 0.5, 'int8 g32, int8 activations, packed without zeros'),
    (
      'int8, int8 token asym',
      0.95,
      'int8 channel, int8 activations, packed without zeros',
    ),
    ('int4 g32', 0.5, 'int4 g32, packed'),
    (None, 0.5, 'float32, packed without zeros'),
  )
  def test_law(self, words, zeros, described):
    w = jax.random.normal(_KEYS[1], (256, 96))
    w = jnp.where(jax.random.uniform(_KEYS[2], w.shape) < zeros, 0, w)
    x = jax.random.normal(_KEYS[0], (2, 5, 256))
    uses = jc.uses(_matmul)({'w': w}, x)
    q = jc.quantize({'w': w}, [('w', words)], uses)
    p = pack(q, uses)
    self.assertEqual(p['w'].describe(), described)
    self.assertLess(
      jc.nbytes(p), jc.nbytes(q) * (0.8 if 'zeros' in described else 1.01)
    )
    f = jc.lift(_matmul, strict=True)
    loss = lambda x, q: jnp.mean(f(q, x) ** 2)
    run = jax.jit(lambda q, x: (f(q, x), jax.grad(loss)(x, q)))
    for got, expected in zip(run(p, x), run(q, x), strict=True):
      self.assertLess(_distance(got, expected), 2e-5)
    dense = jc.materialize(q)['w']
    for leaf in (p, jc.unpack(p)):
      self.assertLess(_distance(jc.materialize(leaf)['w'], dense), 1e-6)

  def test_masked_and_scanned(self):
    def f(p, x):
      return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p['w'])[0]

    w = jax.random.normal(_KEYS[2], (3, 64, 64)) / 8
    masked = jc.pruning.masked.Masked(
      w, jax.random.uniform(_KEYS[3], w.shape) < 0.4
    )
    uses = jc.uses(f)({'w': w}, X)
    p = pack({'w': masked}, uses)
    y = jax.jit(jc.lift(f, strict=True))(p, X)
    expected = jax.jit(jc.lift(f))({'w': masked}, X)
    self.assertLess(_distance(y, expected), 2e-5)

  def test_arrays_that_no_product_is_known_to_read_stay(self):
    w = jnp.where(jax.random.uniform(_KEYS[2], W.shape) < 0.9, 0, W)
    q = jc.quantize({'a': W, 'w': w}, [('a', 'int8'), ('w', None)])
    self.assertIsInstance(pack(q)['w'], jax.Array)

  def test_switched_off(self):
    w = jnp.where(jax.random.uniform(_KEYS[2], W.shape) < 0.5, 0, W)
    q = jc.quantize({'w': w}, [('w', 'int8')])
    p = pack(q, sparse=False)
    self.assertEqual(p['w'].describe(), 'int8 channel, packed')


class ExportTest(absltest.TestCase):
  def test_exported_programs_are_portable(self):
    q, p = _both(_matmul, {'w': W}, X, 'int4 g32, int8')
    with tempfile.TemporaryDirectory() as folder:
      manifest = stablehlo.save(folder, jc.lift(_matmul), p, X)
      self.assertNotIn('packed', str(manifest['leaves']))
      y = stablehlo.load(folder)(X)
    self.assertLess(_distance(y, jc.lift(_matmul)(q, X)), 2e-2)

  @unittest.skipUnless(native.available(), 'calls of the library, not built')
  def test_jax_refuses_to_export_packed_leaves(self):
    _, p = _both(_matmul, {'w': W}, X, 'W8A8')
    with self.assertRaisesRegex(ValueError, 'jaxopt_compress_matmul'):
      jax.export.export(jax.jit(jc.lift(_matmul)))(p, X)


class PackTest(parameterized.TestCase):
  def test_bytes(self):
    w = jax.random.normal(_KEYS[0], (256, 64))
    q = jc.quantize({'w': w}, [('w', 'int4 g128 bfloat16')])
    self.assertEqual(jc.nbytes(pack(q)), jc.nbytes(q))

  def test_skipped_are_named(self):
    params = {'a': W, 'b': W}
    q = jc.quantize(params, [('a', 'W8A8'), ('b', 'FP8_DYNAMIC')])
    said = []
    p = pack(q, skipped=lambda path, why: said.append((path, why)))
    self.assertIsInstance(p['a'], jc.PackedArray)
    self.assertIsInstance(p['b'], jc.QDotArray)
    (path, why) = said[0]
    self.assertEqual(path, 'b')
    self.assertIn('e4m3 has no kernel', why)

  def test_nothing_to_pack(self):
    with self.assertRaisesRegex(ValueError, 'Call jc.quantize first'):
      pack({'w': W})
    q = jc.quantize({'w': W}, [('w', 'FP8_DYNAMIC')])
    with self.assertRaisesRegex(ValueError, 'w: e4m3 has no kernel'):
      pack(q)
    q = jc.quantize({'w': W}, [('w', 'int8 3x5')])
    with self.assertRaisesRegex(ValueError, 'a scale for every 3 rows'):
      pack(q)

  def test_sums_that_32_bits_do_not_hold(self):
    q = jc.quantize({'w': jnp.ones((140_000, 1))}, [('w', 'int8')])
    with self.assertRaisesRegex(ValueError, '32 bits do not hold'):
      pack(q)

  def test_packed_already(self):
    p = pack(jc.quantize({'w': W}, [('w', 'int8')]))
    with self.assertRaisesRegex(ValueError, 'w: it is packed already'):
      pack(p)

  def test_where_it_would_not_pay(self):
    q = jc.quantize({'w': W}, [('w', 'int8')])
    with mock.patch.object(native, 'available', lambda: False):
      with self.assertWarnsRegex(UserWarning, 'Nothing is packed: .*not built'):
        self.assertIs(jc.pack(q), q)
      with mock.patch.object(native, 'paths', lambda: ()):
        with self.assertWarnsRegex(
          UserWarning, 'Nothing is packed: .*not built'
        ):
          self.assertIs(jc.tune(q), q)
      self.assertIsInstance(pack(q)['w'], jc.PackedArray)

  def test_cast_parts(self):
    q, p = _both(_matmul, {'w': W}, X, 'int8, int8 token asym')
    half = jax.tree.map(
      lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, p
    )
    y = jax.jit(jc.lift(_matmul))(half, X)
    self.assertLess(_distance(y, jc.lift(_matmul)(q, X)), 2e-2)

  def test_there_and_back(self):
    q = jc.quantize({'w': W}, [('w', 'int4 g32')])
    back = jc.unpack(pack(q))
    self.assertEqual(jc.nbytes(back), jc.nbytes(q))
    self.assertEqual(back['w'].describe(), q['w'].describe())
    np.testing.assert_array_equal(back['w'].materialize(), q['w'].materialize())


if __name__ == '__main__':
  absltest.main()
