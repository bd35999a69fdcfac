"""How k rows become pieces, and come back."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.pallas import layout


class LayoutTest(parameterized.TestCase):
  @parameterized.parameters(
    # k, group, piece, count
    (4096, 64, 64, 64),
    (300, 150, 32, 10),
    (300, None, 64, 5),
    (77, None, 32, 3),
    (100, 40, 64, 3),
  )
  def test_rows_there_and_back(self, k, group, piece, count):
    c = layout.cut(k, group)
    self.assertEqual((c.piece, c.count), (piece, count))
    a = jax.random.normal(jax.random.key(0), (k, 5))
    pieces = layout.rows(a, c)
    self.assertEqual(pieces.shape, (count, piece, 5))
    np.testing.assert_array_equal(layout.whole(pieces, c), a)
    # The other operand is cut in the same places: products of pieces add up.
    x = layout.features(a.T, c, count, 8)
    np.testing.assert_array_equal(x[:, :5], pieces.swapaxes(1, 2))
    self.assertEqual(float(jnp.abs(x[:, 5:]).max()), 0)

  def test_nibbles(self):
    pieces = jnp.arange(-8, 7, dtype=jnp.int8).reshape(3, 5, 1)
    byte = layout.nibbles(pieces)
    self.assertEqual(byte.shape, (2, 5, 1))
    np.testing.assert_array_equal(layout.from_nibbles(byte, 3), pieces)


if __name__ == '__main__':
  absltest.main()
