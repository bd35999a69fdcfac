"""The clock of training: ranges that follow, residuals, a step that compiles once."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np
import training_models

import jaxopt_compress as jc


class FollowingTest(parameterized.TestCase):
  """Ranges of activations as moving averages of what training meets."""

  def _following(self, words='int8, int8 tensor static asym ema', **options):
    f, params, x = training_models.model('scanned')
    uses = jc.uses(f)(params, x)
    rules = [(r'.*', words)]
    ranges = jc.calibrate(f, params, rules, [x], uses, 'minmax')
    comp = jc.fake_quantize(rules, uses, ranges=ranges, **options)

    @jax.jit
    def step(i, params, state, x):
      def loss(p):
        leaves = comp.apply(p, state)
        y, stats = jc.observe(f, comp.observes(p))(leaves, x)
        return jnp.square(y - 1).mean(), stats

      (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
      params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
      info = jc.Info(i, grads, stats)
      return params, comp.update(state, params, info), value, stats

    return f, params, x, comp, step

  def test_averages(self):
    _, params, x, comp, step = self._following(decay=0.8)
    state = comp.init(params)
    low, high = (np.array(e) for e in state['ends']['a'])
    for i in range(4):
      params, state, _, stats = step(i + 1, params, state, x * (i + 1))
      met = stats['a'].state
      low = 0.8 * low + 0.2 * np.reshape(met.low, (3, 1, 1))
      high = 0.8 * high + 0.2 * np.reshape(met.high, (3, 1, 1))
    # The first layer meets x itself.
    self.assertAlmostEqual(float(met.high[0]), 4 * float(x.max()), places=4)
    np.testing.assert_allclose(state['ends']['a'], (low, high), rtol=1e-5)
    scale, zero = state['ranges']['a']
    np.testing.assert_allclose(scale, (high - low) / 255, rtol=1e-5)
    want = np.round(-0.5 - (high + low) / 2 / np.asarray(scale))
    np.testing.assert_array_equal(zero, want)

  @parameterized.parameters(
    'int8, int8 tensor static asym ema',
    'int4, int8 tensor static ema',
    'e4m3, e4m3 tensor static ema',
  )
  def test_freezes_to_what_was_trained(self, words):
    f, params, x, comp, step = self._following(words)
    state, values = comp.init(params), []
    for i in range(6):
      params, state, value, _ = step(i + 1, params, state, x)
      values.append(float(value))
    self.assertLess(values[-1], values[0])
    self.assertEqual(step._cache_size(), 1)
    frozen = jc.freeze(comp.apply(params, state))
    self.assertIn('static', frozen['a'].describe())
    y = jax.jit(lambda p, s: jc.lift(f)(comp.apply(p, s), x))(params, state)
    np.testing.assert_array_equal(jax.jit(jc.lift(f))(frozen, x), y)

  def test_starts_where_it_was_calibrated(self):
    f, params, x, comp, _ = self._following()
    met = jc.observe(f, {'b': jc.statistics.minmax('tensor')})(params, x)[1][
      'b'
    ].state
    ends = [e.item() for e in comp.init(params)['ends']['b']]
    np.testing.assert_allclose(ends, met, atol=0.01)  # zero points are integers

  def test_without_statistics(self):
    _, params, _, comp, _ = self._following()
    state = comp.init(params)
    with self.assertRaisesRegex(
      ValueError, r'a meets.*comp.observes\(params\)'
    ):
      comp.update(state, params, jc.Info(1))

  def test_statistics_of_parameters_of_another_rank(self):
    f, params, x, comp, _ = self._following()
    state = comp.init(params)
    _, stats = jc.observe(f, comp.observes(params))(params, x)
    more = jax.tree.map(lambda w: w[None], params)
    with self.assertRaisesRegex(ValueError, r'stacks of .* of these shapes'):
      comp.update(state, more, jc.Info(1, None, stats))

  def test_words(self):
    with self.assertRaisesRegex(ValueError, "'ema' is for static"):
      jc.schemes.Spec('int8', 'tensor', learn='ema')
    with self.assertRaisesRegex(ValueError, 'ema.* is for activations'):
      jc.Scheme(jc.schemes.Spec('int8', 'tensor', static=True, learn='ema'))


class ClockTest(parameterized.TestCase):
  def test_learned_ranges_of_other_parameters(self):
    comp = jc.fake_quantize([('w', 'int4 lsq')], uses=in_out.IN_OUT)
    state = comp.init({'w': jnp.ones((4, 6))})
    said = r'w, shape \(4, 2\), has ranges of shape \(1, 2\), .* \(1, 6\)'
    with self.assertRaisesRegex(ValueError, said):
      comp.apply({'w': jnp.ones((4, 2))}, state)
    with self.assertRaisesRegex(ValueError, said):
      comp.update(state, {'w': jnp.ones((4, 2))}, jc.Info(1))

  def test_rules_are_checked_and_none_leaves_alone(self):
    params = {'w': training_models.normal(8, 4), 'b': jnp.ones(4)}
    comp = jc.fake_quantize([('w', 'W8A8'), ('b', None)], uses=in_out.IN_OUT)
    self.assertIs(comp.apply(params, comp.init(params))['b'], params['b'])
    with self.assertRaisesRegex(ValueError, 'No rule covers b'):
      jc.fake_quantize([('w', 'W8A8')], uses=in_out.IN_OUT).apply(params, ())

  @parameterized.parameters(*training_models.SCHEMES)
  def test_original_residuals(self, scheme):
    """Forward as ever; backward the two products of unrounded operands."""
    f, params, x = (
      lambda p, x: x @ p['a'],
      {'a': training_models.normal(8, 4)},
      training_models.normal(5, 8),
    )
    rules, uses = (
      [(r'.*', training_models.SCHEMES[scheme])],
      jc.uses(f)(params, x),
    )
    out, pull = {}, {}
    for original in (False, True):
      comp = jc.fake_quantize(rules, uses, original_residuals=original)
      run = lambda p, x, comp=comp: jc.lift(f)(comp.apply(p, ()), x)
      out[original], pull[original] = jax.vjp(run, params, x)
    np.testing.assert_array_equal(out[True], out[False])
    g = training_models.normal(5, 4, seed=4)
    dp, dx = pull[True](g)
    np.testing.assert_allclose(dp['a'], x.T @ g, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, g @ params['a'].T, rtol=1e-5, atol=1e-6)
    self.assertGreater(jnp.abs(dx - pull[False](g)[1]).max(), 1e-4)

  @parameterized.parameters(
    'int8 lsq', 'int8, int8 tensor static lsq', 'int8, int8, int8'
  )
  def test_original_residuals_need_no_rounded_ones(self, scheme):
    with self.assertRaisesRegex(ValueError, 'original_residuals=True, and'):
      jc.fake_quantize(
        [('w', scheme)], original_residuals=True, uses=in_out.IN_OUT
      )

  def test_a_step_of_training_compiles_once_and_learns(self):
    f, params, x, comp, *_ = training_models.setup('mlp', 'W4G4')
    target = f(jax.tree.map(lambda w: w[::-1], params), x)
    traces = []

    @jax.jit
    def step(params):
      traces.append(1)
      loss = lambda p: jnp.square(
        jc.lift(f)(comp.apply(p, ()), x) - target
      ).mean()
      value, grads = jax.value_and_grad(loss)(params)
      return jax.tree.map(lambda w, g: w - 0.1 * g, params, grads), value

    values = []
    for _ in range(30):
      params, value = step(params)
      values.append(float(value))
    self.assertLen(traces, 1)
    self.assertLess(values[-1], 0.2 * values[0])


if __name__ == '__main__':
  absltest.main()
