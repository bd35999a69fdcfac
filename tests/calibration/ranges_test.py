"""Ranges: mergeable histograms and averages, and what is read from them."""

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
from jaxopt_compress.quantization import clip

_RNG = np.random.default_rng(0)
HISTOGRAM = histograms.histogram()
INT8, INT4 = (jc.Spec(f, 'tensor') for f in ('int8', 'int4'))
ASYM = jc.Spec('int4', 'tensor', symmetric=False)


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

  @parameterized.parameters(INT8, INT4, ASYM, jc.Spec('e4m3', 'tensor'))
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
    self.assertEqual(
      histograms.least_divergence(_add(np.zeros(5)), INT8), (0, 0)
    )


class AverageTest(_Case):
  def test_is_the_recurrence(self):
    statistic = ranges.moving_average(0.9)
    batches = [_RNG.normal(size=(20, 1)) * s for s in (1, 3, 2, 5)]
    low = high = 0.0
    for x in batches:
      low, high = 0.9 * low + 0.1 * x.min(), 0.9 * high + 0.1 * x.max()
    states = [_add(x, statistic) for x in batches]
    m = statistic.merge
    left = m(m(m(states[0], states[1]), states[2]), states[3])
    right = m(states[0], m(states[1], m(states[2], states[3])))
    for s in (left, right):
      got = (s.low / s.weight, s.high / s.weight)
      correction = 1 - 0.9**4
      np.testing.assert_allclose(
        got, (low / correction, high / correction), rtol=1e-5
      )


class ClipTest(_Case):
  def test_finds_the_least_of_each_block(self):
    wanted = jnp.array([0.25, 0.6, 1.0, jnp.nan])
    found = clip.search(lambda s: jnp.square(s - wanted))
    np.testing.assert_allclose(found, [0.25, 0.6, 1, 1], atol=0.01)
    np.testing.assert_array_equal(clip.search(lambda s: jnp.zeros(2)), [1, 1])

  @parameterized.parameters(
    'int2',
    'int3 g16',
    'int4 g64 asym',
    'e2m1 g16 nv',
    'e2m1 g32 mx rceil',
    'nf4 g64 dq',
  )
  def test_mse_ranges_round_better(self, words):
    w = jnp.asarray(_RNG.standard_t(4, size=(128, 16)), jnp.float32)
    error = lambda words: float(
      jnp.linalg.norm(
        jc.quantize({'kernel': w}, [('kernel', words)])['kernel'].materialize()
        - w
      )
    )
    self.assertLess(error(words + ' mse'), 0.995 * error(words))

  def test_importance_lowers_the_error_of_outputs(self):
    w = jnp.asarray(_RNG.standard_t(4, size=(2, 64, 16)), jnp.float32)
    size = np.exp(_RNG.normal(size=64))
    x = jnp.asarray(_RNG.normal(size=(200, 64)) * size, jnp.float32)
    f = lambda p, x: jnp.einsum('bi,lio->lbo', x, p['w'])
    uses = jc.uses(f)({'w': w}, x)
    _, stats = jc.observe(f, {'w': jc.sum_squares()})({'w': w}, x)

    def error(importance):
      q = jc.quantize(
        {'w': w}, [('w', 'int3 mse')], uses, importance=importance
      )
      return float(jnp.linalg.norm(f(jc.materialize(q), x) - f({'w': w}, x)))

    self.assertLess(error({'w': stats['w'].state}), 0.95 * error(None))
    with self.assertRaisesRegex(ValueError, 'importance of w has shape'):
      error({'w': jnp.ones(63)})


class CalibrateTest(_Case):
  def setUp(self):
    super().setUp()
    self.params = {
      'layers': {
        'kernel': jnp.asarray(_RNG.normal(size=(3, 16, 16)) / 4, jnp.float32)
      },
      'head': {'kernel': jnp.asarray(_RNG.normal(size=(16, 4)), jnp.float32)},
    }
    self.batches = [
      jnp.asarray(_RNG.normal(size=(64, 16)), jnp.float32) for _ in range(3)
    ]
    self.uses = jc.uses(self.apply)(self.params, self.batches[0])

  def apply(self, p, x):
    step = lambda h, w: (jax.nn.relu(h @ w), None)
    h = lax.scan(step, x, p['layers']['kernel'])[0]
    return h @ p['head']['kernel']

  @parameterized.product(
    method=tuple(ranges.METHODS),
    scheme=('FP8', 'int8, int8 tensor static', 'int8, int8 tensor static asym'),
  )
  def test_static_ranges(self, method, scheme):
    rules = [('.*', scheme)]
    found = jc.calibrate(
      self.apply, self.params, rules, self.batches, self.uses, method
    )
    self.assertEqual(found['layers/kernel'][0].shape, (3, 1, 1))
    q = jc.quantize(self.params, rules, self.uses, ranges=found)
    x = self.batches[0]
    y = jax.jit(jc.lift(self.apply, strict=True))(q, x)
    want = self.apply(self.params, x)
    error = jnp.linalg.norm(y - want) / jnp.linalg.norm(want)
    loose = scheme == 'FP8' or method in ('ema', 'percentile', 'entropy')
    self.assertLess(float(error), 0.12 if loose else 0.03)
    self.assertIn('static', q['head']['kernel'].describe())

  def test_absmax_is_the_largest_of_all_batches(self):
    rules = [('.*', 'int8, int8 tensor static')]
    found = jc.calibrate(
      self.apply, self.params, rules, self.batches, self.uses
    )
    largest = max(float(jnp.abs(x).max()) for x in self.batches)
    np.testing.assert_allclose(
      found['layers/kernel'][0][0, 0, 0], largest / 127.5, rtol=1e-6
    )

  def test_bad_input(self):
    rules = [('.*', 'FP8')]
    run = lambda rules, batches: jc.calibrate(
      self.apply, self.params, rules, batches, self.uses
    )
    with self.assertRaisesRegex(ValueError, 'no range of them'):
      jc.quantize(self.params, rules, self.uses)
    with self.assertRaisesRegex(ValueError, 'no batches'):
      run(rules, [])
    with self.assertRaisesRegex(ValueError, 'No rule has static'):
      run([('.*', 'W8A8')], self.batches)
    with self.assertRaisesRegex(ValueError, 'met only zeros'):
      run(rules, [jnp.zeros((4, 16))])
    with self.assertRaisesRegex(ValueError, 'saw no data'):
      run(rules, [jnp.ones((0, 16))])
    for method in ranges.METHODS:
      x = jnp.ones((4, 16)).at[1, 2].set(jnp.nan)
      with self.assertRaisesRegex(ValueError, 'not finite'):
        jc.calibrate(self.apply, self.params, rules, [x], self.uses, method)
    with self.assertRaisesRegex(ValueError, 'not finite'):
      run(rules, [jnp.full((4, 16), jnp.inf)])
    with self.assertRaisesRegex(ValueError, "Did you mean 'percentile'"):
      jc.calibrate(
        self.apply, self.params, rules, self.batches, self.uses, 'percentil'
      )


if __name__ == '__main__':
  absltest.main()
