"""Pooling to other sides, bin by bin."""

from absl.testing import absltest
from absl.testing import parameterized
import by_oracle
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation.features import pooling

X = by_oracle.values(0, 2, 7, 4, 3)


def _oracle(x, sides):
  out = np.zeros((len(x), *sides, x.shape[-1]))
  cut = lambda i, n, m: slice(i * n // m, int(np.ceil((i + 1) * n / m)))
  for i in range(sides[0]):
    for j in range(sides[1]):
      rows, columns = cut(i, 7, sides[0]), cut(j, 4, sides[1])
      out[:, i, j] = x[:, rows, columns].mean((1, 2))
  return out


class PoolingTest(parameterized.TestCase):
  @parameterized.parameters((7, 4), (7, 2), (3, 3), (1, 1), (9, 8))
  def test_bins(self, *sides):
    got = pooling.pooled(jnp.asarray(X, jnp.float32), sides)
    np.testing.assert_allclose(got, _oracle(X, sides), rtol=1e-5, atol=1e-6)

  def test_tokens_are_not_pooled(self):
    with self.assertRaisesRegex(ValueError, 'Of tokens'):
      pooling.pooled(jnp.ones((2, 5, 3)), (4,))


if __name__ == '__main__':
  absltest.main()
