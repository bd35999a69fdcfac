"""Zeros are counted in what leaves stand for."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from jaxopt_compress.pruning import masked_array
from jaxopt_compress.pruning import measure


class MeasureTest(parameterized.TestCase):
  def test_counts_by_leaf_and_in_all(self):
    mask = jnp.array([True, False, False, True])
    tree = {
      'a': {
        'kernel': masked_array.Masked(jnp.array([1.0, 2.0, 3.0, 0.0]), mask)
      },
      'b': jnp.eye(3, dtype=jnp.bfloat16),
      'c': jnp.float32(0),
      'd': jnp.zeros((0, 3)),
    }
    counts = measure.sparsity(tree)
    self.assertEqual(
      counts, {'a/kernel': (3, 4), 'b': (6, 9), 'c': (1, 1), 'd': (0, 0)}
    )
    self.assertEqual(counts['a/kernel'].fraction, 0.75)
    self.assertEqual(counts['d'].fraction, 0.0)
    self.assertEqual(measure.total(counts), (10, 14))


if __name__ == '__main__':
  absltest.main()
