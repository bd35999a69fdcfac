"""Products that do what follows them, too: the law, and that they do."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import fuzz_oracle
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.kernels import curves
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.kernels.leaves import plan

W = jax.random.normal(jax.random.key(0), (96, 70)) / 10
X = jax.random.normal(jax.random.key(1), (2, 5, 96))
A = jax.random.uniform(jax.random.key(2), (70,)) - 0.5
B = jax.random.normal(jax.random.key(3), (70,))
SCHEMES = (
  'W8A8',
  'int8, int8 token',
  'W4A16',
  'int8 asym, int8 asym',
  'int4 g32, int8',
  'NF4',
  'int4, int4',
)


C = jax.random.normal(jax.random.key(6), (2, 5, 70))
KINDS = {
  'gelu': lambda y, c: jax.nn.gelu(y),
  'silu': lambda y, c: jax.nn.silu(y),
  'sigmoid': lambda y, c: jax.nn.sigmoid(y),
  'tanh': lambda y, c: jnp.tanh(y),
  'exact_gelu': lambda y, c: jax.nn.gelu(y, approximate=False),
  'relu6': lambda y, c: jax.nn.relu6(y),
  'hard_sigmoid': lambda y, c: jax.nn.hard_sigmoid(y),
  'hard_swish': lambda y, c: jax.nn.hard_swish(y),
  'leaky_relu': lambda y, c: jax.nn.leaky_relu(y),
  'squared_relu': lambda y, c: jnp.square(jax.nn.relu(y)),
  'elu': lambda y, c: jax.nn.elu(y),
  'softplus': lambda y, c: jax.nn.softplus(y),
  'mish': lambda y, c: jax.nn.mish(y),
  'a sum': lambda y, c: c + y,
  'a sum, then relu': lambda y, c: jax.nn.relu(y + c),
  'a gate': lambda y, c: jax.nn.silu(c) * y,
  'everything': lambda y, c: jax.nn.relu(jax.nn.gelu(y) * c),
}


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


def _dense(p, x):
  return jax.nn.relu((x @ p['w'] - p['b']) * p['a'] + p['b'])


def _windows(w, x):
  return lax.conv_general_dilated(
    x,
    w,
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1] // w.shape[2],
  )


def _conv(p, x):
  y = _windows(p['w'], x)
  return jnp.maximum((y - p['b']) * p['a'] + p['b'], 0.0)


def _tree(w):
  n = w.shape[-1]
  one = lambda p: p[:n].reshape((1,) * (w.ndim - 1) + (n,))
  # Of three axes for products of rows with two.
  one_more = (lambda p: one(p)[None]) if w.ndim == 2 else one
  return {'w': w, 'a': one_more(A), 'b': one_more(B)}


def _packed(f, params, x, scheme):
  uses = jc.uses(f)(params, x)
  q = jc.quantize(params, [('w', scheme), ('.*', None)], uses)
  return q, jc.pack(q, uses, sparse=True)


def _distance(y, expected):
  return float(jnp.abs(y - expected).max() / jnp.abs(expected).max())


class EpilogueTest(parameterized.TestCase):
  def _check(self, f, params, x, scheme, bound=2e-5):
    q, p = _packed(f, params, x, scheme)
    run = jax.jit(jc.lift(f, strict=True))
    y = run(p, x)
    self.assertLess(_distance(y, run(q, x)), bound)
    self.assertGreater(float((y == 0).mean()), 0.1)
    text = run.lower(p, x).as_text()
    for op in ('maximum', 'subtract'):
      self.assertNotIn(f'stablehlo.{op}', text)
    return q, p

  @parameterized.parameters(*SCHEMES)
  def test_dense(self, scheme):
    self._check(_dense, _tree(W), X, scheme)

  @parameterized.product(kind=list(KINDS), scheme=['W8A8', 'W4A16', 'int8'])
  def test_curves_and_others(self, kind, scheme):
    f = lambda p, x: KINDS[kind](x @ p['w'] + p['b'], p['c'])
    params = {'w': W, 'b': B[None, None], 'c': C}
    q, p = _packed(f, params, X, scheme)
    run = jax.jit(jc.lift(f, strict=True))
    self.assertLess(_distance(run(p, X), run(q, X)), 2e-5)
    self.assertNotIn('stablehlo.tanh', run.lower(p, X).as_text())
    grad = lambda p: jax.grad(
      lambda c, x: jnp.sum(jc.lift(f)({**p, 'c': c}, x) ** 2), argnums=(0, 1)
    )(C, X)
    for g, w in zip(grad(p), grad(q), strict=True):
      self.assertLessEqual(jnp.abs(g - w).max(), 1e-4 * jnp.abs(w).max())

  @parameterized.parameters(*curves.CURVES)
  def test_ways_of_writing_a_curve(self, name):
    f = lambda p, x: curves.CURVES[name](x @ p['w']) * p['a'] + p['b']
    q, p = _packed(f, _tree(W), X, 'W8A8')
    run = jax.jit(jc.lift(f))
    self.assertLess(_distance(run(p, X), run(q, X)), 2e-5)
    program = run.lower(p, X).as_text()
    self.assertIn(f'curve = "{curves.kernel(name)}"', program)
    for op in ('maximum', 'clamp', 'add', 'logistic'):
      self.assertNotIn(f'stablehlo.{op}', program)

  @parameterized.product(path=native.paths(), kind=list(KINDS))
  def test_curves_on_every_path(self, path, kind):
    f = lambda p, x: KINDS[kind](x @ p['w'], p['c'])
    q, p = _packed(f, {'w': W, 'c': C}, X, 'W8A8')
    p['w'] = plan.with_paths(p['w'], ((10, path),))
    f = jax.jit(jc.lift(f))
    self.assertLess(_distance(f(p, X), f(q, X)), 2e-5)

  @parameterized.parameters(*fuzz_oracle.CURVES)
  def test_values_of_curves(self, kind):
    """Of single results, small, large, and at the ends of what floats hold."""
    values = np.concatenate(
      [np.linspace(-30, 30, 4001), 10.0 ** np.arange(-30, 9), [0.0, np.nan]]
    )
    x = np.concatenate([values, -values]).astype(np.float32)[:, None]
    f = lambda p, x: KINDS[kind](x @ p['w'], None)
    _, p = _packed(f, {'w': jnp.ones((1, 4))}, x, 'int8')
    got = jax.jit(jc.lift(f))(p, x)[:, 0]
    # x is rounded to three digits: what the curve meets.
    x = jax.jit(jc.lift(lambda p, x: x @ p['w']))(p, x)[:, 0]
    x = np.asarray(x, np.float64)
    with np.errstate(over='ignore'):
      want = fuzz_oracle.CURVES[kind](x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-28)

  @parameterized.product(path=native.paths(), kind=list(fuzz_oracle.CURVES))
  def test_curves_of_infinities(self, path, kind):
    """Weights that are floats let them through, and relu does not hide NaN."""
    x = jnp.array([[jnp.inf], [-jnp.inf], [jnp.nan], [2.0]])
    f = lambda p, x: jax.nn.relu(KINDS[kind](x @ p['w'], None))
    _, p = _packed(f, {'w': jnp.ones((1, 4))}, x, 'NF4')
    p['w'] = plan.with_paths(p['w'], ((10, path),))
    got = jax.jit(jc.lift(f))(p, x)[:, 0]
    np.testing.assert_allclose(got, f({'w': jnp.ones((1, 1))}, x)[:, 0], 1e-5)

  @parameterized.product(
    kind=['a sum, then relu', 'gelu', 'a gate'],
    shape=[(3, 3, 16, 24), (3, 3, 8, 24), (3, 3, 1, 16)],
    numbers=[('NHWC', 'HWIO', 'NHWC'), ('NHWC', 'HWIO', 'WNHC')],
  )
  def test_curves_of_convolutions(self, kind, shape, numbers):
    w = jax.random.normal(jax.random.key(4), shape) / 5
    x = jax.random.normal(jax.random.key(5), (2, 7, 9, 16))

    def conv(p, x):
      return lax.conv_general_dilated(
        x,
        p['w'],
        (1, 1),
        'SAME',
        dimension_numbers=numbers,
        feature_group_count=16 // shape[2],
      )

    c = jax.random.normal(
      jax.random.key(6), jax.eval_shape(conv, {'w': w}, x).shape
    )
    f = lambda p, x: KINDS[kind](conv(p, x), p['c'])
    q, p = _packed(f, {'w': w, 'c': c}, x, 'W8A8')
    run = jax.jit(jc.lift(f, strict=True))
    self.assertLess(_distance(run(p, x), run(q, x)), 2e-5)

  def test_others_are_stacked_or_shared(self):
    f = lambda p, x, c: x @ p['w'] + c
    q, p = _packed(lambda p, x: x @ p['w'], {'w': W}, X, 'W8A8')
    for axes in ((None, 0, 0), (None, 0, None), (None, None, 0)):
      over = jax.vmap(jc.lift(f), axes)
      x, c = X if axes[1] == 0 else X[0], C if axes[2] == 0 else C[0]
      run = jax.jit(over)
      self.assertLess(_distance(run(p, x, c), run(q, x, c)), 2e-5)

  @parameterized.parameters(*native.paths())
  def test_every_path(self, path):
    q, p = _packed(_dense, _tree(W), X, 'W8A8')
    p['w'] = plan.with_paths(p['w'], ((10, path),))
    f = jax.jit(jc.lift(_dense))
    self.assertLess(_distance(f(p, X), f(q, X)), 2e-5)

  @parameterized.product(
    shape=[(3, 3, 16, 24), (3, 3, 8, 24), (3, 3, 1, 16)],
    scheme=['W8A8', 'int8, int8 token', 'int8', 'int8 asym, int8 asym'],
  )
  def test_convolutions(self, shape, scheme):
    w = jax.random.normal(jax.random.key(4), shape) / 5
    x = jax.random.normal(jax.random.key(5), (2, 7, 9, 16))
    self._check(_conv, _tree(w), x, scheme)

  def test_without_zeros(self):
    w = jnp.where(jnp.arange(96)[:, None] % 4 == 0, W, 0.0)
    _, p = self._check(_dense, _tree(w), X, 'W8A8')
    self.assertIsNotNone(p['w'].plan.sparse)

  def test_weights_of_floats(self):
    w = jnp.where(jnp.arange(96)[:, None] % 4 == 0, W, 0.0)
    f = lambda p, x: jax.nn.relu(x @ p['w'] + p['b'])
    params = _tree(w)
    p = jc.pack(params, jc.uses(f)(params, X), sparse=True)
    self.assertIsNotNone(p['w'].plan.sparse)
    got = jax.jit(jc.lift(f, strict=True))(p, X)
    self.assertLess(_distance(got, f(params, X)), 1e-5)
    # A factor is for scales, which it has none of: XLA multiplies.
    got = jax.jit(jc.lift(_dense))(p, X)
    self.assertLess(_distance(got, _dense(params, X)), 1e-5)

  def test_derivatives(self):
    q, p = _packed(_dense, _tree(W), X, 'W8A8')
    loss = lambda p, x: jnp.sum(jc.lift(_dense)(p, x) ** 2)
    of_rest = lambda rest, q, x: loss({**q, **rest}, x)
    rest = {n: p[n] for n in 'ab'}
    grad = jax.jit(jax.grad(of_rest, argnums=(0, 2)))
    got, want = grad(rest, p, X), grad(rest, q, X)
    for g, w in zip(*map(jax.tree.leaves, (got, want)), strict=True):
      self.assertLess(_distance(g, w), 1e-4)

  def test_bfloat16(self):
    half = lambda t: jax.tree.map(lambda a: a.astype(jnp.bfloat16), t)
    q, p = _packed(_dense, half(_tree(W)), half(X), 'W8A8')
    f = jax.jit(jc.lift(_dense))
    y = f(p, half(X))
    self.assertEqual(y.dtype, jnp.bfloat16)
    self.assertLess(_distance(y.astype(jnp.float32), f(q, half(X))), 0.03)
    f = lambda p, x: jax.nn.gelu(x @ p['w']) + p['c']
    q, p = _packed(f, half({'w': W, 'c': C}), half(X), 'W8A8')
    y, want = (jax.jit(jc.lift(f))(t, half(X)) for t in (p, q))
    self.assertEqual(y.dtype, jnp.bfloat16)
    self.assertLess(_distance(y.astype(jnp.float32), want), 0.03)

  def test_results_wider_than_operands(self):
    """A float32 residual of bfloat16 operands is not rounded."""
    half = jnp.bfloat16
    f = lambda p, x: (
      p['c'] + jnp.matmul(x, p['w'], preferred_element_type=jnp.float32)
    )
    params = {'w': W.astype(half), 'c': C + 1000}
    q, p = _packed(f, params, X.astype(half), 'W8A8')
    y, want = (jax.jit(jc.lift(f))(t, X.astype(half)) for t in (p, q))
    self.assertEqual(y.dtype, jnp.float32)
    np.testing.assert_allclose(y, want, rtol=1e-6)

  def test_a_depthwise_norm_before_a_curve(self):
    w = jax.random.normal(jax.random.key(4), (3, 3, 1, 16)) / 5
    x = jax.random.normal(jax.random.key(5), (2, 7, 9, 16))
    f = lambda p, x: jax.nn.silu((_windows(p['w'], x) - p['b']) * p['a']) + x
    q, p = _packed(f, _tree(w), x, 'W8A8')
    run = jax.jit(jc.lift(f, strict=True))
    self.assertLess(_distance(run(p, x), run(q, x)), 2e-5)
    # Of the norm nothing is left but what is made of its parameters.
    self.assertNotIn('stablehlo.subtract', run.lower(p, x).as_text())

  def test_nan_stays(self):
    _, p = _packed(_dense, _tree(W), X, 'W8A8')
    y = jax.jit(jc.lift(_dense))(p, X.at[0, 0, 0].set(jnp.nan))
    self.assertTrue(bool(jnp.isnan(y[0, 0]).all()))
    self.assertFalse(bool(jnp.isnan(y[0, 1:]).any()))

  def test_stacks_under_vmap_and_scan(self):
    w = jnp.stack([W, -W, 2 * W])
    f = lambda w, x: jax.nn.relu(x @ w['w'] + B[None])
    apply = lambda p, x: jax.vmap(f, (0, None))(p, x[0])
    uses = jc.uses(apply)({'w': w}, X)
    q = jc.quantize({'w': w}, [('w', 'W4A16')], uses)
    p = jc.pack(q, uses)
    run = jax.jit(jc.lift(apply))
    self.assertLess(_distance(run(p, X), run(q, X)), 2e-5)
    each = lambda p, x: lax.scan(lambda c, w: (c, f({'w': w}, x[0])), 0, p['w'])
    run = jax.jit(lambda p, x: jc.lift(each)(p, x)[1])
    self.assertLess(_distance(run(p, X), run(q, X)), 2e-5)

  def test_a_batch_norm(self):
    net = nnx.Sequential(
      nnx.Conv(8, 32, (3, 3), rngs=nnx.Rngs(0)),
      nnx.BatchNorm(32, use_running_average=True, rngs=nnx.Rngs(1)),
      nnx.relu,
    )
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    apply = lambda p, x: nnx.merge(graph, p, rest)(x)
    x = jax.random.normal(jax.random.key(5), (2, 8, 8, 8))
    uses = jc.uses(apply)(params, x)
    q = jc.quantize(params, [('.*kernel', 'W8A8'), ('.*', None)], uses)
    p = jc.pack(q, uses)
    f = jax.jit(jc.lift(apply, strict=True))
    np.testing.assert_allclose(f(p, x), f(q, x), atol=1e-4)
    self.assertNotIn('stablehlo.maximum', f.lower(p, x).as_text())

  def test_what_is_added_is_a_leaf_too(self):
    _, p = _packed(_dense, _tree(W), X, 'W8A8')
    f = lambda p, x: jax.nn.relu(x @ p['w'] + p['b'])
    comp = jc.methods.gradual([('b', jc.Sparsity(0.5, end=1))])
    b = {'b': p['b']}
    masked = comp.apply(b, comp.update(comp.init(b), b, jc.Info(5)))
    self.assertIn('mask', masked['b'].describe())
    want = jc.lift(f)({**p, 'b': jc.materialize(masked['b'])}, X)
    self.assertLess(_distance(jc.lift(f)({**p, **masked}, X), want), 1e-6)

  def test_observed_is_left_alone(self):
    q, p = _packed(_dense, _tree(W), X, 'W8A8')
    del q
    y, _ = jc.observe(_dense, {'w': jc.statistics.minmax('tensor')})(p, X)
    self.assertLess(_distance(y, jc.lift(_dense)(p, X)), 1e-5)


if __name__ == '__main__':
  absltest.main()
