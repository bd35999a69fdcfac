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

  @parameterized.parameters((1, 1), (2, 2), (3, 3))
  def test_among_the_first_k(self, k, expected):
    # Of the last row no choice is the first of all: equal ones are in order.
    s = jnp.array([[3.0, 2, 1], [3.0, 2, 1], [2.0, 2, 2]])
    t = jnp.array([[9.0, 0, 0], [0, 0, 9.0], [0, 9.0, 0]])
    total, count = losses.agreement(s, t, k=k)
    order = np.argsort(-np.asarray(s), -1, kind='stable')[:, :k]
    own = sum(int(np.argmax(b)) in row for row, b in zip(order, t, strict=True))
    self.assertEqual((float(total), float(count), own), (expected, 3, expected))

  def test_of_no_choice(self):
    with self.assertRaisesRegex(ValueError, 'k=0; at least one'):
      losses.agreement(jnp.zeros((1, 2)), jnp.zeros((1, 2)), k=0)


if __name__ == '__main__':
  absltest.main()
