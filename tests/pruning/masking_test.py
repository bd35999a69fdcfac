"""Masks of leaves."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from jaxopt_compress.core import compression
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning.methods.gradual import gradual

Sparsity = masking.Sparsity
Info = compression.Info


class MaskingTest(parameterized.TestCase):
  def test_given_scores_are_of_the_leaves(self):
    leaves = {'w': jnp.ones((2, 3))}
    for scores in ({'v': jnp.ones((2, 3))}, {'w': jnp.ones((3, 2))}):
      with self.assertRaisesRegex(ValueError, 'a number for each weight'):
        masking.compute(Sparsity(0.5), leaves, scores=scores)

  def test_masks_of_other_parameters_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'no such leaf'):
      masking.apply_masks({'w': jnp.ones(2)}, {'v': jnp.ones(2, bool)})
    with self.assertRaisesRegex(ValueError, r'shape \(2,\)'):
      masking.apply_masks({'w': jnp.ones(2)}, {'w': jnp.ones(3, bool)})
    comp = gradual([('w', Sparsity(0.5, end=4))])
    state = comp.init({'w': jnp.arange(3.0)})
    with self.assertRaisesRegex(
      ValueError, r"shape \(3,\) for 'w': shape \(2,"
    ):
      comp.update(state, {'w': jnp.arange(2.0)}, Info(1))

  def test_by_rule_reads_words(self):
    found = masking.by_rule([('b', None), ('.*', '2:4')], {'a': 1.0, 'b': 2.0})
    self.assertEqual(found, [(Sparsity(kind='n_m', n=2, m=4), {'a': 1.0})])


if __name__ == '__main__':
  absltest.main()
