"""The parts of a loss."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.train.step import loss as loss_lib


class TotalTest(parameterized.TestCase):
  def test_each_part_has_a_count_of_its_own(self):
    """2 * 6 / 3 + 0.5 * 4 / 8, and a part where nothing counts."""
    parts = {
      'hard': loss_lib.Part(jnp.float32(6), jnp.int32(3), 2.0),
      'soft': loss_lib.Part(jnp.float32(4), jnp.int32(8), jnp.float32(0.5)),
      'none': loss_lib.Part(jnp.float32(0), jnp.int32(0)),
    }
    counts = loss_lib.counts(parts, step_lib.Replicas())
    total, means = loss_lib.total(parts, counts)
    self.assertAlmostEqual(float(total), 4.25)
    self.assertEqual(
      {name: float(x) for name, x in means.items()},
      {'hard': 2.0, 'soft': 0.5, 'none': 0.0},
    )

  def test_replicas_with_unequal_counts(self):
    """The mean over replicas is the mean over all examples."""
    sums, counts = np.float32([6, 1]), np.float32([3, 1])

    def mean(s, n):
      part = {'hard': loss_lib.Part(s, n)}
      counts = loss_lib.counts(part, step_lib.Replicas('r'))
      total, _ = loss_lib.total(part, counts)
      return jax.lax.pmean(total, 'r')

    found = jax.vmap(mean, axis_name='r')(sums, counts)
    np.testing.assert_allclose(found, [7 / 4, 7 / 4], rtol=1e-6)
