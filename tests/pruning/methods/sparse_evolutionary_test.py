"""SET: the smallest go, and what comes is drawn anew at each step."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc


class SparseEvolutionaryTest(absltest.TestCase):
  def test_the_smallest_go_and_random_ones_come(self):
    rules = [('w', jc.Sparsity(0.8, end=100, every=1))]
    comp = jc.methods.sparse_evolutionary(rules, drop=0.25)
    params = {'w': jnp.arange(1.0, 101.0)}
    state = comp.init(params)
    self.assertEqual(state.gradient, 'masked')
    grown = []
    for step in range(1, 6):
      old, state = state, comp.update(state, params, jc.Info(step))
      before, after = (np.asarray(s.masks['w']) for s in (old, state))
      self.assertEqual(after.sum(), 20)
      largest = np.flatnonzero(before)[5:]
      self.assertTrue(after[largest].all())
      grown.append(tuple(np.flatnonzero(after & ~before)))
    self.assertLen(set(grown), 5)

  def test_seeds_differ_and_runs_repeat(self):
    rules, params = [('w', jc.Sparsity(0.5, end=9))], {'w': jnp.arange(32.0)}
    first = [
      jc.methods.sparse_evolutionary(rules, seed=s).init(params).masks['w']
      for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(first[0], first[1])
    self.assertTrue((first[0] != first[2]).any())


if __name__ == '__main__':
  absltest.main()
