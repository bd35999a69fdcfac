"""Attention transfer against equation 2, in float64 numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import by_oracle
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation.features import attention_maps as at
from jaxopt_compress.distillation.features import pooling

S, T = by_oracle.values(0, 6, 4, 4, 3), by_oracle.values(1, 6, 4, 4, 5)
PLACES = np.ones((6, 4, 4), np.float32)
PLACES[0, :2] = PLACES[2] = PLACES[3, :, 1] = 0


def _maps(x, mask, power):
  if mask is not None and mask.ndim > 1:
    x = x * (mask != 0)[..., None]
  q = np.sum(np.abs(x) ** power, -1).reshape(len(x), -1)
  lengths = np.sqrt(np.sum(q * q, -1, keepdims=True))
  return q / np.where(lengths == 0, 1, lengths)


def _oracle(power, squared):
  def oracle(s, t, mask):
    difference = _maps(s, mask, power) - _maps(t, mask, power)
    loss = (
      np.mean(difference**2, -1)
      if squared
      else np.sqrt(np.sum(difference**2, -1))
    )
    weights = np.ones(len(s))
    if mask is not None:
      weights = mask if mask.ndim == 1 else mask.reshape(len(s), -1).any(-1)
    return np.sum(weights * loss), np.sum(weights)

  return oracle


class AttentionTransferTest(parameterized.TestCase):
  @parameterized.product(
    power=[2.0, 4.0, 1.0], squared=[False, True], mask=[None]
  )
  def test_value_and_gradient(self, power, squared, mask):
    options = dict(power=power, squared=squared)
    oracle = _oracle(**options)
    by_oracle.check(at.attention_transfer, oracle, S, T, mask, **options)

  @parameterized.parameters((by_oracle.EXAMPLES,), (PLACES,))
  def test_masks(self, mask):
    by_oracle.check(at.attention_transfer, _oracle(2.0, False), S, T, mask)

  def test_larger_maps_are_pooled(self):
    large = by_oracle.values(2, 6, 8, 8, 3)
    # Pooled are the maps, not the values.
    small = np.sum(large**2, -1).reshape(6, 4, 2, 4, 2).mean((2, 4))
    got, _, _ = by_oracle.run(at.attention_transfer, large, T)
    root = np.sqrt(small)[..., None]
    want, _ = _oracle(2.0, False)(root, T, None)
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_equal_and_zero_maps_have_finite_derivatives(self):
    for s in (S, 0 * S):
      loss, _, grads = by_oracle.run(at.attention_transfer, s, S)
      self.assertTrue(np.isfinite(loss) and np.isfinite(grads).all())

  @parameterized.parameters(
    ((6, 4, 3), (6, 5, 3), 'no images'),
    ((6, 4, 3), (6, 2, 2, 3), 'as many axes'),
    ((6, 4, 3), (5, 4, 3), 'same examples'),
  )
  def test_refused(self, s, t, error):
    with self.assertRaisesRegex(ValueError, error):
      at.attention_transfer(jnp.ones(s), jnp.ones(t))

  def test_pooling_is_that_of_the_equation(self):
    self.assertEqual(pooling.pooled(jnp.asarray(S), (4, 4)).shape, S.shape)


if __name__ == '__main__':
  absltest.main()
