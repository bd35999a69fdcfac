"""Several products with one input, a norm in front: `dispatch.products`, the law."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.kernels import dispatch
from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import norms
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.kernels.leaves import plan
from jaxopt_compress.kernels.leaves import portable

K = 96
SIZES = (70, 32, 1)
NORMS = {
  'none': None,
  'layer': norms.Norm(
    jax.random.uniform(jax.random.key(1), (K,)) + 0.5,
    jax.random.normal(jax.random.key(2), (K,)),
    1e-5,
  ),
  'rms': norms.Norm(
    jax.random.uniform(jax.random.key(3), (K,)) + 0.5, centered=False
  ),
  'bare': norms.Norm(),
}
SCHEMES = (
  'W8A8',
  'int8, int8 token asym',
  'W4A16',
  'int4 g32, int8',
  'NF4',
)
X = jax.random.normal(jax.random.key(0), (2, 20, K)) + 0.5


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


def _weights(scheme, sizes=SIZES, path=''):
  """Leaves of k rows and so many columns, packed."""
  params = {
    f'w{i}': jax.random.normal(jax.random.key(10 + i), (K, n)) / 10
    for i, n in enumerate(sizes)
  }

  def f(p, x):
    return [x @ w for w in p.values()]

  uses = jc.uses(f)(params, X)
  rules = [('.*', scheme)]
  ranges = None
  if 'static' in scheme:
    ranges = jc.calibrate(f, params, rules, [X], uses=uses)
  q = jc.quantize(params, rules, uses, ranges=ranges)
  packed = jc.pack(q, uses, target='cpu').values()
  return [plan.with_paths(w, ((40, path),)) if path else w for w in packed]


def _products(x, weights, norm=None, keep=False, finish=None):
  """Of rows [..., k], in the shape that rules give them."""
  n = len(weights)
  return dispatch.products(
    x, weights, [x.dtype] * n, finish or [None] * n, norm, keep
  )


def _distance(y, expected):
  y, expected = np.float64(y), np.float64(expected)
  return np.abs(y - expected).max() / np.abs(expected).max()


def _calls(f, *args):
  return jax.jit(f).lower(*args).as_text().count('@jaxopt_compress_matmul')


class ProductsTest(parameterized.TestCase):
  def _check(self, x, weights, norm, keep, bound):
    """That products are those of the norm, one by one."""
    got = jax.jit(lambda x: _products(x, weights, norm, keep))(x)
    rows = x if norm is None else norm(x)
    if keep:
      self.assertEqual(got[-1].dtype, x.dtype)
      self.assertLess(_distance(got[-1], rows), 2e-6)
    self.assertLen(got, len(weights) + keep)
    for y, w in zip(got, weights):
      want = dispatch.product(rows, w, x.dtype)
      self.assertEqual(y.shape, want.shape)
      self.assertEqual(y.dtype, want.dtype)
      self.assertLess(_distance(y, want), bound)

  @parameterized.product(scheme=SCHEMES, norm=list(NORMS))
  def test_schemes_and_norms(self, scheme, norm):
    # A code half way between two may fall to either.
    bound = 2e-6 if scheme in ('W4A16', 'NF4') or norm == 'none' else 3e-3
    x = X.reshape(-1, K)
    self._check(x, _weights(scheme), NORMS[norm], norm != 'none', bound)

  @parameterized.product(path=native.paths(), rows=(1, 5, 16, 40))
  def test_paths(self, path, rows):
    x = X.reshape(-1, K)[:rows]
    weights = _weights('W4A16', path=path)
    self._check(x, weights, NORMS['layer'], True, 2e-6)
    weights = _weights('W8A8', path=path)
    self._check(x, weights, NORMS['layer'], True, 3e-3)

  def test_bfloat16(self):
    x = X.astype(jnp.bfloat16)
    weights = [
      jax.tree.map(lambda p: jnp.stack([p] * 2), w) for w in _weights('W8A8')
    ]
    got = jax.jit(lambda x: _products(x, weights, NORMS['layer'], True))(x)
    rows = NORMS['layer'](x)
    self.assertEqual(got[-1].dtype, jnp.bfloat16)
    self.assertLess(_distance(got[-1], rows), 2**-7)
    for y, w in zip(got, weights):
      want = dispatch.product(rows, w, x.dtype)
      self.assertLess(_distance(y, want), 2e-2)

  def test_is_one_call(self):
    x, norm = X[0], NORMS['layer']

    def run(x, *weights):
      return _products(x, weights, norm, True)

    self.assertEqual(_calls(run, x, *_weights('W8A8')), 1)
    # Ranges of all rows are measured before, and other formats are other calls.
    self.assertEqual(_calls(run, x, *_weights('int8, int8 tensor')), 1)
    mixed = _weights('W8A8')[:2] + _weights('W4A16')[:1]
    self.assertEqual(_calls(run, x, *mixed), 3)
    self._check(x, mixed, norm, True, 3e-3)
    self._check(x, _weights('int8, int8 tensor'), norm, True, 3e-3)

  @parameterized.product(
    scheme=(
      'int8, int8 tensor static',
      # Rows of these are rounded before the library has them.
      'int8, e4m3 tensor static',
      'nf4, int8 tensor static',
    ),
    ranges=((0.02, 0.03), (0.02, 0.02)),
  )
  def test_given_ranges(self, scheme, ranges):
    """Codes are made for each range."""
    weights = [
      dataclasses.replace(w, act_scale=jnp.full((1, 1), r))
      for w, r in zip(_weights(scheme)[:2], ranges)
    ]
    self._check(X[0], weights, NORMS['rms'], True, 2e-2)
    self._check(X[0], weights, None, False, 2e-6)

  def test_epilogues(self):
    weights = _weights('W8A8')
    shift = jax.random.normal(jax.random.key(5), (SIZES[0],))
    other = jax.random.normal(jax.random.key(6), (20, SIZES[1]))
    finish = [
      epilogues.Epilogue(shift=shift, curve='gelu'),
      epilogues.Epilogue(other=other, times=True),
      epilogues.Epilogue(relu=jax.nn.relu),
    ]
    got = jax.jit(lambda x: _products(x, weights, finish=finish))(X[0])
    for y, w, then in zip(got, weights, finish, strict=True):
      want = then(dispatch.product(X[0], w, X.dtype))
      self.assertLess(_distance(y, want), 2e-5)

  def test_derivative(self):
    weights, norm = _weights('W4A16'), NORMS['layer']

    def loss(products, x, norm):
      y = products(x, weights, norm, True)
      return sum(jnp.sum(jnp.sin(p)) for p in y)

    def dense(x, weights, norm, keep):
      rows = norm(x)
      y = [rows @ portable.materialize(w) for w in weights]
      return (*y, rows)

    got = jax.grad(loss, (1, 2))(_products, X[0], norm)
    want = jax.grad(loss, (1, 2))(dense, X[0], norm)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      self.assertLess(_distance(g, w), 1e-4)

  @parameterized.parameters(None, 0)
  def test_vmap(self, axis):
    """Over rows, and over vectors of the norm as well."""
    weights, norm = _weights('W4A16'), NORMS['layer']
    if axis == 0:
      norm = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), norm)

    def run(x, norm):
      return _products(x, weights, norm, True)

    got = jax.jit(jax.vmap(run, (0, axis)))(X, norm)
    for i in range(2):
      one = norm if axis is None else jax.tree.map(lambda p, i=i: p[i], norm)
      for y, want in zip(got, run(X[i], one), strict=True):
        self.assertLess(_distance(y[i], want), 2e-6)

  def test_shard_map(self):
    weights, norm = _weights('W8A8'), NORMS['layer']
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('x',))
    spec = jax.sharding.PartitionSpec('x')
    x = X.reshape(-1, K)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=spec, out_specs=spec)
    def run(x):
      return _products(x, weights, norm, True)

    for y, want in zip(run(x), _products(x, weights, norm, True), strict=True):
      self.assertLess(_distance(y, want), 3e-3)

  def test_rows_that_are_not_finite(self):
    x = X[0].at[3, 4].set(jnp.nan).at[5, 6].set(jnp.inf)
    *got, rows = _products(x, _weights('W8A8'), NORMS['layer'], True)
    bad = np.zeros(20, bool)
    bad[[3, 5]] = True
    for y in (*got, rows):
      np.testing.assert_array_equal(np.isnan(y).any(-1), bad)

  def test_no_rows(self):
    got = _products(X[0][:0], _weights('W8A8'), NORMS['layer'], True)
    self.assertEqual([y.shape for y in got], [(0, n) for n in (*SIZES, K)])


if __name__ == '__main__':
  absltest.main()
