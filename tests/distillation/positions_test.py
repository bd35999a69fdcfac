"""Positions and their weights, by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import features
from jaxopt_compress.distillation import positions


class PreparedTest(absltest.TestCase):
  def test_masked_logits_are_zero_and_others_float32(self):
    logits = jnp.array([[1.0, jnp.nan], [2.0, -3.0]], jnp.bfloat16)
    got = positions.prepared(logits, jnp.array([0, 2]))
    self.assertEqual(got.dtype, jnp.float32)
    self.assertEqual(got.tolist(), [[0.0, 0.0], [2.0, -3.0]])

  def test_nothing_is_lost_without_a_mask(self):
    x = jnp.array([[1.0, 2.0]])
    np.testing.assert_array_equal(positions.prepared(x, None), x)


class TotalTest(parameterized.TestCase):
  @parameterized.parameters(
    ([1.0, 2.0, 4.0], None, 7.0, 3.0),
    ([1.0, 2.0, 4.0], [True, False, True], 5.0, 2.0),
    ([1.0, 2.0, 4.0], [0.5, 0.0, 2.0], 8.5, 2.5),
    ([1.0, np.nan, np.inf], [1.0, 0.0, 0.0], 1.0, 1.0),
    ([1.0, 2.0, 4.0], [0, 0, 0], 0.0, 0.0),
  )
  def test_sum_and_count(self, loss, mask, want_sum, want_count):
    mask = None if mask is None else jnp.array(mask)
    total, count = positions.total(jnp.array(loss), mask)
    self.assertEqual((float(total), float(count)), (want_sum, want_count))

  def test_weights_are_not_learned(self):
    def weighted(mask):
      return positions.total(jnp.array([3.0, 5.0]), mask)[0]

    self.assertEqual(jax.grad(weighted)(jnp.ones(2)).tolist(), [0.0, 0.0])


class MeanTest(absltest.TestCase):
  def test_nothing_has_the_mean_zero(self):
    def mean(x, mask):
      return positions.mean(*positions.total(x, mask))

    x = jnp.array([1.0, 2.0])
    for mask, value, derivative in (
      ([0.5, 0.0], 1.0, [1.0, 0.0]),
      ([False, False], 0.0, [0.0, 0.0]),
    ):
      got, grads = jax.value_and_grad(mean)(x, jnp.array(mask))
      self.assertEqual((float(got), grads.tolist()), (value, derivative))


class TermTest(parameterized.TestCase):
  @parameterized.parameters(
    # log has no value below 0, and no derivative at 0
    (0.0, -1.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0),
    (2.0, 1.0, 0.0, 2.0),
    (2.0, -1.0, np.nan, -2.0),
  )
  def test_value_and_derivative(self, weight, x, value, derivative):
    def f(x, weight):
      return jnp.asarray(positions.term(weight, jnp.log, x))

    for w in (weight, jnp.float32(weight)):
      both = jax.value_and_grad(f)
      np.testing.assert_array_equal(both(x, w), (value, derivative))
      np.testing.assert_array_equal(jax.jit(both)(x, w), (value, derivative))
      mapped = jax.vmap(both, (None, 0))(x, jnp.full(2, w))
      np.testing.assert_array_equal(mapped, [[value] * 2, [derivative] * 2])

  def test_a_weight_has_its_derivative_at_zero(self):
    f = jax.grad(lambda weight: positions.term(weight, jnp.exp, 1.0))
    np.testing.assert_allclose(f(0.0), np.e, rtol=1e-6)


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    ((2, 3), (2, 3), (3,), r'mask has shape \(3,\); \(2,\) is expected'),
    ((2, 3), (4, 3), None, 'Give both the same examples'),
    ((2, 3), (2, 5), None, 'different classes'),
    ((0, 3), (0, 3), None, 'nothing to compare'),
    ((), (), None, 'nothing to compare'),
  )
  def test_what_it_refuses(self, student, teacher, mask, message):
    mask = None if mask is None else jnp.ones(mask)
    with self.assertRaisesRegex(ValueError, message):
      positions.check_pair(jnp.ones(student), jnp.ones(teacher), mask)

  @parameterized.parameters(
    lambda x, mask: positions.check_pair(x, x, mask),
    lambda x, mask: features.hint(x, x, mask=mask),
    lambda x, mask: features.minilm_v2((x,) * 3, (x,) * 3, mask=mask),
  )
  def test_a_negative_weight_is_refused_where_it_is_known(self, f):
    x, mask = jnp.ones((2, 3, 16)), np.float32([[1, 0, -1], [1, 1, 1]])
    for known in (mask, jnp.asarray(mask)):
      with self.assertRaisesRegex(ValueError, 'a weight of -1.0; 0 drops'):
        f(x, known)
    f(x, mask >= 0)
    jax.eval_shape(f, x, mask)


if __name__ == '__main__':
  absltest.main()
