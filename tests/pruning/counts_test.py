"""Counts of two words against Python's integers."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.pruning import counts

NUMBERS = (0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**40 + 7, 2**60 - 1)


def ints(n):
  n = counts.of(n)
  high, low = np.asarray(n.high, object), np.asarray(n.low, object)
  return (high * 2**30 + low).tolist()


class CountsTest(parameterized.TestCase):
  def test_arithmetic(self):
    several = [counts.of(n) for n in NUMBERS]
    a = jax.tree.map(lambda *x: jnp.stack(x), *several)
    self.assertEqual(ints(a), list(NUMBERS))
    for n in NUMBERS[:-1]:
      self.assertEqual(ints((a + n)[:-1]), [m + n for m in NUMBERS[:-1]])
      self.assertEqual(ints(2**60 - 1 - a), [2**60 - 1 - m for m in NUMBERS])
      self.assertEqual((a >= n).tolist(), [m >= n for m in NUMBERS])
      self.assertEqual((a <= n).tolist(), [m <= n for m in NUMBERS])
    got = ints(counts.clip(a, counts.of(5), counts.of(2**35)))
    self.assertEqual(got, [min(max(m, 5), 2**35) for m in NUMBERS])

  @parameterized.parameters(2, 3, 7, 31, 10**6)
  def test_counts_by_parts_are_the_sum(self, most):
    mask = np.random.default_rng(0).random((5, 3, 7)) < 0.6
    got = counts.count(jnp.asarray(mask), most=most)
    self.assertEqual((int(got), got.shape), (mask.sum(), ()))
    got = counts.count(jnp.asarray(mask), (-3, -1), most=most)
    self.assertEqual(ints(got), mask.sum((0, 2), keepdims=True).tolist())

  @parameterized.parameters(((0, 1),), ((1,),), ((0,),), (None,))
  def test_counts_by_bytes(self, axes):
    mask = np.random.default_rng(0).random((5, 384)) < 0.9
    with mock.patch.object(jax, 'device_count', lambda: 1):
      got = counts.count(jnp.asarray(mask), axes)
    keep = axes is not None
    np.testing.assert_array_equal(got, mask.sum(axes, keepdims=keep))

  def test_sums_leave_no_word(self):
    n = np.random.default_rng(0).integers(0, 2**31, 3000)
    n[:2000] = 2**31 - 1
    got = counts.total(counts.of(jnp.asarray(n, jnp.int32)))
    self.assertEqual(int(got), int(n.sum()))
    high = jnp.asarray(n[:40] >> 10, jnp.int32)
    wide = counts.Count(high, jnp.full(40, 2**30 - 1))
    got = counts.total(wide, (0,))[0]
    self.assertEqual(int(got), sum(ints(wide)))

  def test_portion_is_exact(self):
    rng = np.random.default_rng(0)
    f = jax.jit(counts.portion)
    cases = [(n, x) for n in NUMBERS for x in (0.0, 0.5, 1.0, 0.25, 1e-9)]
    cases += [
      (int(n), x)
      for n, x in zip(
        rng.integers(0, 2**60, 40), rng.random(40, np.float32), strict=True
      )
    ]
    cases += [(n, 0.5) for n in range(8)] + [(10, 0.29), (2**33 + 1, 0.5)]
    for n, x in cases:
      x = np.float32(x)
      # A float32 is a fraction of two integers, of which Python knows the product.
      top, bottom = float(x).as_integer_ratio()
      floor, rest = divmod(n * top, bottom)
      up = 2 * rest > bottom or (2 * rest == bottom and floor % 2)
      self.assertEqual(int(f(counts.of(n), x)), floor + up, (n, x))

  @parameterized.parameters(
    (10, 0.8, 8),
    (100, 0.29, 29),
    (3, 0.5, 2),
    (7, 1.0, 7),
    (2**40, 0.8, 879609302221),
  )
  def test_portion(self, n, fraction, expected):
    self.assertEqual(counts.portion(n, fraction), expected)

  def test_traced_portion_ends_exactly(self):
    n = 2**30 + 1  # not a float32
    f = jax.jit(lambda r: counts.portion(n, r))
    self.assertEqual(int(f(1.0)), n)
    self.assertEqual(int(f(0.0)), 0)

  def test_what_is_ramped_is_rounded_once(self):
    f = jax.jit(lambda r: counts.ramped(768, 0.8, r))
    for step in range(21):
      ramp = 1 - (1 - step / 20) ** 3
      want = round(768 * 0.8 * ramp)
      self.assertEqual(int(f(ramp)), want)
      self.assertEqual(counts.ramped(768, 0.8, ramp), want)
    # Though 0.8 is not a float32.
    n = 10**9
    last = counts.ramped(n, 0.8, jnp.float32(1 - 2**-24))
    self.assertLessEqual(int(last), 8 * 10**8)
    self.assertEqual(int(counts.ramped(n, 0.8, jnp.float32(1))), 8 * 10**8)

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, 'float32 2.5; a count is a whole'):
      counts.of(jnp.float32(2.5))


if __name__ == '__main__':
  absltest.main()
