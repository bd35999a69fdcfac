"""Bits: what is zero, and numbers packed as they are drawn."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.pruning.storage import bits


class BitsTest(parameterized.TestCase):
  @parameterized.parameters('float32', 'bfloat16', 'float16', 'float8_e4m3fn')
  def test_zero_is_no_bits_at_all(self, dtype):
    tiny = jnp.finfo(dtype).smallest_subnormal
    x = jnp.array([0.0, -0.0, np.nan, tiny, -1.0], dtype)
    self.assertEqual(bits.nonzero(x).tolist(), [False, True, True, True, True])

  @parameterized.parameters(1, 2, 3, 5, 8)
  def test_pack_and_back(self, width):
    numbers = np.random.default_rng(width).integers(0, 2**width, (3, 7))
    packed = bits.pack(jnp.uint8(numbers), width)
    self.assertEqual(packed.shape, (3, -(-7 * width // 8)))
    np.testing.assert_array_equal(bits.unpack(packed, width, 7), numbers)

  def test_lowest_first(self):
    # 3 = 11, 0 = 00, 1 = 01, 2 = 10; the last is the highest of the byte.
    self.assertEqual(
      bits.pack(jnp.uint8([3, 0, 1, 2]), 2).tolist(), [0b10010011]
    )

  @parameterized.parameters(
    ('float32', True),
    ('float8_e5m2', True),
    ('float8_e8m0fnu', False),
    ('int8', True),
    ('int4', False),
    ('float4_e2m1fn', False),
    ('bool', False),
    ('complex64', False),
  )
  def test_has_patterns(self, dtype, want):
    self.assertEqual(bits.has_patterns(dtype), want)


if __name__ == '__main__':
  absltest.main()
