"""An array and its matrices: the tuples agree with what arrays do."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import matrix

# Rows 2 x 3 and columns 4 x 5, in an array whose axes are mixed.
M = matrix.Matrix((2, 3), (4, 5), (2, 0, 3, 1))


class MatrixTest(parameterized.TestCase):
  def test_there_and_back(self):
    self.assertEqual(M.shape, (4, 2, 5, 3))
    x = jnp.arange(7 * 120).reshape(7, *M.shape)
    rows = M.to_matrix(x)
    self.assertEqual(rows.shape, (7, 6, 20))
    # Row (1, 2) and column (3, 4) of the last one.
    self.assertEqual(rows[6, 5, 19], x[6, 3, 1, 4, 2])
    np.testing.assert_array_equal(M.from_matrix(rows), x)

  @parameterized.parameters(
    (matrix.Matrix((4, 6), (10,), (0, 1, 2)), (24, 10)),
    (matrix.Matrix((4, 6), (10,), (0, 1, 2)), (2, 2, 6, 5, 2)),
    (matrix.Matrix((4, 6), (10,), (0, 1, 2)), (24, 1, 10)),
    (matrix.Matrix((4, 6), (10,), (2, 0, 1)), (2, 5, 24)),
    (matrix.Matrix((4, 6), (10, 3), (2, 3, 0, 1)), (30, 8, 3)),
    (M, (2, 2, 2, 5, 3)),
  )
  def test_reshaped_has_the_same_matrix(self, m, shape):
    x = jnp.arange(math.prod(m.shape)).reshape(m.shape)
    new = m.reshaped(shape)
    self.assertEqual(new.shape, shape)
    np.testing.assert_array_equal(
      new.to_matrix(x.reshape(shape)), m.to_matrix(x)
    )

  def test_transposed_has_the_same_matrix(self):
    x = jax.random.normal(jax.random.key(0), M.shape)
    order = (3, 0, 2, 1)
    new = M.transposed(order)
    self.assertEqual(new.shape, (3, 4, 5, 2))
    np.testing.assert_array_equal(
      new.to_matrix(jnp.transpose(x, order)), M.to_matrix(x)
    )

  def test_a_last_group_with_fewer_rows(self):
    scale = jnp.array([[1.0], [2.0], [3.0]])
    self.assertEqual(matrix.by_row(scale, 2, 5)[:, 0].tolist(), [1, 1, 2, 2, 3])
    self.assertEqual(matrix.by_row(scale[:1], 5, 5).shape, (1, 1))


if __name__ == '__main__':
  absltest.main()
