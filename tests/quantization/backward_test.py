"""The backward pass on codes: real integer and float8 products, and it trains."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc

_RNG = np.random.default_rng(0)


def _rand(*shape):
  return jnp.asarray(_RNG.normal(size=shape).astype(np.float32))


def _conv(strides=(1, 1), dilation=(1, 1), groups=1):
  return lambda p, x: lax.conv_general_dilated(
    x,
    p['w'],
    strides,
    'SAME',
    rhs_dilation=dilation,
    feature_group_count=groups,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


CASES = {
  'dot': (lambda p, x: x @ p['w'], (16, 8), (5, 16)),
  'dot, weight first': (lambda p, x: p['w'].T @ x.T, (16, 8), (5, 16)),
  'heads': (
    lambda p, x: jnp.einsum('bthd,hdo->bto', x, p['w']),
    (4, 6, 8),
    (2, 3, 4, 6),
  ),
  'experts': (
    lambda p, x: jnp.einsum('beh,eho->beo', x, p['w']),
    (3, 16, 8),
    (5, 3, 16),
  ),
  'scan, remat': (
    lambda p, x: lax.scan(
      jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None)), x, p['w']
    )[0],
    (3, 16, 16),
    (5, 16),
  ),
  'conv': (_conv(), (3, 3, 8, 16), (2, 6, 6, 8)),
  'conv, strided': (_conv((2, 2)), (3, 3, 8, 16), (2, 6, 6, 8)),
  'conv, dilated': (_conv((1, 1), (2, 2)), (3, 3, 8, 16), (2, 6, 6, 8)),
  'ragged': (
    lambda p, x: lax.ragged_dot(x, p['w'], jnp.array([3, 0, 4])),
    (3, 16, 8),
    (7, 16),
  ),
}


# Other arrangements of operands, and how many of the two products of the backward
# pass are of codes: one that sums over nothing is not.
ARRANGEMENTS = {
  'one row': (lambda p, x: x @ p['w'], (16, 8), (16,), 1),
  'rows in a scan': (
    lambda p, x: lax.scan(lambda c, x: (c, x @ p['w']), 0.0, x)[1],
    (16, 8),
    (5, 16),
    1,
  ),
  'a row for each expert': (
    lambda p, x: jnp.einsum('ei,eio->eo', x, p['w']),
    (3, 16, 8),
    (3, 16),
    1,
  ),
  'grouped': (_conv(groups=2), (3, 3, 4, 16), (2, 6, 6, 8), 2),
  'depthwise': (_conv((2, 2), groups=8), (3, 3, 1, 16), (2, 6, 6, 8), 2),
  'transposed': (
    lambda p, x: lax.conv_transpose(
      x, p['w'], (2, 2), 'SAME', transpose_kernel=True
    ),
    (3, 3, 16, 8),
    (2, 6, 6, 8),
    2,
  ),
  'a kernel for each image': (
    lambda p, x: jax.vmap(lambda w, x: _conv()({'w': w}, x[None]))(p['w'], x),
    (2, 3, 3, 4, 8),
    (2, 6, 6, 4),
    2,
  ),
}


def _grads(f, scheme, w, x):
  """Gradients of a quantised and of the float product, same cotangent."""
  uses = jc.uses(f)({'w': w}, x)
  comp = jc.fake_quantize([('w', scheme)], uses)
  g = _RNG.normal(size=jax.eval_shape(f, {'w': w}, x).shape)

  def loss(f, apply):
    return lambda w, x: jnp.vdot(f(apply({'w': w}), x), jnp.float32(g))

  quantised = loss(jc.lift(f), lambda p: comp.apply(p, comp.init(p)))
  dense = loss(f, lambda p: p)
  return [jax.grad(loss, (0, 1)) for loss in (quantised, dense)]


def _products(lowered):
  """The types of the operands of each product."""
  return re.findall(
    r'stablehlo\.(?:dot_general|convolution).*? : \(tensor<\d[\dx]*x(\w+)>,'
    r' tensor<\d[\dx]*x(\w+)>\)',
    lowered.as_text(),
  )


class _Case(parameterized.TestCase):
  """Draws the same numbers whatever ran before."""

  def setUp(self):
    super().setUp()
    global _RNG
    _RNG = np.random.default_rng(0)


class BackwardTest(_Case):
  @parameterized.product(
    case=tuple(CASES),
    scheme=(
      'int8, int8, int8',
      'int8, int8, int8 stochastic',
      'e4m3, e4m3, e5m2',
    ),
  )
  def test_close_to_the_float_gradient(self, case, scheme):
    f, w_shape, x_shape = CASES[case]
    w, x = _rand(*w_shape) / 4, _rand(*x_shape)
    quantised, dense = _grads(f, scheme, w, x)
    for got, want in zip(jax.jit(quantised)(w, x), dense(w, x), strict=True):
      error = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
      # Forward rounding moves tanh of the scan; the products themselves less.
      bound = 0.04 if scheme.startswith('int8') else 0.2
      self.assertLess(float(error), bound)
      self.assertGreater(float(error), 1e-5)

  @parameterized.product(
    case=('dot', 'heads', 'experts', 'conv', 'conv, strided', 'conv, dilated'),
    scheme=('int8, int8, int8', 'e4m3, e4m3, e5m2'),
  )
  def test_products_are_of_codes(self, case, scheme):
    f, w_shape, x_shape = CASES[case]
    w, x = _rand(*w_shape), _rand(*x_shape)
    quantised, _ = _grads(f, scheme, w, x)
    products = _products(jax.jit(quantised).lower(w, x))
    self.assertNotEmpty(products)
    integer = scheme.startswith('int8')
    kind = {'i8'} if integer else {'f8E4M3FN', 'f8E5M2'}
    on_codes = [p for p in products if set(p) <= kind]
    if case.startswith('conv') and not integer:
      # XLA has no convolution of two different float8 types.
      self.assertEmpty(on_codes)
      return
    # Of a linear loss nothing but the two products of the backward pass is left.
    self.assertLen(products, 2)
    self.assertEqual(on_codes, products)

  @parameterized.product(
    case=tuple(ARRANGEMENTS),
    scheme=('int8, int8, int8', 'int8, int8 asym, int8'),
  )
  def test_every_arrangement(self, case, scheme):
    f, w_shape, x_shape, on_codes = ARRANGEMENTS[case]
    w, x = _rand(*w_shape), _rand(*x_shape)
    quantised, dense = _grads(f, scheme, w, x)
    lowered = jax.jit(quantised).lower(w, x)
    found = _products(lowered)
    if 'asym' not in scheme:  # zero points are products, too
      self.assertEqual(found.count(('i8', 'i8')), on_codes)
      self.assertLen(found, 2)
    for got, want in zip(lowered.compile()(w, x), dense(w, x), strict=True):
      error = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
      self.assertLess(float(error), 0.02)

  @parameterized.named_parameters(
    ('dot', CASES['dot'][0], (16, 8), (0, 16)),
    ('conv', _conv(groups=2), (3, 3, 4, 16), (0, 6, 6, 8)),
    (
      'ragged',
      lambda p, x: lax.ragged_dot(x, p['w'], jnp.array([0, 0, 0])),
      (3, 16, 8),
      (0, 16),
    ),
  )
  def test_an_empty_batch_has_a_gradient_of_zero(self, f, w_shape, x_shape):
    w, x = _rand(*w_shape), _rand(*x_shape)
    quantised, _ = _grads(f, 'int8, int8, int8', w, x)
    dw, dx = jax.jit(quantised)(w, x)
    np.testing.assert_array_equal(dw, np.zeros(w_shape))
    self.assertEqual(dx.shape, x_shape)

  @parameterized.parameters('int8, int8, int8', 'e4m3, e4m3, e5m2')
  def test_trains_as_float_does(self, scheme):
    rng = np.random.default_rng(1)
    _rand = lambda *s: jnp.asarray(rng.normal(size=s).astype(np.float32))
    teacher = {'a': _rand(16, 32) / 4, 'b': _rand(32, 4) / 5}
    x = _rand(256, 16)
    f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
    y = f(teacher, x)
    start = {'a': _rand(16, 32) / 4, 'b': _rand(32, 4) / 5}
    uses = jc.uses(f)(start, x)

    def train(comp):
      def loss(p):
        return jnp.square(jc.lift(f)(comp.apply(p, ()), x) - y).mean()

      step = jax.jit(
        lambda p: jax.tree.map(lambda v, g: v - 0.5 * g, p, jax.grad(loss)(p))
      )
      p = start
      for _ in range(600):
        p = step(p)
      return float(loss(p))

    plain = train(jc.chain())
    quantised = train(jc.fake_quantize([('.*', scheme)], uses))
    self.assertLess(plain, 0.05 * float(jnp.square(y).mean()))
    self.assertLess(quantised, 1.5 * plain + 5e-3)

  def test_under_shard_map_and_vmap(self):
    f, w_shape, x_shape = CASES['dot']
    w, x = _rand(*w_shape), _rand(8, 16)
    comp = jc.fake_quantize([('w', 'int8, int8, int8')], uses=in_out.IN_OUT)

    def loss(w, x):
      return jnp.square(jc.lift(f)(comp.apply({'w': w}, ()), x)).sum()

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('d',))

    def grads(w, x):
      w = lax.pcast(w, ('d',), to='varying')
      return lax.psum(jax.grad(loss)(w, x), 'd')

    run = jax.shard_map(grads, mesh=mesh, in_specs=(P(), P('d')), out_specs=P())
    want = jax.grad(loss)(w, x)
    # Each device rounds by its own ranges.
    error = jnp.linalg.norm(jax.jit(run)(w, x) - want) / jnp.linalg.norm(want)
    self.assertLess(float(error), 0.02)
    each = jax.vmap(jax.grad(loss), (None, 0))(w, x.reshape(4, 2, 16))
    parts = [jax.grad(loss)(w, part) for part in x.reshape(4, 2, 16)]
    np.testing.assert_allclose(each, jnp.stack(parts), rtol=1e-4, atol=1e-4)

  def test_formats_that_do_not_multiply(self):
    for words in ('int8, int8, e5m2', 'int4, e4m3, int8'):
      with self.assertRaisesRegex(ValueError, 'integers with integers'):
        jc.quantization.schemes.scheme(words)


if __name__ == '__main__':
  absltest.main()
