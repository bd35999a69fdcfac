"""W8A8 with rows quantised on the way, interpreted on CPU, against numpy."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.pallas import dynamic
from jaxopt_compress.kernels.pallas import tiles as tiles_lib
from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import spec as spec_lib


def _rows(rng, m, k, symmetric=True):
  """x whose scales are powers of two, so that every division is exact."""
  x = rng.normal(size=(m, k)).astype(np.float32)
  x *= 99.4 / np.abs(x).max(axis=1, keepdims=True)
  # One entry alone is an end, and zero the other.
  x[:, 0] = 127.5 if symmetric else 255 if k == 1 else 155
  if not symmetric and k > 1:
    x[:, 1] = -100
  return x * np.exp2(rng.integers(-3, 4, (m, 1))).astype(np.float32)


def _oracle(x, codes, symmetric=True):
  """(int32 sums, scales) by the equation."""
  codes = codes.astype(np.int32)
  if symmetric:
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127.5)
    rounded = np.clip(np.round(x / scale), -128, 127).astype(np.int32)
    return rounded @ codes, scale
  low, high = (f(x, axis=1, keepdims=True, initial=0) for f in (np.min, np.max))
  scale = (high - low) / np.float32(255)
  zero = np.round(np.float32(-0.5) - (high + low) / (2 * scale))
  rounded = np.clip(np.round(x / scale) + zero, -128, 127)
  return (rounded - zero).astype(np.int32) @ codes, scale


def _codes(rng, k, n):
  return rng.integers(-128, 128, (k, n)).astype(np.int8)


def _multiply(x, codes, scale=None, bias=None, symmetric=True, **how):
  """matmul(x, lay_out(codes, scale), bias) and restore, in one program."""
  k, n = codes.shape
  scale = np.ones((1, n), np.float32) if scale is None else scale

  @jax.jit
  def run(x, codes, scale, bias):
    w = dynamic.lay_out(codes, scale, symmetric=symmetric)
    y = dynamic.matmul(x, w, bias, n=n, interpret=True, **how)
    return y, dynamic.restore(w, k=k, n=n)

  return run(x, codes, scale, bias)


class IntegersTest(parameterized.TestCase):
  @parameterized.product(
    case=[
      # m, k, n, platform, fused
      (1, 256, 128, 'gpu', True),
      (1, 256, 128, 'gpu', False),
      (1, 256, 128, 'tpu', True),
      (1, 256, 128, 'tpu', False),
      (19, 300, 131, 'gpu', True),
      (70, 77, 3, 'gpu', None),
      (33, 300, 131, 'tpu', True),
      (70, 1, 1, 'tpu', None),
    ],
    symmetric=[True, False],
  )
  def test_equal_to_the_bit(self, case, symmetric):
    """With scales that are powers of two, results are the integers themselves."""
    m, k, n, platform, fused = case
    rng = np.random.default_rng(m)
    x = _rows(rng, m, k, symmetric)
    codes = _codes(rng, k, n)
    how = dict(platform=platform, fused=fused, symmetric=symmetric)
    got, (back, _) = _multiply(x, codes, **how)
    sums, scale = _oracle(x, codes, symmetric)
    np.testing.assert_array_equal(got, sums.astype(np.float32) * scale)
    np.testing.assert_array_equal(back, codes)

  @parameterized.product(platform=['gpu', 'tpu'], symmetric=[True, False])
  def test_k_in_parts(self, platform, symmetric):
    m, k, n = 16, 5 * 128, 128
    rng = np.random.default_rng(0)
    x, codes = _rows(rng, m, k, symmetric), _codes(rng, k, n)
    how = dict(tiles=tiles_lib.Tiles(16, 128, 2), symmetric=symmetric)
    got, _ = _multiply(x, codes, platform=platform, fused=False, **how)
    sums, scale = _oracle(x, codes, symmetric)
    np.testing.assert_array_equal(got, sums.astype(np.float32) * scale)

  def test_ties_go_to_even(self):
    x = jnp.array([[127.5, 0.5, 1.5, 2.5, -0.5, -1.5, -127.5, -126.5]])
    codes, scale, _ = dynamic.quantize(x)
    self.assertEqual(codes.tolist(), [[127, 0, 2, 2, 0, -2, -128, -126]])
    self.assertEqual(scale.tolist(), [[1.0]])

  @parameterized.product(
    dtype=[jnp.float32, jnp.bfloat16, jnp.float16], symmetric=[True, False]
  )
  def test_the_codes_of_the_library(self, dtype, symmetric):
    x = 3 * jax.random.normal(jax.random.key(0), (50, 200)).astype(dtype)
    # Without a range, above zero, below it, and one number alone.
    x = x.at[3].set(0).at[4].set(abs(x[4])).at[5].set(-abs(x[5])).at[6].set(2.5)
    act = spec_lib.Spec('int8', 'token', symmetric=symmetric)
    theirs = activation.quantize(x, act, summed=(1,), grouped=1)
    codes, scale, zero = dynamic.quantize(x, symmetric=symmetric)
    np.testing.assert_array_equal(codes, theirs.qvalue)
    np.testing.assert_array_equal(scale, theirs.scale)
    if not symmetric:
      np.testing.assert_array_equal(zero, theirs.zero)


class FloatsTest(parameterized.TestCase):
  @parameterized.product(dtype=[jnp.float32, jnp.bfloat16], fused=[True, False])
  def test_scales_and_bias(self, dtype, fused):
    m, k, n = 5, 130, 20
    rng = np.random.default_rng(0)
    codes = _codes(rng, k, n)
    scale_w = rng.uniform(0.01, 0.02, (1, n)).astype(np.float32)
    bias = rng.normal(size=n).astype(np.float32)
    x = jnp.asarray(_rows(rng, m, k), dtype)
    got, _ = _multiply(x, codes, scale_w, bias, fused=fused)
    self.assertEqual(got.dtype, dtype)
    sums, scale_x = _oracle(np.asarray(x, np.float32), codes)
    want = jnp.asarray(sums * scale_x * scale_w + bias[None], dtype)
    tolerance = dict(rtol=float(jnp.finfo(dtype).eps), atol=1e-5)
    np.testing.assert_allclose(
      np.asarray(got, np.float32), np.asarray(want, np.float32), **tolerance
    )

  @parameterized.product(fused=[True, False], symmetric=[True, False])
  def test_rows_of_zeros_and_without_numbers(self, fused, symmetric):
    rng = np.random.default_rng(0)
    x = _rows(rng, 6, 40)
    x[1], x[2, 3], x[3, 5], x[4, 7] = 0, np.nan, np.inf, -np.inf
    x[5, 8:10] = np.inf, -np.inf
    codes, bias = _codes(rng, 40, 6), np.ones(6, np.float32)
    how = dict(fused=fused, symmetric=symmetric)
    got, _ = _multiply(x, codes, None, bias, **how)
    self.assertTrue(np.isfinite(np.asarray(got[0])).all())
    np.testing.assert_array_equal(got[1], np.ones(6))
    self.assertTrue(np.isnan(np.asarray(got[2:])).all())

  @parameterized.parameters(True, False)
  def test_experts(self, fused):
    e, m, k, n = 2, 3, 64, 10
    rng = np.random.default_rng(0)
    x = np.stack([_rows(rng, m, k) for _ in range(e)])
    codes = np.stack([_codes(rng, k, n) for _ in range(e)])
    multiply = functools.partial(_multiply, fused=fused)
    got, _ = jax.vmap(multiply)(x, codes)
    for i in range(e):
      sums, scale = _oracle(x[i], codes[i])
      np.testing.assert_array_equal(got[i], sums.astype(np.float32) * scale)


class EdgesTest(parameterized.TestCase):
  @parameterized.parameters((0, 5, 3), (2, 0, 3), (2, 5, 0))
  def test_empty(self, m, k, n):
    w = dynamic.lay_out(jnp.zeros((k, n), jnp.int8), jnp.ones((1, n)))
    got = dynamic.matmul(
      jnp.ones((m, k)), w, jnp.full(n, 2.0), n=n, interpret=True
    )
    self.assertEqual(got.shape, (m, n))
    if not k:
      np.testing.assert_array_equal(got, np.full((m, n), 2.0))

  @parameterized.parameters((True, 131071), (False, 65793))
  def test_k_beyond_int32(self, symmetric, most):
    k = most + 1
    w = jax.eval_shape(
      functools.partial(dynamic.lay_out, symmetric=symmetric),
      jax.ShapeDtypeStruct((k, 8), jnp.int8),
      jax.ShapeDtypeStruct((1, 8), jnp.float32),
    )
    x = jax.ShapeDtypeStruct((1, k), jnp.float32)
    run = functools.partial(dynamic.matmul, n=8, interpret=True)
    with self.assertRaisesRegex(ValueError, f'hold up to k = {most}'):
      jax.eval_shape(run, x, w)

  @parameterized.named_parameters(
    ('bias', dict(bias=(9,)), r'bias is \[9\]; expected \[8\]'),
    ('other_k', dict(x=(2, 65)), 'Make them with dynamic.lay_out'),
    ('integers', dict(dtype=jnp.int8), r'expected \[m, k\]'),
  )
  def test_mistakes(self, changed, message):
    how = dict(x=(2, 64), bias=(8,), dtype=jnp.float32) | changed
    w = dynamic.lay_out(jnp.zeros((64, 8), jnp.int8), jnp.ones((1, 8)))
    with self.assertRaisesRegex(ValueError, message):
      dynamic.matmul(
        jnp.ones(how['x'], how['dtype']),
        w,
        jnp.ones(how['bias']),
        n=8,
        interpret=True,
      )

  def test_scales_of_groups(self):
    with self.assertRaisesRegex(ValueError, 'see weight_only'):
      dynamic.lay_out(jnp.zeros((64, 8), jnp.int8), jnp.ones((2, 8)))


if __name__ == '__main__':
  absltest.main()
