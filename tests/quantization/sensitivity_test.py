"""What rounding costs: each row against the network that it is about."""

import dataclasses
import math

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.quantization import agreement
from jaxopt_compress.quantization import sensitivity

_KEYS = [jax.random.key(i) for i in range(6)]
X = jax.random.normal(_KEYS[0], (24, 32))
PARAMS = {
  'first': jax.random.normal(_KEYS[1], (32, 32)) / 6,
  'layers': jax.random.normal(_KEYS[2], (2, 32, 32)) / 6,
  'last': jax.random.normal(_KEYS[3], (32, 5)) / 6,
  'bias': jnp.ones((1, 5)),
}
REST = ('.*', None)
RULES = [('first|layers|last', 'int4, int8 token'), REST]


def _apply(p, x):
  x = jnp.tanh(x @ p['first'])
  # Far from centred, as what comes out of a norm with a shift.
  x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w) + 2, None), x, p['layers'])
  return x @ p['last'] + p['bias']


def _found(rules=RULES, **how):
  uses = jc.uses(_apply)(PARAMS, X)
  return jc.sensitivity(_apply, PARAMS, rules, [X], uses=uses, **how)


class SensitivityTest(parameterized.TestCase):
  def test_rows(self):
    found = _found(examine=0)
    uses = jc.uses(_apply)(PARAMS, X)
    self.assertLen(found.rows, 3 * 4)
    names = ['first', 'last', 'layers[0]', 'layers[1]']
    self.assertEqual(sorted({row.path for row in found.rows}), names)
    errors = [row.error for row in found.rows if row.part == 'both']
    self.assertEqual(errors, sorted(errors, reverse=True))

    def error(rules, layers=(0, 1)):
      q = jc.quantize(PARAMS, [*rules, REST], uses)
      if layers != (0, 1):
        w = PARAMS['layers']
        q['layers'] = w.at[layers[0]].set(q['layers'].materialize()[layers[0]])
      return agreement.compare(_apply, PARAMS, q, [X])

    for name in ('first', 'last'):
      parts = found.of(name)
      both = error([(name, 'int4, int8 token')])
      self.assertAlmostEqual(parts['both'].error, both.error, delta=1e-4)
      self.assertAlmostEqual(parts['both'].cosine, both.cosine, delta=1e-4)
      weight = error([(name, 'int4')])
      self.assertAlmostEqual(parts['weight'].error, weight.error, delta=1e-4)
      # Squares add up.
      apart = math.hypot(weight.error, parts['activations'].error)
      self.assertAlmostEqual(both.error / apart, 1, delta=0.1)
    layer = error([('layers', 'int4')], (1,))
    got = found.of('layers[1]')['weight']
    self.assertAlmostEqual(got.error, layer.error, delta=1e-4)
    self.assertEqual(got.weight, 'layers')
    q = jc.quantize(PARAMS, RULES, uses)
    self.assertEqual(got.bytes, jc.nbytes(q['layers']) // 2)
    self.assertEqual(got.format, 'int4 channel')
    whole = agreement.compare(_apply, PARAMS, q, [X])
    self.assertAlmostEqual(found.together.error, whole.error, delta=1e-3)
    weights = {k: w.weight if k != 'bias' else w for k, w in q.items()}
    alone = agreement.compare(_apply, PARAMS, weights, [X])
    self.assertAlmostEqual(found.parts['weight'].error, alone.error, delta=1e-3)
    apart = math.hypot(alone.error, found.parts['activations'].error)
    self.assertAlmostEqual(whole.error / apart, 1, delta=0.1)

  def test_a_weight_whose_results_are_lost_is_no_measure_of_others(self):
    rules = [('first|last', 'int4'), REST]
    found = _found(rules, examine=0)
    rows = [
      dataclasses.replace(row, error=math.inf) if row.path == 'last' else row
      for row in found.rows
    ]
    lost = dataclasses.replace(found, rows=tuple(rows))
    tried = sensitivity._to_try(lost, (), 8)
    self.assertEqual(list(tried), ['last', 'first'])

  def test_points_to_what_is_not_centred(self):
    """What the weights behind the shift meet is to blame, and a zero point helps."""
    found = _found([('first|layers|last', 'int8, int4 token'), REST])
    first, last = found.of('first'), found.of('last')
    self.assertGreater(last['activations'].error, 4 * last['weight'].error)
    self.assertGreater(last['both'].error, 2 * first['both'].error)
    helps = {
      row.format: row.error
      for row in found.better
      if (row.path, row.part) == ('last', 'activations')
    }
    self.assertLess(helps['int4 token asym'], 0.6 * last['activations'].error)
    self.assertIn('activations int8 token asym', str(found))

  def test_weights_only(self):
    found = _found([('first|last', 'int4'), REST], examine=0)
    self.assertEqual({row.part for row in found.rows}, {'weight'})
    self.assertIn(' -  ', str(found))

  def test_others(self):
    found = _found([('last', 'int4'), REST], others=('int6', 'int8 g16'))
    tried = {row.format: row.error for row in found.better}
    self.assertLess(tried['int6 channel'], found.rows[0].error)
    self.assertIn('int8 g16', tried)

  def test_nnx_module(self):
    model = nnx.Sequential(
      nnx.Linear(32, 16, rngs=nnx.Rngs(0)), nnx.Linear(16, 4, rngs=nnx.Rngs(1))
    )
    apply = lambda model, x: model(x)
    uses = jc.uses(apply)(model, X)
    rules = [(r'.*kernel', 'W8A8'), REST]
    found = jc.sensitivity(apply, model, rules, [X], uses=uses, examine=0)
    self.assertLen(found.rows, 6)
    self.assertBetween(found.together.error, 1e-4, 0.05)

  @parameterized.named_parameters(
    ('nothing', [REST], [X], 'so that nothing is rounded'),
    ('no batches', RULES, [], '0 batches'),
    ('a range', [('first', 'FP8'), REST], [X], 'no\n? ?range of them'),
    ('a typo', [('frist', 'W8A8'), REST], [X], "Did you mean 'first'"),
    ('no numbers', RULES, [X * jnp.nan], 'NaN or infinite'),
  )
  def test_refused(self, rules, batches, says):
    uses = jc.uses(_apply)(PARAMS, X)
    with self.assertRaisesRegex(ValueError, says):
      jc.sensitivity(_apply, PARAMS, rules, batches, uses=uses)


if __name__ == '__main__':
  absltest.main()
