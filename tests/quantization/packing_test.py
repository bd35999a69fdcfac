"""Packing against a string of bits in numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.quantization import packing


def _bits(codes, bits, axis):
  """The codes side by side, lowest bits first, filled up to a whole unit."""
  moved = np.moveaxis(codes, axis, -1)
  per_unit = np.lcm(bits, 8) // bits
  fill = -moved.shape[-1] % per_unit
  moved = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, fill)])
  each = (moved[..., None] >> np.arange(bits)) & 1
  packed = np.packbits(
    each.reshape(*moved.shape[:-1], -1), axis=-1, bitorder='little'
  )
  return np.moveaxis(packed, -1, axis)


class PackTest(parameterized.TestCase):
  @parameterized.product(
    bits=tuple(range(1, 9)),
    shape=((1,), (2,), (7,), (5, 4), (3, 1, 6), (17, 3)),
    axis=(-1, -2, -3),
  )
  def test_equals_a_string_of_bits(self, bits, shape, axis):
    if -axis > len(shape):
      return
    codes = np.random.default_rng(0).integers(0, 2**bits, shape)
    codes = codes.astype(np.uint8)
    payload = packing.pack(jnp.asarray(codes), bits, axis)
    np.testing.assert_array_equal(payload, _bits(codes, bits, axis))
    tail = -shape[axis] % packing.unit(bits)[0]
    back = packing.unpack(payload, bits, axis, tail)
    np.testing.assert_array_equal(back, codes)

  @hypothesis.given(
    bits=st.integers(1, 8), n=st.integers(1, 40), seed=st.integers(0, 2**16)
  )
  @hypothesis.settings(max_examples=40, deadline=None)
  def test_unpack_inverts_pack(self, bits, n, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, n).astype(np.uint8)
    payload = packing.pack(jnp.asarray(codes), bits, -1)
    tail = -n % packing.unit(bits)[0]
    np.testing.assert_array_equal(
      packing.unpack(payload, bits, -1, tail), codes
    )

  def test_two_nibbles_low_first(self):
    payload = packing.pack(jnp.array([1, 2, 15], jnp.uint8), 4, -1)
    np.testing.assert_array_equal(payload, [0x21, 0x0F])


if __name__ == '__main__':
  absltest.main()
