"""How codes lie in memory, drawn for the eye and taken back."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import layout


class LayoutTest(parameterized.TestCase):
  def test_eight_bits(self):
    # Four rows of a column lie side by side, columns after each other.
    codes = np.arange(4)[:, None] + 10 * np.arange(3)
    unit = layout.to_panels(jnp.asarray(codes, jnp.uint8), 'int8', 4)
    self.assertEqual(unit.shape, (1, 1, 128))
    self.assertEqual(
      unit[0, 0, :12].tolist(), [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    )

  def test_four_bits(self):
    # Rows 0 to 3 in the low halves, rows 4 to 7 in the high ones.
    codes = np.arange(8)[:, None]
    unit = layout.to_panels(jnp.asarray(codes, jnp.uint8), 'int4', 8)
    self.assertEqual(
      [hex(b) for b in unit[0, 0, :4].tolist()],
      ['0x40', '0x51', '0x62', '0x73'],
    )

  @parameterized.named_parameters(
    (f'{name}, {k}x{n} in groups of {group}', name, k, n, group)
    for name in layout.CODES
    for k, n, group in (
      (1, 1, 1),
      (16, 32, 16),
      (40, 33, 20),
      (50, 70, 16),
      (130, 31, 128),
    )
  )
  def test_round_trip(self, name, k, n, group):
    how = layout.CODES[name]
    rng = np.random.default_rng(k)
    codes = rng.integers(0, 2**how.bits, (2, k, n), np.uint8)
    panels = layout.to_panels(codes, name, group)
    units = layout.num_units(k, group, how.rows)
    self.assertEqual(panels.shape, (2, -(-n // 32), units, how.bytes))
    back = layout.from_panels(panels, name, group, k, n)
    np.testing.assert_array_equal(back, codes)
    at = np.array([[0, n - 1], [n // 2, n // 3]])
    columns = layout.columns(panels[1], name, group, k, at)
    np.testing.assert_array_equal(columns, codes[1].T[at])


class QuadsTest(absltest.TestCase):
  def test_there_and_back(self):
    codes = np.arange(2 * 3 * 2 * 4 * 6, dtype=np.uint8)
    codes = codes.reshape(2, 3, 2, 4, 6)
    numbers = codes.astype(np.int8)[..., 0, :]
    quads = layout.to_quads(numbers)
    self.assertEqual(quads.shape, (2, 1, 2, 16, 4))
    np.testing.assert_array_equal(layout.from_quads(quads, 3, 6), numbers)


if __name__ == '__main__':
  absltest.main()
