"""Products and row gathers of quantised leaves against the dense array."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
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


def _normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _quantize(w, format, shared, axis, group=0):
  q = making.leaf(w, format, shared, axis=axis, group=group)
  return q, q.materialize()


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
  return jnp.asarray(x), *_quantize(w, format, shared, axis, group)


def _einsum(spec, x, w):
  x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
  return np.einsum(spec, x, w)


def _dots(f, *args):
  """The dots of a traced function: [(lhs type, rhs type, result type)]."""
  eqns = jax.make_jaxpr(f)(*args).eqns
  found = []
  while eqns:
    eqn, *eqns = eqns
    if eqn.primitive.name in ('dot_general', 'conv_general_dilated'):
      values = (*eqn.invars, *eqn.outvars)
      found.append(tuple(str(v.aval.dtype) for v in values))
    for p in eqn.params.values():
      if hasattr(p, 'eqns'):
        eqns = [*p.eqns, *eqns]
      elif hasattr(p, 'jaxpr'):
        eqns = [*p.jaxpr.eqns, *eqns]
  return found


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

    x = (_normal(4, 16, seed=1) * 3).astype(x)
    q = making.leaf(_normal(16, 6).astype(w), 'int8', (-2,), axis=-2)
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
    x, q, _ = _operands('mk,kn->mn')
    text = str(jax.make_jaxpr(jc.lift(jnp.dot))(x, q))
    self.assertLess(text.index('dot_general'), text.index(' mul '))

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


def integer_oracle(x, axes):
  """(codes_x . codes_w) * s_x * s_w in numpy, for [..., k] times [k, n]."""
  x = np.asarray(x, np.float32)
  scale = np.abs(x).max(axes, keepdims=True) * np.float32(2 / 255)
  scale = np.maximum(scale, np.finfo(np.float32).tiny)
  codes = np.clip(np.rint(x * (np.float32(1) / scale)), -128, 127)
  return codes.astype(np.int64), scale


class IntegerTest(parameterized.TestCase):
  @parameterized.parameters(((3, 8),), ((2, 3, 8),), ((8,),))
  def test_equals_numpy(self, shape):
    x = _normal(*shape, seed=1)
    q = making.leaf(_normal(8, 6), 'int8', (-2,), axis=-2)
    y = jax.jit(jc.lift(jnp.dot, strict=True))(x, qarray.QDotArray(q))
    codes, scale = integer_oracle(x, -1)
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
    dots = _dots(jc.lift(f), x, qarray.QDotArray(q))
    self.assertIn(('int8', 'int8', 'int32'), dots)
    image, kernel = _normal(1, 8, 8, 4), _normal(3, 3, 4, 5)
    q = making.leaf(kernel, 'int8', (-4, -3, -2), axis=-2)
    dots = _dots(jc.lift(_conv()), image, qarray.QDotArray(q))
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
      ('int8', 'int8', 'int32'), _dots(jc.lift(jnp.dot), x, qarray.QDotArray(q))
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
    q = making.leaf(_normal(8, 6), 'int8', (-2,), axis=-2)
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


def _conv(
  strides=(1, 1), padding='SAME', numbers=('NHWC', 'HWIO', 'NHWC'), **kw
):
  return lambda x, w: lax.conv_general_dilated(
    x, w, strides, padding, dimension_numbers=numbers, **kw
  )


CONVS = dict(  # function, x, w, contracted axes of w
  plain=(_conv(), (2, 8, 8, 4), (3, 3, 4, 5)),
  strided=(_conv((2, 3)), (2, 8, 8, 4), (3, 3, 4, 5)),
  valid=(_conv(padding='VALID'), (2, 8, 8, 4), (3, 3, 4, 5)),
  dilated=(_conv(rhs_dilation=(2, 1)), (2, 8, 8, 4), (3, 3, 4, 5)),
  transposed=(
    _conv(padding=[(1, 2), (2, 1)], lhs_dilation=(2, 2)),
    (2, 4, 4, 4),
    (3, 3, 4, 5),
  ),
  grouped=(_conv(feature_group_count=2), (2, 8, 8, 4), (3, 3, 2, 6)),
  depthwise=(_conv(feature_group_count=4), (2, 8, 8, 4), (3, 3, 1, 8)),
  over_batch=(_conv(batch_group_count=2), (4, 8, 8, 3), (3, 3, 3, 4)),
  one_d=(_conv((1,), numbers=('NWC', 'WIO', 'NWC')), (2, 8, 4), (3, 4, 5)),
  three_d=(
    _conv((1, 1, 1), numbers=('NDHWC', 'DHWIO', 'NDHWC')),
    (2, 4, 4, 4, 3),
    (3, 3, 3, 3, 5),
  ),
  odd_numbers=(
    _conv(numbers=('HNCW', 'OWIH', 'CWNH')),
    (8, 2, 4, 7),
    (5, 3, 4, 3),
  ),
)


@functools.cache
def _quantized_kernel(name, format='int8', group=0):
  f, x, w = CONVS[name]
  out = -4 if name == 'odd_numbers' else -1
  rest = tuple(i for i in range(-len(w), 0) if i != out)
  shared = (-2,) if group else rest
  rng = np.random.default_rng(0)
  w = rng.normal(size=w).astype(np.float32)
  x = rng.normal(size=x).astype(np.float32)
  return f, jnp.asarray(x), *_quantize(w, format, shared, -2, group)


class ConvolutionTest(parameterized.TestCase):
  @parameterized.parameters(
    *((name, 'int8', 0) for name in CONVS),
    ('strided', 'int4', 0),
    ('grouped', 'int4', 2),
    ('one_d', 'int8', 3),
    ('odd_numbers', 'int4', 0),
  )
  def test_weight_only(self, name, format, group):
    f, x, q, w = _quantized_kernel(name, format, group)
    y = jax.jit(jc.lift(f))(x, q)
    np.testing.assert_allclose(y, f(x, w), atol=2e-5)
    (met,) = jc.explain(f)(x, q)
    self.assertEqual(met.native, name != 'over_batch')

  @parameterized.parameters(*CONVS)
  def test_integers(self, name):
    f, x, q, w = _quantized_kernel(name)
    y = np.asarray(jax.jit(jc.lift(f))(x, qarray.QDotArray(q)))
    # Both operands are rounded, one scale for each example; sums are exact.
    batch = 1 if name == 'odd_numbers' else 0
    axes = tuple(i for i in range(x.ndim) if i != batch)
    codes, scale = integer_oracle(x, axes)
    x_hat = jnp.asarray((codes * scale).astype(np.float32))
    if name == 'over_batch':
      x_hat = x  # it declines, so nothing is rounded
    np.testing.assert_allclose(y, f(x_hat, w), atol=2e-5)

  @parameterized.parameters('int8, int8 g8', 'MXFP8', 'MXINT8', 'NVFP4')
  def test_one_group_has_all_channels(self, scheme):
    # No block is recorded then, but every pixel has a scale of its own.
    f = lambda p, x: _conv()(x, p['kernel'])
    params = {'kernel': _normal(1, 1, 8, 3, seed=1)}
    x = _normal(2, 5, 5, 8)
    q = jc.quantize(params, [('kernel', scheme)], jc.uses(f)(params, x))
    y, want = jc.lift(f)(q, x), f(jc.materialize(q), x)
    bound = 0.2 if scheme == 'NVFP4' else 0.05
    self.assertLess(jnp.abs(y - want).max(), bound * jnp.abs(want).max())
    if scheme == 'int8, int8 g8':
      codes, scale = integer_oracle(x, (-1,))
      x_hat = jnp.asarray((codes * scale).astype(np.float32))
      want = f(jc.materialize(q), x_hat)
      np.testing.assert_allclose(y, want, atol=2e-5)

  def test_a_quantised_image(self):
    f, x, _, w = _quantized_kernel('plain')
    image = making.leaf(x, 'int8', (-1,), axis=-1)
    want = f(image.materialize(), w)
    np.testing.assert_allclose(jc.lift(f)(image, w), want, atol=1e-5)
    (met,) = jc.explain(f)(image, w)
    self.assertIn('image of a convolution', met.reason)

  @parameterized.product(dtype=(jnp.bfloat16, jnp.float16), act=(False, True))
  def test_half_precision_and_gradient(self, dtype, act):
    f, x, w = CONVS['plain']
    q = making.leaf(_normal(*w).astype(dtype), 'int8', (-4, -3, -2), axis=-2)
    leaf = qarray.QDotArray(q) if act else q
    x = _normal(*x, seed=1).astype(dtype)
    loss = lambda f, w: lambda x: f(x, w).astype(jnp.float32).sum()
    y, g = jax.jit(jax.value_and_grad(loss(jc.lift(f), leaf)))(x)
    want, g_want = jax.jit(jax.value_and_grad(loss(f, q.materialize())))(x)
    self.assertEqual(g.dtype, dtype)
    np.testing.assert_allclose(y, want, rtol=0.05, atol=8)
    np.testing.assert_allclose(
      np.asarray(g, np.float32), np.asarray(g_want, np.float32), atol=0.3
    )


INDICES = dict(
  one=jnp.int32(3),
  row=jnp.array([0, 5, 5]),
  matrix=jnp.array([[1, 2], [3, 11]]),
  negative=jnp.array([-1, -12, 4]),
  outside=jnp.array([0, 12, 99, -13]),
)


def _rows_of_one(w, i):
  numbers = lax.GatherDimensionNumbers((1, 2), (), (0,))
  return lax.gather(w, i[:, None], numbers, (1, 7))


class GatherTest(parameterized.TestCase):
  @parameterized.parameters(
    *((i, None, 'int8') for i in INDICES),
    *(('outside', mode, 'int4') for mode in (None, 'fill', 'clip', 'wrap')),
    *(('matrix', None, table) for table in ('groups', 'tensor')),
    ('negative', 'clip', 'tensor'),
  )
  def test_take(self, indices, mode, table):
    q, w = _quantize(
      _normal(12, 7),
      'int4' if table in ('int4', 'groups') else 'int8',
      (-2, -1) if table == 'tensor' else (-1,),
      -1,
      3 if table == 'groups' else 0,
    )
    f = lambda w, i: jnp.take(w, i, axis=0, mode=mode)
    i = INDICES[indices]
    got = jax.jit(jc.lift(f))(q, i)
    np.testing.assert_array_equal(got, f(w, i))
    if mode is None and indices == 'outside':
      self.assertTrue(bool(jnp.isnan(got[1]).all()))  # as jnp.take has it
    self.assertTrue(jc.explain(f)(q, i)[-1].native)

  @parameterized.named_parameters(
    dict(testcase_name='index', f=lambda w, i: w[i], native=True),
    dict(testcase_name='columns', f=lambda w, i: w[:, i % 7], native=False),
    dict(testcase_name='entries', f=lambda w, i: w[i, i % 7], native=False),
    dict(testcase_name='transposed', f=lambda w, i: w.T[:, i], native=True),
    dict(
      testcase_name='cast',
      f=lambda w, i: w.astype(jnp.bfloat16)[i],
      native=True,
    ),
    dict(
      testcase_name='fill',
      f=lambda w, i: jnp.take(w, i, axis=0, mode='fill', fill_value=2.0),
      native=False,
    ),
    dict(
      testcase_name='vmapped',
      f=lambda w, i: jax.vmap(lambda i: w[i])(i),
      native=False,
    ),
    dict(testcase_name='kept axis', f=_rows_of_one, native=True),
    dict(
      testcase_name='vmapped tables',
      f=lambda w, i: jax.vmap(lambda r, i: r[i])(w[:3], i % 7),
      native=False,
    ),
  )
  def test_indexing(self, f, native):
    q = making.leaf(_normal(12, 7), 'int4', (-1,), axis=-1)
    i = jnp.array([2, 8, 0])
    for leaf in (q, qarray.QDotArray(q)):
      got = jax.jit(jc.lift(f))(leaf, i)
      np.testing.assert_array_equal(got, f(q.materialize(), i))
      gathers = [m for m in jc.explain(f)(leaf, i) if m.primitive == 'gather']
      self.assertEqual([m.native for m in gathers], [native])

  def test_two_leading_axes(self):
    q = making.leaf(_normal(3, 4, 6), 'int8', (-1,), axis=-1)
    f = lambda w, i: w[i, i + 1]
    i = jnp.array([0, 2, 1])
    np.testing.assert_array_equal(jc.lift(f)(q, i), f(q.materialize(), i))

  def test_tied_embedding_is_not_made_dense(self):
    q = making.leaf(_normal(12, 8), 'int4', (-1,), axis=-1)
    f = lambda w, i: jnp.tanh(w[i]) @ w.T
    i = jnp.array([3, 1])
    want = f(q.materialize(), i)
    got = jax.jit(jc.lift(f, strict=True))(q, i)
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_only_the_rows_are_decoded(self):
    q = making.leaf(_normal(1000, 8), 'int8', (-1,), axis=-1)
    text = str(jax.make_jaxpr(jc.lift(lambda w, i: w[i]))(q, jnp.array([3])))
    self.assertNotIn('f32[1000,8]', text)


if __name__ == '__main__':
  absltest.main()
