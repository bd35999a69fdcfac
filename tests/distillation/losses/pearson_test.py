"""Correlation against numpy, and where there is none."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation.losses import pearson

distance = jax.jit(pearson.distance, static_argnames='axis')
gradient = jax.jit(
  jax.value_and_grad(lambda a, b, w: pearson.distance(a, b, w, axis=-1))
)


class PearsonTest(parameterized.TestCase):
  @parameterized.parameters(0, 1)
  def test_against_numpy(self, axis):
    a, b = (
      np.asarray(jax.random.normal(jax.random.key(i), (5, 4))) for i in (0, 1)
    )
    got = distance(a, 1e3 + b, jnp.ones((5, 4)), axis=axis)
    rows = (a.T, b.T) if axis == 0 else (a, b)
    want = [1 - np.corrcoef(x, y)[0, 1] for x, y in zip(*rows, strict=True)]
    np.testing.assert_allclose(got, want, rtol=2e-3)

  @parameterized.parameters(
    # a, b, weights, expected
    ([0.1, 0.1, 0.1], [0.3, 0.3, 0.3], [1, 1, 1], 0),
    ([0.1, 0.1, 0.1], [1, 2, 3], [1, 1, 1], 1),
    ([0.7, 1, 2], [0.2, 5, 3], [0.3, 0, 0], 0),
    ([1, 2, 9], [2, 4, -9], [1, 1, 0], 0),
    ([1, 2, 3], [3, 2, 1], [0, 0, 0], 0),
    ([1, 2, 9], [-1e-18, 1e-18, 1], [1, 1, 0], 0),
  )
  def test_what_does_not_vary(self, a, b, weights, expected):
    a, b, weights = (jnp.asarray(x, jnp.float32) for x in (a, b, weights))
    value, grads = gradient(a, b, weights)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    np.testing.assert_allclose(grads, 0, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
