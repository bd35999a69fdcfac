"""InfoNCE within a batch against its equation, in float64 numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import by_oracle
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxopt_compress.distillation.features import info_nce as lib

S, T = by_oracle.values(0, 6, 5), by_oracle.values(1, 6, 5)


def _oracle(s, t, mask):
  kept = np.ones(len(s), bool) if mask is None else mask != 0
  s, t = (
    x[kept] / np.linalg.norm(x[kept], axis=-1, keepdims=True) for x in (s, t)
  )
  log_p = special.log_softmax(s @ t.T / 0.1, -1)
  return -np.trace(log_p), kept.sum()


class ContrastiveTest(parameterized.TestCase):
  @parameterized.parameters(None, (by_oracle.EXAMPLES,))
  def test_value_and_gradient(self, mask):
    by_oracle.check(lib.contrastive, _oracle, S, T, mask)

  def test_nothing_counts(self):
    loss, count, grads = by_oracle.run(lib.contrastive, S, T, np.zeros(6))
    self.assertEqual((float(loss), float(count)), (0.0, 0.0))
    self.assertTrue(np.isfinite(grads).all())

  @parameterized.parameters(
    (T[:, :3], 0.1, 'connector'), (T, 0.0, 'above 0'), (T[:3], 0.1, 'connector')
  )
  def test_refused(self, t, temperature, error):
    with self.assertRaisesRegex(ValueError, error):
      lib.contrastive(jnp.asarray(S), jnp.asarray(t), temperature=temperature)


if __name__ == '__main__':
  absltest.main()
