"""Mergeable histograms, and the ranges that are read from them."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.calibration import histograms
from jaxopt_compress.calibration import ranges

_RNG = np.random.default_rng(0)


HISTOGRAM = histograms.histogram()


INT8, INT4 = (jc.schemes.Spec(f, 'tensor') for f in ('int8', 'int4'))


ASYM = jc.schemes.Spec('int4', 'tensor', symmetric=False)


def _add(x, statistic=HISTOGRAM, mask=None):
  x = jnp.asarray(x, jnp.float32).reshape(-1, 1)
  mask = jnp.ones(len(x), bool) if mask is None else mask
  return statistic.add(statistic.init(1), x, mask)


def _same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


class _Case(parameterized.TestCase):
  """Draws the same numbers whatever ran before."""

  def setUp(self):
    super().setUp()
    global _RNG
    _RNG = np.random.default_rng(0)


class HistogramTest(_Case):
  @parameterized.parameters(1.0, 1e-20, 3e7, 0.37)
  def test_counts_are_those_of_numpy(self, size):
    x = _RNG.laplace(size=5000).astype(np.float32) * np.float32(size)
    s = _add(x)
    n = len(s.counts)
    edges = np.ldexp(np.arange(n + 1) - n / 2, int(s.exponent))
    want, _ = np.histogram(x.astype(np.float64), edges)
    np.testing.assert_array_equal(s.counts, want)
    # The data fill at least a quarter of the bins.
    self.assertGreater(np.abs(x).max(), edges[-1] / 2)
    self.assertLess(np.abs(x).max(), edges[-1])

  def test_any_split_and_order_gives_the_same_bits(self):
    x = _RNG.normal(size=4000) * np.exp(3 * _RNG.normal(size=4000))
    whole = _add(x)
    for _ in range(5):
      parts = np.split(_RNG.permutation(x), 5)
      states = [_add(p) for p in parts]
      a = states[0]
      for b in states[1:]:
        a = HISTOGRAM.merge(a, b)
      _same(a, whole)
      rest = states[-1]
      for b in reversed(states[:-1]):
        rest = HISTOGRAM.merge(b, rest)
      _same(rest, whole)

  def test_devices_see_the_whole(self):
    x = jnp.asarray(_RNG.normal(size=(64, 1)), jnp.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('d',))
    for statistic in (HISTOGRAM, ranges.moving_average(0.9)):

      def f(x, statistic=statistic):
        s = statistic.init(1)
        s = jax.tree.map(lambda a: lax.pcast(a, ('d',), to='varying'), s)
        mask = jnp.ones(len(x), bool)
        return statistic.all_reduce(statistic.add(s, x, mask), 'd')

      run = jax.shard_map(f, mesh=mesh, in_specs=P('d'), out_specs=P())
      _same(jax.jit(run)(x), _add(x, statistic))

  def test_masked_rows_do_not_count(self):
    x, mask = np.arange(8.0) - 3, np.arange(8) % 2 == 0
    _same(_add(x, mask=jnp.asarray(mask)), _add(x[mask]))

  def test_values_that_are_not_finite_poison_the_range(self):
    s = _add([1.0, np.nan, -np.inf])
    self.assertEqual(s.bad, 2)
    for read in (
      lambda s: histograms.percentile(s, 99.0, True),
      lambda s: histograms.least_squares(s, INT8),
      lambda s: histograms.least_divergence(s, INT8),
    ):
      self.assertTrue(np.isnan(read(s)).all())

  @parameterized.product(percent=(50.0, 90.0, 98.0), symmetric=(True, False))
  def test_percentile_to_a_bin(self, percent, symmetric):
    x = _RNG.normal(size=20000) + 0.3
    s = _add(x)
    low, high = histograms.percentile(s, percent, symmetric)
    width = 2.0 ** int(s.exponent)
    if symmetric:
      want = np.percentile(np.abs(x), percent)
      want = (-want, want)
    else:
      want = np.percentile(x, [(100 - percent) / 2, (100 + percent) / 2])
    np.testing.assert_allclose((low, high), want, atol=2 * width)

  @parameterized.parameters(INT8, INT4, ASYM, jc.schemes.Spec('e4m3', 'tensor'))
  def test_least_squares_is_that_of_brute_force(self, spec):
    x = _RNG.laplace(size=3000).astype(np.float32) + np.float32(0.2)
    low, high = histograms.least_squares(_add(x), spec)
    fmt = spec.numbers

    def error(low, high):
      scale = (high - low) / 2 / fmt.bound
      zero = 0.0
      if not spec.symmetric:
        zero = np.round((fmt.lowest + fmt.highest - (high + low) / scale) / 2)
      code = np.asarray(fmt.numbers(fmt.round(jnp.float32(x / scale + zero))))
      return np.square((code.astype(np.float64) - zero) * scale - x).sum()

    ends = (min(x.min(), 0), max(x.max(), 0))
    if spec.symmetric:
      ends = (-np.abs(x).max(), np.abs(x).max())
    best = min(error(s * ends[0], s * ends[1]) for s in np.arange(1, 101) / 100)
    self.assertLess(error(low, high), 1.02 * best)

  def test_least_divergence_clips_what_is_rare(self):
    x = np.concatenate([_RNG.normal(size=100_000), [60.0]])
    _, high = histograms.least_divergence(_add(x), INT8)
    self.assertBetween(high, 3, 12)

  @parameterized.named_parameters(
    ('nothing', [], 0),
    ('zeros', np.zeros(5), 0),
    ('subnormal', [1e-42, -1e-42], 0),
    ('a constant', np.ones(9), 1),
    ('one number', [3.0], 3),
    ('few numbers', [0.1, 0.5, 0.7, 1.3], 1.3),
    ('two numbers', [1.0] * 9 + [100.0] * 9, 100),
    ('zeros beside a few', np.append(np.zeros(90_000), [2, -5, 4]), 5),
    ('tiny', [1e-36, -2e-36], 2e-36),
    ('the largest', [3.4028e38, -3.4028e38], 3.4028e38),
  )
  def test_data_that_has_hardly_a_range(self, x, reach):
    s = _add(np.array(x))
    for spec in (INT8, ASYM):
      for name, found in (
        ('percentile', histograms.percentile(s, 99.99, spec.symmetric)),
        ('mse', histograms.least_squares(s, spec)),
        ('entropy', histograms.least_divergence(s, spec)),
      ):
        self.assertTrue(np.isfinite(np.float32(found)).all(), name)
        # Between two numbers of 4 bits, the best clip is some way below.
        self.assertBetween(max(-found[0], found[1]), 0.8 * reach, 1.01 * reach)


if __name__ == '__main__':
  absltest.main()
