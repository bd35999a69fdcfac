"""Matrices in panels: shapes of the parts, and features in groups."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import matrix
from jaxopt_compress.kernels.leaves import panels
from jaxopt_compress.kernels.leaves import plan as plan_lib


class PanelsTest(absltest.TestCase):
  def test_groups_of_features_are_an_axis_of_their_own(self):
    m = matrix.Matrix((3, 3, 4), (12,), (0, 1, 2, 3))
    plan = plan_lib.Plan('int8', jnp.dtype('float32'), m, m.k, None, 2)
    codes = jax.random.randint(jax.random.key(0), (m.k, m.n), 0, 256)
    scale = jnp.arange(12.0)[None]
    leaf = panels.lay_out(
      codes.astype(jnp.uint8), plan, scale, None, None, None, None
    )
    # Two groups, one panel of six columns each, 9 units of four rows.
    self.assertEqual(plan_lib.part(leaf, 'payload').shape, (2, 1, 9, 128))
    self.assertEqual(
      plan_lib.part(leaf, 'scale').tolist(),
      [[[0, 1, 2, 3, 4, 5]], [[6, 7, 8, 9, 10, 11]]],
    )
    numbers, of_columns, zero, _ = leaf.matrices()
    np.testing.assert_array_equal(numbers, codes - 128)
    np.testing.assert_array_equal(of_columns, scale)
    self.assertIsNone(zero)


if __name__ == '__main__':
  absltest.main()
