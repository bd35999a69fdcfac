"""Losses of numbers, against float64 numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.train.tasks import errors

RNG = np.random.default_rng(0)
Y, T = RNG.normal(size=(2, 7, 3))
MASK = RNG.random((7, 3)) < 0.5


def of_huber(e):
  return np.where(np.abs(e) <= 0.5, e**2 / 2, 0.5 * (np.abs(e) - 0.25))


CASES = {
  'mse': (errors.mse, {}, np.square),
  'mae': (errors.mae, {}, np.abs),
  'huber': (errors.huber, dict(delta=0.5), of_huber),
}


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_equation(self, name):
    loss, numbers, of = CASES[name]
    for mask in (None, MASK):
      kept = np.ones_like(MASK) if mask is None else mask
      total, count = loss(jnp.float32(Y), jnp.float32(T), mask, **numbers)
      np.testing.assert_allclose(total, of(Y - T)[kept].sum(), rtol=1e-5)
      self.assertEqual(int(count), kept.sum())

  @parameterized.parameters(*CASES)
  def test_what_does_not_count_may_be_anything(self, name):
    loss, numbers, _ = CASES[name]
    y = jnp.float32(np.where(MASK, Y, np.nan))
    grad = jax.grad(lambda y: loss(y, jnp.float32(T), MASK, **numbers)[0])(y)
    self.assertTrue(np.isfinite(grad).all())
    self.assertFalse(np.asarray(grad)[~MASK].any())

  def test_an_axis_of_one(self):
    y, t = jnp.ones((4, 1), jnp.bfloat16), jnp.zeros(4, jnp.int32)
    self.assertEqual([float(x) for x in errors.mse(y, t)], [4, 4])
    for shape in ((4, 2), (1,), (4, 4)):
      with self.assertRaisesRegex(ValueError, r'targets \[4\]; one number'):
        errors.mse(jnp.ones(shape), t)

  def test_mistakes(self):
    with self.assertRaisesRegex(ValueError, 'delta=0; a positive'):
      errors.huber(jnp.ones(2), jnp.ones(2), delta=0)


if __name__ == '__main__':
  absltest.main()
