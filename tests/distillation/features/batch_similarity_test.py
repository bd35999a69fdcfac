"""Similarity-preserving distillation against equations 1 to 4, in float64 numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import by_oracle
import numpy as np

from jaxopt_compress.distillation.features import batch_similarity as lib

S, T = by_oracle.values(0, 6, 2, 3), by_oracle.values(1, 6, 3, 4)


def _oracle(s, t, mask):
  kept = np.ones(len(s), bool) if mask is None else mask != 0
  rows = []
  for x in (s, t):
    x = x[kept].reshape(kept.sum(), -1)
    g = x @ x.T
    lengths = np.linalg.norm(g, axis=-1, keepdims=True)
    rows.append(g / np.where(lengths == 0, 1, lengths))
  b = kept.sum()
  return b * np.sum((rows[0] - rows[1]) ** 2) / b**2, b


class SimilarityTest(parameterized.TestCase):
  @parameterized.parameters(None, (by_oracle.EXAMPLES,))
  def test_value_and_gradient(self, mask):
    by_oracle.check(lib.similarity, _oracle, S, T, mask)

  @parameterized.parameters(1e-12, 1e12)
  def test_of_any_size(self, size):
    got, _, grads = by_oracle.run(lib.similarity, size * S, T)
    np.testing.assert_allclose(got, _oracle(S, T, None)[0], rtol=1e-5)
    self.assertTrue(np.isfinite(grads).all())

  def test_zeros_and_one_example(self):
    for s in (0 * S, S[:1]):
      loss, _, grads = by_oracle.run(lib.similarity, s, T[: len(s)])
      self.assertTrue(np.isfinite(loss) and np.isfinite(grads).all())


if __name__ == '__main__':
  absltest.main()
