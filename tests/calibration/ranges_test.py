"""Ranges of activations: averages, and what calibration finds."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.calibration import histograms
from jaxopt_compress.calibration import ranges
from jaxopt_compress.quantization import ranges as quantization_ranges

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


class MethodsTest(_Case):
  @parameterized.product(method=tuple(ranges.METHODS), act=(INT8, ASYM))
  def test_any_mixture_of_batches(self, method, act):
    method = ranges.METHODS[method]()
    x = _RNG.normal(size=8)
    wrong = np.array([1.0, np.nan]), np.array([-np.inf, 1.0])

    def read(*batches):
      add = lambda b: _add(b, method.statistic)
      state = functools.reduce(method.statistic.merge, map(add, batches))
      return np.float32(method.read(jax.tree.map(np.asarray, state), act))

    low, high = read(x)
    self.assertLess(low, high)
    self.assertEqual(read(0 * x, 0 * x).tolist(), [0, 0])
    for batches in ((x, x[:0]), (x[:0], x)):
      np.testing.assert_array_equal(read(*batches), (low, high))
    for b in wrong:
      for batches in ((b, x), (x, b), (b, 0 * x)):
        self.assertFalse(np.isfinite(read(*batches)).all())


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

  def test_batches_of_several_arguments(self):
    f = lambda p, x, scale=1.0: x * scale @ p['w']
    x, p, rules = jnp.eye(4), {'w': jnp.ones((4, 2))}, [('w', 'FP8')]
    run = lambda *batches: jc.calibrate(
      f, p, rules, batches, uses=in_out.IN_OUT
    )['w'][0]
    want = run(3 * x)
    for batch in ((x, 3.0), {'x': x, 'scale': 3.0}):
      np.testing.assert_array_equal(run(x, batch), want)
    with self.assertRaisesRegex(TypeError, 'missing') as caught:
      run({'scale': 3.0})
    self.assertIn("keyword arguments ['scale']", caught.exception.__notes__[-1])

  def test_layer_that_meets_zeros_is_named(self):
    layers = self.params['layers']['kernel'].at[1].set(0)
    params = {**self.params, 'layers': {'kernel': layers}}
    rules = [('layers.*', 'FP8'), ('.*', None)]
    with self.assertRaisesRegex(ValueError, r'layers/kernel at \[2\] met only'):
      jc.calibrate(self.apply, params, rules, self.batches, self.uses, 'mse')

  def test_wide_ranges_stay_finite(self):
    low, high = jnp.full((2, 1, 1), 3e38) * jnp.array([[[-1.0]], [[1.0]]])
    scale, _ = quantization_ranges.of_ends(low, high, ASYM)
    np.testing.assert_allclose(scale, 3e38 / 7.5, rtol=1e-6)

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
    with self.assertRaisesRegex(ValueError, 'saw no data'):
      run(rules, [jnp.ones((0, 16))])
    with self.assertRaisesRegex(ValueError, 'percent=0 of the entries'):
      ranges.percentile(0)
    with self.assertRaisesRegex(ValueError, 'decay=1.5: a batch leaves'):
      ranges.ema(1.5)
    with self.assertRaisesRegex(ValueError, 'not finite'):
      run(rules, [jnp.full((4, 16), jnp.inf)])
    with self.assertRaisesRegex(ValueError, "Did you mean 'percentile'"):
      jc.calibrate(
        self.apply, self.params, rules, self.batches, self.uses, 'percentil'
      )


if __name__ == '__main__':
  absltest.main()
