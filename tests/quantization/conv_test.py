"""Convolutions with quantised kernels against the dense array."""

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
  return f, jnp.asarray(x), *making.quantized(w, format, shared, -2, group)


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
    self.assertTrue(met.native)

  @parameterized.parameters(*CONVS)
  def test_integers(self, name):
    f, x, q, w = _quantized_kernel(name)
    y = np.asarray(jax.jit(jc.lift(f))(x, qarray.QDotArray(q)))
    # Both operands are rounded, one scale for each example; sums are exact.
    batch = 1 if name == 'odd_numbers' else 0
    axes = tuple(i for i in range(x.ndim) if i != batch)
    codes, scale = making.integer_oracle(x, axes)
    x_hat = jnp.asarray((codes * scale).astype(np.float32))
    np.testing.assert_allclose(y, f(x_hat, w), atol=2e-5)

  @parameterized.parameters('int8, int8 g8', 'MXFP8', 'MXINT8', 'NVFP4')
  def test_one_group_has_all_channels(self, scheme):
    # No block is recorded then, but every pixel has a scale of its own.
    f = lambda p, x: _conv()(x, p['kernel'])
    params = {'kernel': making.normal(1, 1, 8, 3, seed=1)}
    x = making.normal(2, 5, 5, 8)
    q = jc.quantize(params, [('kernel', scheme)], jc.uses(f)(params, x))
    y, want = jc.lift(f)(q, x), f(jc.materialize(q), x)
    bound = 0.2 if scheme == 'NVFP4' else 0.05
    self.assertLess(jnp.abs(y - want).max(), bound * jnp.abs(want).max())
    if scheme == 'int8, int8 g8':
      codes, scale = making.integer_oracle(x, (-1,))
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
    q = making.leaf(
      making.normal(*w).astype(dtype), 'int8', (-4, -3, -2), axis=-2
    )
    leaf = qarray.QDotArray(q) if act else q
    x = making.normal(*x, seed=1).astype(dtype)
    loss = lambda f, w: lambda x: f(x, w).astype(jnp.float32).sum()
    y, g = jax.jit(jax.value_and_grad(loss(jc.lift(f), leaf)))(x)
    want, g_want = jax.jit(jax.value_and_grad(loss(f, q.materialize())))(x)
    self.assertEqual(g.dtype, dtype)
    np.testing.assert_allclose(y, want, rtol=0.05, atol=8)
    np.testing.assert_allclose(
      np.asarray(g, np.float32), np.asarray(g_want, np.float32), atol=0.3
    )

  def test_it_is_an_integer_product(self):
    image, kernel = making.normal(1, 8, 8, 4), making.normal(3, 3, 4, 5)
    q = making.leaf(kernel, 'int8', (-4, -3, -2), axis=-2)
    dots = making.dots(jc.lift(_conv()), image, qarray.QDotArray(q))
    self.assertIn(('int8', 'int8', 'int32'), dots)


if __name__ == '__main__':
  absltest.main()
