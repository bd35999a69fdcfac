"""Factors on their way: which unknowns are told apart, and which are joined."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import factor_rules
from jaxopt_compress.analysis import factors

W, X = np.ones((2, 3), np.float32), np.ones((5, 2), np.float32)


def _walked(f, *params):
  """The collected equations and the result of `f(*params, X)`."""
  asked = factors.Factors(factor_rules.RULES)
  closed = jax.make_jaxpr(f)(*params, X)
  inputs = [factors.parameter(str(i), p) for i, p in enumerate(params)]
  inputs.append(factors.plain(X.shape))
  (out,) = algebra.evaluate(asked, closed, inputs)
  return asked, out


class FactorsTest(absltest.TestCase):
  def test_a_weight_starts_one_unknown_for_each_output(self):
    asked, y = _walked(lambda w, x: jax.nn.relu(x @ w), W)
    np.testing.assert_array_equal(y.factors, [[1, 2, 3]])
    (taken,) = asked.taken
    (plus, after), (minus, before) = taken.terms
    self.assertEqual(
      (taken.path, taken.product, plus, minus), ('0', True, 1, -1)
    )
    np.testing.assert_array_equal(after, [[1, 2, 3]])
    np.testing.assert_array_equal(before, [[0]])

  def test_a_sum_carries_one_factor(self):
    """Unknowns 1 to 3 of the product, 4 to 6 of the bias: pairs are equal."""
    asked, y = _walked(lambda w, b, x: x @ w + b, W, W[:1])
    self.assertEqual(y.factors.tolist(), [[1, 2, 3]])
    self.assertEqual(
      [np.stack(pair, 1).tolist() for pair in asked.same if pair[0].size],
      [[[1, 4], [2, 5], [3, 6]]],
    )

  def test_what_has_no_rule_is_fixed(self):
    asked, y = _walked(lambda w, x: jnp.exp(x @ w), W)
    self.assertTrue(y.fixed)
    self.assertEqual(asked.ones, {1, 2, 3})

  def test_a_parameter_moved_and_scaled_is_still_one(self):
    asked, y = _walked(lambda w, x: 2 * w.T, W)
    self.assertEqual((y.path, asked.taken), ('0', []))
    np.testing.assert_array_equal(y.index, np.arange(6).reshape(2, 3).T)
    np.testing.assert_array_equal(y.read(), 2 * W.T)

  def test_turns_of_a_scan_are_told_apart(self):
    def f(ws, x):
      return jax.lax.scan(lambda h, w: (h @ w, h), x, ws)[1]

    asked, ys = _walked(f, np.ones((3, 2, 2), np.float32))
    self.assertLen(asked.taken, 3)
    # Each turn gives what it was given: nothing, and what two layers start.
    np.testing.assert_array_equal(ys.factors, [[[0, 0]], [[1, 2]], [[3, 4]]])

  def test_one_along(self):
    asked = factors.Factors({})
    made = asked.fresh((2, 3))
    np.testing.assert_array_equal(asked.one_along(made, (1,)), [[1], [4]])
    ((a, b),) = asked.same
    self.assertEqual(
      list(zip(a.tolist(), b.tolist())), [(2, 1), (3, 1), (5, 4), (6, 4)]
    )

  def test_a_gain_that_is_not_known(self):
    like = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    asked, _ = _walked(lambda g, x: jnp.sin(x) * g, like)
    (taken,) = asked.taken
    with self.assertRaisesRegex(
      ValueError, 'What 0 multiplies by is not known'
    ):
      taken.gain()


if __name__ == '__main__':
  absltest.main()
