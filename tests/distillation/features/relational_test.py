"""Distances and angles against equations 4 to 9, pair by pair in float64 numpy."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import by_oracle
import numpy as np

from jaxopt_compress.distillation.features import relational

S, T = by_oracle.values(0, 6, 5), by_oracle.values(1, 6, 2, 4)


def _huber(x):
  return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def _distances(x):
  pairs = list(itertools.permutations(range(len(x)), 2))
  d = [np.linalg.norm(x[i] - x[j]) for i, j in pairs]
  return np.array(d) / np.mean(d)


def _angles(x):
  found = []
  for i, j, k in itertools.permutations(range(len(x)), 3):
    a, b = x[i] - x[j], x[k] - x[j]
    found.append(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
  return np.array(found)


def _oracle(relation):
  def oracle(s, t, mask):
    kept = np.ones(len(s), bool) if mask is None else mask != 0
    s, t = (relation(x[kept].reshape(kept.sum(), -1)) for x in (s, t))
    return kept.sum() * np.mean([*map(_huber, s - t)]), kept.sum()

  return oracle


ORACLES = {'distances': _distances, 'angles': _angles}


class RelationalTest(parameterized.TestCase):
  @parameterized.product(name=list(ORACLES), mask=[None, by_oracle.EXAMPLES])
  def test_value_and_gradient(self, name, mask):
    loss, oracle = getattr(relational, name), _oracle(ORACLES[name])
    by_oracle.check(loss, oracle, S, T, mask)

  @parameterized.product(name=list(ORACLES), size=[1e-12, 1e12])
  def test_of_any_size_and_far_from_zero(self, name, size):
    loss, oracle = getattr(relational, name), _oracle(ORACLES[name])
    got, _, grads = by_oracle.run(loss, size * (S + 30), T)
    np.testing.assert_allclose(got, oracle(S, T, None)[0], rtol=1e-3)
    self.assertTrue(np.isfinite(grads).all())

  @parameterized.product(name=list(ORACLES), n=[6, 2, 1])
  def test_examples_that_are_the_same(self, name, n):
    s = np.repeat(S[:1], n, 0)
    for x in (s, np.concatenate([s[:1], S[1:n]]), 0 * s):
      for y in (T[:n], np.repeat(T[:1], n, 0)):
        loss, _, grads = by_oracle.run(getattr(relational, name), x, y)
        self.assertTrue(np.isfinite(loss) and np.isfinite(grads).all())

  def test_a_pair_at_no_distance(self):
    s = S.copy()
    s[3] = s[0]
    loss, _, grads = by_oracle.run(relational.distances, s, T)
    np.testing.assert_allclose(
      loss, _oracle(_distances)(s, T, None)[0], rtol=1e-4
    )
    self.assertTrue(np.isfinite(grads).all())


if __name__ == '__main__':
  absltest.main()
