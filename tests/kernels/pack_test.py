"""What is packed and what is not, why, and the way back."""

import functools
import tempfile
import unittest
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.export import stablehlo
from jaxopt_compress.kernels.cpu import native

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
  def test_skipped_are_named(self):
    params = {'a': W, 'b': W}
    q = jc.quantize(
      params, [('a', 'W8A8'), ('b', 'FP8_DYNAMIC')], uses=in_out.IN_OUT
    )
    said = []
    p = pack(
      q, skipped=lambda path, why: said.append((path, why)), uses=in_out.IN_OUT
    )
    self.assertIsInstance(p['a'], jc.PackedArray)
    self.assertIsInstance(p['b'], jc.quantization.QDotArray)
    (path, why) = said[0]
    self.assertEqual(path, 'b')
    self.assertIn('e4m3 has no kernel', why)

  @parameterized.parameters(
    (W, None, 'no leaf is compressed. Call jc.quantize first'),
    (W, 'FP8_DYNAMIC', 'w: e4m3 has no kernel'),
    (W, 'int8 3x5', 'w: a scale for every 3 rows'),
    (jnp.ones((140_000, 1)), 'int8', 'w: 32 bits do not hold'),
  )
  def test_what_has_no_kernel_stays(self, w, scheme, why):
    q = jc.quantize({'w': w}, [('w', scheme)], uses=in_out.IN_OUT)
    said = []
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      p = pack(
        q, skipped=lambda *of: said.append(': '.join(of)), uses=in_out.IN_OUT
      )
    self.assertIs(p['w'], q['w'])
    (warning,) = caught
    self.assertStartsWith(str(warning.message), f'Nothing is packed: {why}')
    if scheme is not None:
      self.assertStartsWith(said[0], why)

  @parameterized.named_parameters(
    ('concatenate', lambda w, v: jnp.concatenate([w, v], 1)),
    ('rev', lambda w, v: w[::-1]),
    ('pad', lambda w, v: jnp.pad(w, ((0, 0), (0, 2)))),
  )
  def test_what_a_call_would_unpack_stays(self, remade):
    f = lambda p, x: x @ remade(p['w'], p['v'])
    params = {'w': W, 'v': W}
    uses = jc.uses(f)(params, X)
    q = jc.quantize(params, [('w', 'W8A16'), ('v', None)], uses)
    with self.assertWarnsRegex(UserWarning, 'would unpack it in every call'):
      self.assertIs(pack(q, uses)['w'], q['w'])

  def test_packed_already(self):
    p = pack(
      jc.quantize({'w': W}, [('w', 'int8')], uses=in_out.IN_OUT),
      uses=in_out.IN_OUT,
    )
    with self.assertWarnsRegex(UserWarning, 'w: it is packed already'):
      self.assertIs(pack(p, uses=in_out.IN_OUT)['w'], p['w'])

  def test_many_that_stay_are_counted(self):
    params = {f'w{i}': W[:2, :2] for i in range(10)}
    q = jc.quantize(params, [('.*', 'e5m2 tensor')], uses=in_out.IN_OUT)
    with self.assertWarnsRegex(
      UserWarning, 'w0, w1, w2 and 7 more: e5m2 has no'
    ):
      pack(q, uses=in_out.IN_OUT)

  def test_what_is_stored_without_zeros(self):
    w = np.where(np.arange(128)[:, None] % 8, 0, np.ones((128, 64), np.float32))
    f = lambda p, x: x @ p['w'] + x @ p['q']
    params, x = {'w': jnp.asarray(w), 'q': jnp.asarray(w)}, jnp.ones((2, 128))
    uses = jc.uses(f)(params, x)
    q = jc.quantize(params, [('q', 'int8'), ('w', None)], uses)
    sparse, _ = jc.sparsify(q)
    self.assertTrue(all(map(jc.is_compressed, sparse.values())))
    for how in (True, False):
      said = {}
      got = pack(sparse, uses, sparse=how, skipped=said.__setitem__)
      self.assertIsInstance(got['q'], jc.PackedArray)
      self.assertEqual(isinstance(got['w'], jc.PackedArray), how)
      np.testing.assert_array_equal(jc.lift(f)(got, x), f(jc.materialize(q), x))
    self.assertRegex(said['w'], 'with sparse=True; it stays 1:8')

  @parameterized.parameters(
    ('W8A8', 0, ['_packed', 'portable']),
    ('W8A8', 1, ['_packed', '_integers', 'portable']),
    ('int4 g8', 0, ['_packed', 'portable']),
  )
  def test_one_program_for_each_shape(self, scheme, zeros, programs):
    # Of other shapes than those of other tests: their programs are still there.
    w = jax.random.normal(_KEYS[2], (3, 72 + 8 * zeros, 48))
    w = np.where(np.arange(w.shape[1]) % 2 < zeros, 0, np.swapaxes(w, 1, 2))
    w = np.swapaxes(w, 1, 2)
    q = jc.quantize(dict(zip('abc', w)), [('.*', scheme)], uses=in_out.IN_OUT)
    with jax.log_compiles(), self.assertLogs('jax', 'WARNING') as logs:
      jc.unpack(pack(q, sparse=bool(zeros), uses=in_out.IN_OUT))
    compiled = [r.getMessage() for r in logs.records]
    compiled = [m.split()[1] for m in compiled if m.startswith('Compiling')]
    self.assertEqual(compiled, [f'jit({name})' for name in programs])

  @parameterized.parameters(
    ('NVFP4', 4.5),
    ('MXFP4', 4.25),
    ('W4A16', 4.125),
    ('int8, int8 token', 8.125),
    # Sums of the columns, for zero points of what the weight meets.
    ('W8A8', 8.25, 4 * 64),
  )
  def test_costs_what_its_format_costs(self, scheme, bits, sums=0):
    w = jax.random.normal(_KEYS[3], (256, 64))
    q, p = _both(_matmul, {'w': w}, w.T, scheme)
    self.assertLessEqual(jc.nbytes(p), jc.nbytes(q) + sums)
    self.assertAlmostEqual(8 * jc.nbytes(p) / w.size, bits, delta=0.01)
    # The same numbers: scales are multiplied in the same order.
    for leaf in (p['w'], jc.unpack(p)['w']):
      np.testing.assert_array_equal(*map(jc.materialize, (q['w'], leaf)))
    self.assertEqual(jc.nbytes(jc.unpack(p)), jc.nbytes(q))
    f = jax.jit(jc.lift(_matmul, strict=True))
    self.assertLess(_distance(f(p, w.T), f(q, w.T)), 1e-5)

  @parameterized.parameters(
    3, (0,), ((),), ((2.5,),), ((True,),), ('12',), (np.array(3),)
  )
  def test_what_are_no_rows_is_refused(self, rows):
    with self.assertRaisesRegex(ValueError, 'positive whole numbers'):
      pack({'w': W}, rows=rows, uses=in_out.IN_OUT)

  def test_rows_in_an_array(self):
    q = jc.quantize({'w': W}, [('w', 'int8')], uses=in_out.IN_OUT)
    self.assertIsInstance(
      pack(q, rows=np.array([2, 3]), uses=in_out.IN_OUT)['w'], jc.PackedArray
    )

  @parameterized.parameters(
    ((64, 40), 'W4A16', 'int4 channel, packed'),
    ((64, 10), 'W4A16', 'int4 channel, packed in 13 bits'),
    ((64, 64), 'int4 4x8', 'int4 g4, packed in 8 bits'),
  )
  def test_bits_that_are_filled_up_are_said(self, shape, scheme, said):
    p = pack(
      jc.quantize({'w': jnp.ones(shape)}, [('w', scheme)], uses=in_out.IN_OUT),
      uses=in_out.IN_OUT,
    )['w']
    self.assertEqual(p.describe(), said)
    self.assertEqual(jax.eval_shape(lambda: p).describe(), said)

  @parameterized.parameters(
    ('W8A16', 4e31),
    ('W4A16', 4e31),
    ('NVFP4', 4e31),
    ('NF4', 4e31),
    ('W8A8', 1e36),
    ('int8, int8 token', 1e36),
  )
  def test_the_largest_weights(self, scheme, total):
    # As large as `PanelArray` says, where no two products cancel.
    w, x = jnp.full((64, 8), total / 64), jnp.ones((3, 64))
    q, p = _both(_matmul, {'w': w}, x, scheme)
    y = jax.jit(jc.lift(_matmul, strict=True))(p, x)
    self.assertLess(_distance(y, jc.lift(_matmul)(q, x)), 1e-5)

  def test_where_it_would_not_pay(self):
    q = jc.quantize({'w': W}, [('w', 'int8')], uses=in_out.IN_OUT)
    with mock.patch.object(native, 'available', lambda: False):
      with self.assertWarnsRegex(UserWarning, 'Nothing is packed: .*not built'):
        self.assertIs(jc.pack(q, uses=in_out.IN_OUT), q)
      with mock.patch.object(native, 'paths', lambda: ()):
        with self.assertWarnsRegex(
          UserWarning, 'Nothing is packed: .*not built'
        ):
          self.assertIs(jc.kernels.tune(q, uses=in_out.IN_OUT), q)
      self.assertIsInstance(pack(q, uses=in_out.IN_OUT)['w'], jc.PackedArray)

  @parameterized.parameters(
    ((5, 5, 1, 32), 32, 'W4A16', 5.5),
    ((3, 3, 3, 32), 1, 'W4A16', 6.0),
  )
  def test_groups_over_a_window(self, shape, groups, scheme, bits):
    w = jax.random.normal(jax.random.key(0), shape)
    x = jax.random.normal(jax.random.key(1), (1, 6, 6, groups * shape[2]))
    f = functools.partial(
      jax.lax.conv_general_dilated,
      window_strides=(1, 1),
      padding='SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
    )
    uses = jc.uses(lambda w, x: f(x, w))(w, x)
    q = jc.quantize(w, [('', scheme)], uses)
    packed = jc.pack(q, uses)
    self.assertIsInstance(packed, jc.PackedArray)
    self.assertLess(8 * jc.nbytes(q) / w.size, bits)
    y = jax.jit(jc.lift(f))(x, packed)
    np.testing.assert_allclose(y, f(x, q.materialize()), atol=1e-4)

  def test_cast_parts(self):
    q, p = _both(_matmul, {'w': W}, X, 'int8, int8 token asym')
    half = jax.tree.map(
      lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, p
    )
    y = jax.jit(jc.lift(_matmul))(half, X)
    self.assertLess(_distance(y, jc.lift(_matmul)(q, X)), 2e-2)


if __name__ == '__main__':
  absltest.main()
