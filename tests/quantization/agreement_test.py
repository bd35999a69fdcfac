"""How near results are: the numbers, and what is refused."""

import contextlib
import io
import math

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.quantization import agreement

EYE = jnp.eye(3)


def _compared(*results, wanted=EYE):
  """Of networks that return what they are given."""
  apply = lambda y, x: y
  (result,) = results
  return agreement.compare(apply, wanted, result, [jnp.zeros(())])


class AgreementTest(parameterized.TestCase):
  def test_numbers(self):
    # The second row is turned by 45 degrees, the third points the other way.
    found = _compared(jnp.array([[1.0, 0, 0], [1, 1, 0], [0, 0, -1]]))
    self.assertAlmostEqual(found.error, math.sqrt((1 + 4) / 3), places=6)
    self.assertAlmostEqual(found.cosine, (1 + 0.5**0.5 - 1) / 3, places=6)
    self.assertEqual(found.least, -1)
    self.assertAlmostEqual(found.argmax, 1 / 3, places=6)
    self.assertEqual((found.rows, found.lost), (3, 0))
    self.assertIn('argmax the same in 33.3% of 3 rows', str(found))

  def test_rows_of_zeros(self):
    wanted = EYE.at[0].set(0)
    found = _compared(wanted, wanted=wanted)
    self.assertEqual((found.cosine, found.least, found.error), (1, 1, 0))
    found = _compared(jnp.zeros((3, 3)), wanted=wanted)
    self.assertAlmostEqual(found.cosine, 1 / 3, places=6)
    self.assertEqual(found.least, 0)

  def test_very_small_and_large_rows(self):
    wanted = jnp.array([[1e-30, 2e-30], [1e7, 2e7]])
    found = _compared(wanted * 2, wanted=wanted)
    self.assertAlmostEqual(found.cosine, 1, places=5)
    # Squares of neither are float32.
    wanted = jnp.array([[1e-25, 2e-25], [0.0, 3e-25]])
    found = _compared(wanted * 2, wanted=wanted)
    self.assertAlmostEqual(found.error, 1, places=5)
    found = _compared(EYE * 1e30)
    self.assertAlmostEqual(found.error / 1e30, 1, places=5)
    self.assertAlmostEqual(found.cosine, 1, places=5)

  @parameterized.product(
    mask=(float(jnp.finfo(jnp.float32).min), -1e9, 1e9, -jnp.inf),
    sign=(1, -1),
  )
  def test_masks_are_left_out(self, mask, sign):
    wanted = -jnp.arange(1.0, 13.0).reshape(3, 4)
    masked = wanted.at[:, 1].set(mask).at[0].set(mask)
    got = (sign * wanted).at[:, 1].set(mask).at[0].set(mask)
    found = _compared(got, wanted=masked)
    self.assertAlmostEqual(found.cosine, sign, places=5)
    self.assertAlmostEqual(found.error, 1 - sign, places=5)
    self.assertEqual((found.argmax, found.rows), (sign == 1, 2))
    masks = 0 if math.isinf(mask) else 6
    self.assertEqual((found.masked, found.lost), (masks, 0))
    self.assertEqual('without 6 masks' in str(found), bool(masks))

  def test_masks_of_half_precision(self):
    least = jnp.finfo(jnp.float16).min
    wanted = jnp.float16(EYE).at[0, 1].set(least)
    found = _compared(jnp.float16(-EYE).at[0, 1].set(least), wanted=wanted)
    self.assertEqual((found.masked, found.cosine), (1, -1))

  @parameterized.parameters(-1e9, 1e9)
  def test_a_mask_in_one_of_both_counts(self, mask):
    wanted = EYE.at[0, 1].set(mask)
    self.assertGreater(_compared(EYE, wanted=wanted).error, 0.99)
    self.assertGreater(_compared(wanted).error, 1e8)
    found = _compared(EYE.at[0, 1].set(-mask), wanted=wanted)
    self.assertEqual((found.masked, found.least), (0, -1))

  def test_an_array_with_itself(self):
    x = jax.random.normal(jax.random.key(0), (8, 5))
    for wanted in (x, x.at[:, 2].set(-1e9), 1e7 * x, 1e-30 * x):
      found = _compared(wanted, wanted=wanted)
      self.assertEqual((found.error, found.argmax), (0, 1))
      self.assertAlmostEqual(found.least, 1, places=5)

  def test_nothing_that_can_be_compared(self):
    with self.assertRaisesRegex(ValueError, '9 numbers.*masks'):
      _compared(jnp.full((3, 3), -1e9), wanted=jnp.full((3, 3), -1e9))
    with self.assertRaisesRegex(ValueError, 'error inf.*norm.* is 0,'):
      _compared(EYE, wanted=0 * EYE)

  def test_results_of_one_number_are_one_row(self):
    wanted = jnp.arange(1.0, 5.0)[:, None]
    found = _compared(wanted[::-1], wanted=wanted)
    self.assertEqual((found.rows, found.argmax), (1, None))
    self.assertAlmostEqual(found.cosine, 20 / 30, places=6)
    self.assertNotIn('argmax', str(found))

  def test_batches_add_up(self):
    apply = lambda w, x, n: {'y': x @ w, 'n': n}  # and an integer
    w, q = jnp.eye(3), jnp.diag(jnp.array([1.0, 1.1, 1.0]))
    x = jax.random.normal(jax.random.key(0), (8, 3))
    whole = agreement.compare(apply, w, q, [(x, 1)])
    parts = agreement.compare(apply, w, q, [(x[:3], 1), dict(x=x[3:], n=2)])
    self.assertEqual(whole.rows, parts.rows)
    for name in ('error', 'cosine', 'least', 'argmax'):
      self.assertAlmostEqual(
        getattr(whole, name), getattr(parts, name), places=5
      )

  def test_numbers_that_are_lost(self):
    found = _compared(EYE.at[0, 0].set(jnp.nan).at[1, 0].set(jnp.inf))
    self.assertEqual(found.lost, 2)
    self.assertIn('2 numbers of the results are NaN', str(found))
    # What the float network has none for is not compared.
    wanted = EYE.at[0, 0].set(-jnp.inf)
    found = _compared(EYE, wanted=wanted)
    self.assertEqual((found.lost, found.error), (0, 0))

  @parameterized.parameters(
    (lambda p, x: x.astype(jnp.int32), [EYE], 'no floating entry'),
    (lambda p, x: x, [], '0 batches'),
    (lambda p, x: x * jnp.nan, [EYE], 'All 9 numbers'),
  )
  def test_refused(self, apply, batches, says):
    with self.assertRaisesRegex(ValueError, says):
      agreement.compare(apply, EYE, EYE, batches)

  def test_traced_arrays(self):
    run = jax.jit(lambda w: agreement.compare(jnp.dot, w, w, [EYE]).cosine)
    with self.assertRaisesRegex(ValueError, 'is traced'):
      run(EYE)

  def test_of_leaves(self):
    w = jax.random.normal(jax.random.key(0), (16, 8))
    apply = lambda p, x: x @ p['kernel']
    q = jc.quantize({'kernel': w}, [('.*', 'W8A8')])
    x = jax.random.normal(jax.random.key(1), (4, 16))
    found = jc.quantization.compare(apply, {'kernel': w}, q, [x])
    self.assertBetween(found.error, 1e-4, 2e-2)


class CheckTest(absltest.TestCase):
  """`jc.quantize(..., check=batches)`."""

  def test_check(self):
    w = jax.random.normal(jax.random.key(0), (64, 32))
    x = jax.random.normal(jax.random.key(1), (16, 64))
    params, rules = {'kernel': w}, [('kernel', 'W8A8')]
    apply = lambda p, x: x @ p['kernel']
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
      jc.quantize(params, rules, check=[x], apply=apply, donate=True)
    self.assertRegex(
      said.getvalue(),
      r'^jc.quantize: error 0.00\d+, cosine 0.9999\d \(least 0.999\d+\), argmax the'
      r' same in \d+\.\d% of 16 rows; 8,192 bytes are 2,176\n$',
    )

  def test_check_of_a_module(self):
    model = nnx.Linear(64, 32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (16, 64))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
      q = jc.quantize(model, [('kernel', 'W8A8'), ('bias', None)], check=[x])
    self.assertIn('cosine 0.9999', said.getvalue())
    self.assertEqual(q(x).shape, (16, 32))

  def test_one_that_is_not_near_is_told_whom_to_ask(self):
    x = jax.random.normal(jax.random.key(1), (16, 64))
    w = jax.random.normal(jax.random.key(0), (64, 32))
    apply = lambda p, x: x @ p['kernel']
    params, rules = {'kernel': w}, [('kernel', 'int3, int8 token')]
    uses = jc.uses(apply)(params, x)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
      jc.quantize(params, rules, uses, check=[x], apply=apply)
    first, second = said.getvalue().splitlines()
    self.assertRegex(first, r'cosine 0\.9[0-8]')
    question = 'jc.sensitivity(apply, params, rules, batches, uses=uses)'
    self.assertTrue(second.endswith(question), second)
    batches = [x]
    names = dict(apply=apply, params=params, rules=rules, batches=batches)
    found = eval(question, dict(jc=jc, uses=uses, **names))
    self.assertEqual(found.rows[0].path, 'kernel')

  def test_a_network_that_has_collapsed(self):
    w = jax.random.normal(jax.random.key(0), (64, 32))
    # One entry of a token is so large that the others have no steps left.
    x = jax.random.normal(jax.random.key(1), (16, 64)).at[:, 0].set(1e4)
    params = {'kernel': w.at[0].set(0)}
    apply = lambda p, x: x @ p['kernel']
    with self.assertRaisesRegex(
      ValueError,
      r'another one: .*cosine 0\.0.*weights alone.*cosine 0\.9999.*jc.sensitivity',
    ):
      jc.quantize(params, [('kernel', 'W8A8')], check=[x], apply=apply)
    with self.assertRaisesRegex(ValueError, 'Give the function.*apply=apply'):
      jc.quantize(params, [('kernel', 'W8A8')], check=[x])

  def test_what_is_checked_without_batches(self):
    with self.assertRaisesRegex(ValueError, 'apply= is for check='):
      jc.quantize({'kernel': EYE}, [('kernel', 'W8A8')], apply=lambda p, x: x)


if __name__ == '__main__':
  absltest.main()
