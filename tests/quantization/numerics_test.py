"""Codes, scales and packing against numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.quantization import numerics

INT8, INT4 = numerics.FORMATS['int8'], numerics.FORMATS['int4']


def scale_oracle(x, bits, axes):
  """absmax * (1 / bound), bound = (2^bits - 1) / 2, in float32."""
  absmax = np.abs(x.astype(np.float32)).max(axes, keepdims=True)
  scale = absmax * np.float32(2 / (2**bits - 1))
  return np.maximum(scale, np.finfo(np.float32).tiny)


def codes_oracle(x, scale, bits):
  """clip(round(x * (1 / scale))), ties to even, in float32."""
  inverse = (np.float32(1) / scale).astype(np.float32)
  codes = np.rint(x.astype(np.float32) * inverse)
  return np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int8)


class FormatTest(parameterized.TestCase):
  @parameterized.parameters(
    ('int8', -128, 127, 127.5, False), ('int4', -8, 7, 7.5, True)
  )
  def test_range(self, name, qmin, qmax, bound, packed):
    f = numerics.FORMATS[name]
    self.assertEqual(
      (f.qmin, f.qmax, f.bound, f.packed), (qmin, qmax, bound, packed)
    )


class EncodeTest(parameterized.TestCase):
  @parameterized.product(
    fmt=(INT8, INT4),
    dtype=(jnp.float32, jnp.bfloat16, jnp.float16),
    axes=((0,), (1,), (0, 1), (-3, -2)),
  )
  def test_bits_equal_numpy(self, fmt, dtype, axes):
    x = jax.random.normal(jax.random.key(0), (33, 7, 19)).astype(dtype)
    scale = jax.jit(lambda x: numerics.absmax_scale(x, fmt, axes))(x)
    want = scale_oracle(np.asarray(x), fmt.bits, axes)
    np.testing.assert_array_equal(scale, want)
    codes = jax.jit(lambda x, s: numerics.encode(x, s, fmt))(x, scale)
    self.assertEqual(codes.dtype, jnp.int8)
    np.testing.assert_array_equal(
      codes, codes_oracle(np.asarray(x), want, fmt.bits)
    )

  @parameterized.parameters(INT8, INT4)
  def test_every_program_gives_the_same_codes(self, fmt):
    x = jax.random.normal(jax.random.key(0), (64, 48))

    def both(x):
      s = numerics.absmax_scale(x, fmt, (0,), jnp.bfloat16)
      return s, numerics.encode(x, s, fmt)

    eager, jitted = both(x), jax.jit(both)(x)
    np.testing.assert_array_equal(eager[0], jitted[0])
    np.testing.assert_array_equal(eager[1], jitted[1])
    # A rounded scale is the one that the codes were made with.
    s = np.asarray(eager[0]).astype(np.float32)
    want = codes_oracle(np.asarray(x), s, fmt.bits)
    np.testing.assert_array_equal(jitted[1], want)

  @parameterized.named_parameters(
    # x, codes for a scale of 1
    dict(
      testcase_name='ties', x=[0.5, 1.5, 2.5, -0.5, -1.5], want=[0, 2, 2, 0, -2]
    ),
    dict(
      testcase_name='clips',
      x=[7.4, 7.5, 99, -8.4, -9, -1e30],
      want=[7, 7, 7, -8, -8, -8],
    ),
    dict(testcase_name='zeros', x=[0.0, -0.0], want=[0, 0]),
  )
  def test_rounding(self, x, want):
    codes = numerics.encode(jnp.array(x), jnp.ones(1), INT4)
    np.testing.assert_array_equal(codes, want)

  @parameterized.named_parameters(
    dict(testcase_name='zero', value=0.0),
    dict(testcase_name='tiny', value=2.4e-38),
    dict(testcase_name='small', value=1e-30),
    dict(testcase_name='huge', value=3e38),
  )
  def test_extremes_stay_within_half_a_step(self, value):
    x = jnp.array([value, -value, value / 2])
    for dtype in (jnp.float32, jnp.bfloat16):
      scale = numerics.absmax_scale(x, INT8, (0,), dtype)
      self.assertEqual(scale.dtype, dtype)
      self.assertTrue(jnp.isfinite(scale).all() and (scale > 0).all())
      codes = np.asarray(numerics.encode(x, scale, INT8), np.float64)
      step = np.asarray(scale, np.float64)
      slack = 0.501 if dtype == jnp.float32 else 1.02  # a bfloat16 scale rounds
      self.assertLessEqual(
        np.abs(codes * step - np.asarray(x)).max(), slack * step
      )


class PackTest(parameterized.TestCase):
  @parameterized.product(
    shape=((1,), (2,), (7,), (5, 4), (4, 5), (3, 1, 6), (2, 3, 5)),
    axis=(-1, -2, -3),
  )
  def test_unpack_inverts_pack(self, shape, axis):
    if -axis > len(shape):
      return
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, shape).astype(np.int8)
    n = shape[axis]
    payload = numerics.pack(jnp.asarray(codes), axis)
    self.assertEqual(payload.dtype, jnp.uint8)
    self.assertEqual(payload.shape[axis], -(-n // 2))
    back = numerics.unpack(payload, axis, bool(n % 2))
    self.assertEqual(back.dtype, jnp.int8)
    np.testing.assert_array_equal(back, codes)

  def test_every_pair_and_the_order_of_nibbles(self):
    low, high = np.meshgrid(np.arange(-8, 8), np.arange(-8, 8))
    codes = np.stack([low, high], -1).reshape(256, 2).astype(np.int8)
    payload = np.asarray(numerics.pack(jnp.asarray(codes), -1))[:, 0]
    np.testing.assert_array_equal(payload, np.arange(256, dtype=np.uint8))
    back = numerics.unpack(jnp.asarray(payload)[:, None], -1, False)
    np.testing.assert_array_equal(back, codes)

  def test_by_group(self):
    x = jnp.array([[1.0, 2.0]])
    want = [[1, 1, 1, 2, 2, 2]]
    np.testing.assert_array_equal(numerics.by_group(x, 3, -1), want)


if __name__ == '__main__':
  absltest.main()
