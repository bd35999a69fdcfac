"""What codes stand for: tables, casts to the bit, and unbiased rounding."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxopt_compress.quantization import formats

FORMATS = formats.FORMATS
DTYPES = {
  'e4m3': ml_dtypes.float8_e4m3fn,
  'e5m2': ml_dtypes.float8_e5m2,
  'e3m2': ml_dtypes.float6_e3m2fn,
  'e2m3': ml_dtypes.float6_e2m3fn,
  'e2m1': ml_dtypes.float4_e2m1fn,
}
INTS = [f for f in FORMATS.values() if f.integer]


def _probes(fmt):
  """Numbers, the midpoints between them, their neighbours, and random ones."""
  numbers = fmt.table()[: fmt.last + 1].astype(np.float64)
  middles = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
  exact = np.concatenate([numbers.astype(np.float32), middles])
  near = [np.nextafter(exact, np.float32(d)) for d in (-np.inf, np.inf)]
  rng = np.random.default_rng(0)
  sizes = np.exp(rng.normal(size=5000) * 3).astype(np.float32)
  x = np.concatenate([exact, *near, sizes, [0.0, 1e-30]])
  x = np.abs(x).astype(np.float32)
  return np.concatenate([x, -x])


class FloatTest(parameterized.TestCase):
  @parameterized.parameters(*DTYPES)
  def test_the_table_is_that_of_ml_dtypes(self, name):
    fmt, dtype = FORMATS[name], DTYPES[name]
    codes = np.arange(2**fmt.bits, dtype=np.uint8).view(dtype)
    want = codes.astype(np.float32)
    if name == 'e5m2':
      want[~np.isfinite(want)] = np.nan
    np.testing.assert_array_equal(fmt.table(), want)

  @parameterized.product(name=tuple(DTYPES), jit=(True, False))
  def test_casts_are_those_of_ml_dtypes_to_the_bit(self, name, jit):
    fmt, dtype = FORMATS[name], DTYPES[name]
    x = _probes(fmt)
    round_ = jax.jit(fmt.round) if jit else fmt.round
    got = np.asarray(round_(jnp.asarray(x))).view(np.uint8)
    clipped = np.clip(x, fmt.lowest, fmt.highest)
    want = clipped.astype(dtype).view(np.uint8)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
      fmt.numbers(round_(jnp.asarray(x))), clipped.astype(dtype).astype('f')
    )

  @parameterized.parameters(*DTYPES)
  def test_the_equation_is_the_cast(self, name):
    """Without noise of its own: floor(u + 1/2) away from ties."""
    fmt = FORMATS[name]
    x = _probes(fmt)[-5002:]
    half = jnp.full(x.shape, 0.5)
    np.testing.assert_array_equal(
      fmt.numbers(fmt.round(jnp.asarray(x), half)),
      fmt.numbers(fmt.round(jnp.asarray(x))),
    )


class IntTest(parameterized.TestCase):
  @parameterized.named_parameters(*((f.name, f) for f in INTS))
  def test_numbers(self, fmt):
    x = np.random.default_rng(0).normal(size=2000) * fmt.highest
    x = x.astype(np.float32)
    allowed = np.arange(fmt.lowest, fmt.highest + 1, fmt.step)
    nearest = allowed[np.abs(x[:, None] - allowed).argmin(1)]
    stored = fmt.round(jnp.asarray(x))
    np.testing.assert_array_equal(fmt.numbers(stored), nearest)
    self.assertEqual(stored.dtype, jnp.int8 if fmt.bits == 8 else jnp.uint8)
    self.assertLess(int(jnp.max(stored.astype(jnp.int32))), 2**fmt.bits)

  def test_ties_go_to_even_and_ends_are_clipped(self):
    x = jnp.array([0.5, 1.5, 2.5, -0.5, -1.5, 7.4, 99.0, -8.4, -1e30])
    fmt = FORMATS['int4']
    np.testing.assert_array_equal(
      fmt.numbers(fmt.round(x)), [0, 2, 2, 0, -2, 7, 7, -8, -8]
    )

  def test_binary_is_plus_and_minus_one(self):
    fmt = FORMATS['binary']
    np.testing.assert_array_equal(
      fmt.numbers(fmt.round(jnp.array([-3.0, -0.1, 0.1, 3.0]))), [-1, -1, 1, 1]
    )


class CodebookTest(parameterized.TestCase):
  def test_nearest(self):
    fmt = FORMATS['nf4']
    x = np.random.default_rng(0).uniform(-1.2, 1.2, 5000).astype(np.float32)
    table = np.asarray(fmt.table, np.float32)
    want = table[np.abs(x[:, None] - table).argmin(1)]
    np.testing.assert_array_equal(fmt.numbers(fmt.round(jnp.asarray(x))), want)


class StochasticTest(parameterized.TestCase):
  @parameterized.parameters(*FORMATS)
  def test_unbiased_between_the_two_neighbours(self, name):
    fmt = FORMATS[name]
    top = min(fmt.highest, 8.0)
    x = np.random.default_rng(0).uniform(-top, top, 50).astype(np.float32)
    if name in ('int2', 'int4', 'int3'):
      x = np.clip(x, fmt.lowest, fmt.highest)
    n = 4000
    noise = jax.random.uniform(jax.random.key(0), (n, 50))
    drawn = fmt.numbers(fmt.round(jnp.broadcast_to(x, (n, 50)), noise))
    drawn = np.asarray(drawn, np.float64)
    gap = drawn.max(0) - drawn.min(0)
    self.assertTrue((drawn.min(0) <= x).all() and (drawn.max(0) >= x).all())
    self.assertTrue(all(len(np.unique(d)) <= 2 for d in drawn.T))
    error = np.abs(drawn.mean(0) - x)
    self.assertTrue((error <= 4.5 * gap / 2 / np.sqrt(n) + 1e-6).all())


if __name__ == '__main__':
  absltest.main()
