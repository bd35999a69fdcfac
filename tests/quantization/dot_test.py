"""Products of quantised leaves against the dense array."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
from jax import lax
import jax.numpy as jnp
import making
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import qarray

AXES = {'b': 2, 'm': 3, 'k': 8, 'l': 4, 'n': 6, 'p': 5}


# x, w -> y; k and l are contracted with w, b is a batch axis.
SPECS = [
  'mk,kn->mn',
  'mk,nk->mn',
  'km,kn->mn',
  'mk,kn->nm',
  'bmk,kn->bmn',
  'bmk,bkn->bmn',
  'bmk,kbn->mbn',
  'mbk,nbk->nbm',
  'mkl,kln->mn',
  'mlk,kln->mn',
  'mk,knp->mnp',
  'mk,nkp->pmn',
  'bmkl,kbnl->bnm',
  'k,kn->n',
  'mk,k->m',
]


FORMATS = {
  'channel': dict(format='int8', group=0),
  'int4': dict(format='int4', group=0),
  'groups': dict(format='int4', group=4),
  'ragged': dict(format='int8', group=3),
  'one group': dict(format='int4', group=128),
}


@functools.cache
def _operands(spec, format='int8', group=0):
  """x, the leaf for w, and what the leaf stands for."""
  inputs, _ = spec.split('->')
  x, w = inputs.split(',')
  axis = w.index('k') - len(w)
  shared = tuple(i - len(w) for i, a in enumerate(w) if a in 'kl')
  shared = (axis,) if group else shared
  rng = np.random.default_rng(0)
  w = rng.normal(size=[AXES[a] for a in w]).astype(np.float32)
  x = rng.normal(size=[AXES[a] for a in x]).astype(np.float32)
  return jnp.asarray(x), *making.quantized(w, format, shared, axis, group)


def _einsum(spec, x, w):
  x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
  return np.einsum(spec, x, w)


class WeightOnlyTest(parameterized.TestCase):
  @parameterized.parameters(
    *((spec, 'channel') for spec in SPECS),
    *(('mk,kn->mn', f) for f in FORMATS if f != 'channel'),
    *(('bmkl,kbnl->bnm', f) for f in ('int4', 'groups')),
  )
  def test_equals_the_dense_product(self, spec, format):
    x, q, w = _operands(spec, **FORMATS[format])
    f = functools.partial(jnp.einsum, spec)
    y = jax.jit(jc.lift(f))(x, q)
    np.testing.assert_allclose(y, _einsum(spec, x, w), atol=1e-5)
    # jnp.einsum may lay the weight out first, but it must reach its product.
    met = jc.explain(f)(x, q)
    self.assertTrue(met[-1].native, met)

  @parameterized.parameters('mk,kn->mn', 'bmk,kbn->mbn', 'mkl,kln->mn')
  def test_on_the_left(self, spec):
    x, q, w = _operands(spec)
    inputs, out = spec.split('->')
    swapped = ','.join(reversed(inputs.split(','))) + '->' + out
    f = lambda q, x: jnp.einsum(swapped, q, x)
    y = jax.jit(jc.lift(f, strict=True))(q, x)
    np.testing.assert_allclose(y, _einsum(spec, x, w), atol=1e-5)

  @parameterized.named_parameters(
    # x, weight, preferred -> result
    dict(testcase_name='f32', x='float32', w='float32', preferred=None),
    dict(testcase_name='bf16', x='bfloat16', w='bfloat16', preferred=None),
    dict(testcase_name='f16', x='float16', w='float16', preferred=None),
    dict(
      testcase_name='bf16 to f32',
      x='bfloat16',
      w='bfloat16',
      preferred='float32',
    ),
    dict(
      testcase_name='f32 to bf16',
      x='float32',
      w='float32',
      preferred='bfloat16',
    ),
    dict(testcase_name='mixed', x='float32', w='bfloat16', preferred=None),
    dict(
      testcase_name='mixed the other way',
      x='bfloat16',
      w='float32',
      preferred=None,
    ),
    dict(
      testcase_name='float8',
      x='float8_e4m3fn',
      w='float32',
      preferred='float32',
    ),
    dict(testcase_name='integers', x='int32', w='float32', preferred='float32'),
  )
  def test_dtypes(self, x, w, preferred):
    def f(x, w):
      return lax.dot_general(
        x, w, (((1,), (0,)), ((), ())), preferred_element_type=preferred
      )

    x = (making.normal(4, 16, seed=1) * 3).astype(x)
    q = making.leaf(making.normal(16, 6).astype(w), 'int8', (-2,), axis=-2)
    for leaf in (q, qarray.QDotArray(q)):
      y, want = jc.lift(f)(x, leaf), f(x, leaf.materialize())
      self.assertEqual(y.dtype, want.dtype)
      bound = 0.3 if leaf is not q else 2e-2 * np.abs(want).max()
      if str(want.dtype) == 'float32' and leaf is q and w == 'float32':
        bound = 1e-5 if x.dtype != jnp.bfloat16 else 0.1
      np.testing.assert_allclose(
        np.asarray(y, np.float32), np.asarray(want, np.float32), atol=bound
      )

  def test_the_weight_stays_integer_up_to_the_product(self):
    x, q, w = _operands('mk,kn->mn')
    eqns = jax.make_jaxpr(jc.lift(jnp.dot))(x, q).jaxpr.eqns
    last = [e.primitive.name for e in eqns].index('dot_general')
    # A power of two goes from the one operand to the scales; the codes are converted.
    of_weight = [
      e.primitive.name
      for e in eqns[:last]
      if any(v.aval.shape == w.shape for v in e.outvars)
    ]
    self.assertEqual(set(of_weight) - {'convert_element_type'}, set())
    self.assertIn('mul', [e.primitive.name for e in eqns[last:]])

  @parameterized.product(
    words=('int8', 'int4 asym', 'e4m3', 'e2m1', 'ternary'),
    dtype=('float32', 'bfloat16', 'float16'),
  )
  def test_room_for_large_numbers_costs_no_bit(self, words, dtype):
    x = making.normal(3, 16, seed=1).astype(dtype)
    q = jc.quantize(
      {'w': making.normal(16, 6)}, [('w', words)], uses=in_out.IN_OUT
    )['w']
    f = functools.partial(lax.dot, preferred_element_type='float32')
    y = jc.lift(f)(x, q)
    numbers = q.numbers.astype(dtype)
    want = f(x, numbers)
    if q.zero is not None:
      total = jnp.sum(x.astype('float32'), axis=1, keepdims=True)
      want = want - q.zero.astype('float32') * total
    np.testing.assert_array_equal(y, want * q.scale)

  def test_both_operands_are_leaves(self):
    _, q, w = _operands('mk,kn->mn')
    f = lambda a, b: a.T @ b
    want = f(w, w)
    np.testing.assert_allclose(jc.lift(f)(q, q), want, atol=1e-4)

  @parameterized.named_parameters(
    dict(testcase_name='matmul', f=jnp.matmul),
    dict(testcase_name='dot', f=jnp.dot),
    dict(testcase_name='at', f=lambda x, w: x @ w),
    dict(testcase_name='tensordot', f=lambda x, w: jnp.tensordot(x, w, 1)),
    dict(
      testcase_name='vdot', f=lambda x, w: jnp.einsum('mk,kn,nq', x, w, w.T)
    ),
    dict(testcase_name='inner', f=lambda x, w: jnp.inner(x, w.T)),
  )
  def test_every_way_to_write_a_product(self, f):
    x, q, w = _operands('mk,kn->mn')
    y = jax.jit(jc.lift(f, strict=True))(x, q)
    np.testing.assert_allclose(y, f(x, w), atol=1e-4)


class IntegerTest(parameterized.TestCase):
  @parameterized.parameters(((3, 8),), ((2, 3, 8),), ((8,),))
  def test_equals_numpy(self, shape):
    x = making.normal(*shape, seed=1)
    q = making.leaf(making.normal(8, 6), 'int8', (-2,), axis=-2)
    y = jax.jit(jc.lift(jnp.dot, strict=True))(x, qarray.QDotArray(q))
    codes, scale = making.integer_oracle(x, -1)
    sums = codes @ np.asarray(q.numbers, np.int64)
    scales = (
      np.asarray(q.scale)[0] * scale
      if len(shape) == 1
      else scale * np.asarray(q.scale)
    )
    want = sums.astype(np.float32) * scales
    np.testing.assert_allclose(y, want, rtol=1e-6)

  def test_it_is_an_integer_product(self):
    x, q, _ = _operands('bmk,kn->bmn')
    f = lambda x, q: jnp.einsum('bmk,kn->bmn', x, q)
    dots = making.dots(jc.lift(f), x, qarray.QDotArray(q))
    self.assertIn(('int8', 'int8', 'int32'), dots)

  @parameterized.parameters(
    *((spec, 'channel') for spec in SPECS[5:]),
    ('mk,kn->mn', 'int4'),
    ('bmk,kbn->mbn', 'groups'),
  )
  def test_stays_within_its_bound(self, spec, format):
    x, q, w = _operands(spec, **FORMATS[format])
    f = functools.partial(jnp.einsum, spec)
    y = jax.jit(jc.lift(f))(x, qarray.QDotArray(q))
    # K * (absmax(x) / 255) * max|w|, as its docstring says.
    k = np.prod(
      [AXES[a] for a in 'kl' if a in spec.split('->')[0].split(',')[1]]
    )
    bound = k * float(jnp.abs(x).max()) / 255 * float(jnp.abs(w).max())
    error = np.abs(np.asarray(y) - _einsum(spec, x, w)).max()
    self.assertLessEqual(error, bound)
    self.assertGreater(error, 0)

  def test_a_sum_that_int32_cannot_hold(self):
    # 2^17 products of 127 * 127 overflow; they are summed in parts.
    n = 2**17 + 8
    q = making.leaf(jnp.ones((n, 1)), 'int8', (-2,), axis=-2)
    x = jnp.ones((1, n))
    y = jax.jit(jc.lift(jnp.dot))(x, qarray.QDotArray(q))
    np.testing.assert_allclose(y, [[n]], rtol=1e-2)
    self.assertIn(
      ('int8', 'int8', 'int32'),
      making.dots(jc.lift(jnp.dot), x, qarray.QDotArray(q)),
    )

  @parameterized.parameters('zeros', 'nan', 'inf', 'huge', 'tiny', 'no rows')
  def test_extreme_activations(self, kind):
    x = dict(
      zeros=jnp.zeros((2, 8)),
      nan=jnp.ones((2, 8)).at[0, 0].set(jnp.nan),
      inf=jnp.ones((2, 8)).at[0, 0].set(jnp.inf),
      huge=jnp.full((2, 8), 1e36),
      tiny=jnp.full((2, 8), 1e-36),
    ).get(kind, jnp.ones((0, 8)))
    q = making.leaf(making.normal(8, 6), 'int8', (-2,), axis=-2)
    y = jax.jit(jc.lift(jnp.dot))(x, qarray.QDotArray(q))
    want = jnp.dot(x, q.materialize())
    # What is not finite stays not finite, and in its own token.
    np.testing.assert_array_equal(
      np.isfinite(np.asarray(y)), np.isfinite(np.asarray(want))
    )
    finite = np.isfinite(np.asarray(want))
    scale = np.abs(np.asarray(want))[finite].max(initial=0)
    close = np.abs(np.asarray(y - want))[finite] <= 0.05 * scale
    self.assertTrue(close.all())

  @parameterized.parameters('mk,kn->mn', 'bmk,bkn->bmn')
  def test_derivative_of_activations_is_straight_through(self, spec):
    x, q, w = _operands(spec)
    f = lambda x, w: jnp.einsum(spec, x, w)
    weights = jnp.arange(1.0, 1 + f(x, w).size)
    loss = lambda f, w: lambda x: (f(x, w).ravel() * weights).sum()
    got = jax.grad(loss(jc.lift(f), qarray.QDotArray(q)))(x)
    want = jax.grad(loss(f, w))(x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
