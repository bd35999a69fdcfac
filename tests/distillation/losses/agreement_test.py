"""Who agrees, by numbers the eye can check."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import losses

INF = np.inf


class AgreementTest(parameterized.TestCase):
  @parameterized.parameters(
    # student, teacher, weight, expected
    ([[1, 2], [3, 0]], [[0, 9], [0, 9]], None, (1, 2)),
    ([[1, 2], [3, 0]], [[0, 9], [0, 9]], [1, 0], (1, 1)),
    ([[1, np.nan], [0, 3]], [[0, 9], [0, 9]], None, (1, 2)),
    ([[-INF, 2], [0, 3]], [[-INF, 9], [INF, 9]], None, (1, 2)),
  )
  def test_agreement(self, student, teacher, mask, expected):
    s, t = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
    mask = None if mask is None else jnp.asarray(mask)
    got = losses.agreement(s, t, mask=mask)
    self.assertEqual(tuple(float(x) for x in got), expected)


if __name__ == '__main__':
  absltest.main()
