"""Convolutions that keep channels apart: how they lie, seen with any axes."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import matrix
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import quads

M = matrix.Matrix((5, 3, 1), (24,), (0, 1, 2, 3))
PLAN = plan_lib.Plan('int8', jnp.dtype('float32'), M, M.k, None, 24)


class QuadsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    shape = M.k, M.n
    self.integers = jax.random.randint(jax.random.key(0), shape, -128, 128)
    self.leaf = quads.lay_out(
      self.integers, PLAN, jnp.ones((1, 24)), None, None, None
    )

  def test_four_taps_of_a_column_lie_side_by_side(self):
    payload = plan_lib.part(self.leaf, 'payload')
    # Five rows take two quads, 24 columns two vectors of sixteen.
    self.assertEqual(payload.shape, (2, 3, 32, 4))
    taps = self.integers.reshape(5, 3, 24)
    np.testing.assert_array_equal(payload[0, 1, 7], taps[:4, 1, 7])
    self.assertEqual(payload[1, 1, 7].tolist(), [int(taps[4, 1, 7]), 0, 0, 0])

  def test_seen_with_other_axes(self):
    dense = self.leaf.materialize()
    np.testing.assert_array_equal(dense, self.integers.reshape(5, 3, 1, 24))
    for shape in ((15, 24), (5, 3, 24), (15, 1, 4, 6)):
      seen = plan_lib.seen_as(self.leaf, M.reshaped(shape))
      np.testing.assert_array_equal(seen.materialize(), dense.reshape(shape))


if __name__ == '__main__':
  absltest.main()
