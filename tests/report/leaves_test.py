"""The coverage table, leaf by leaf."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import report_example

from jaxopt_compress.report import leaves as leaves_lib


class LeavesTest(parameterized.TestCase):
  def test_records_of_a_tree(self):
    rows = report_example.example()[0].coverage['halved']
    bias, kernel = rows
    self.assertEqual(
      (bias.path, bias.format, bias.bytes, bias.sparsity, bias.native),
      ('a/bias', 'float32', 8, 1.0, None),
    )
    self.assertEqual(
      (kernel.path, kernel.shape, kernel.format, kernel.bits_per_weight),
      ('a/kernel', (2, 2), 'halved', 16.0),
    )
    self.assertEqual((kernel.error_db, kernel.sparsity), (math.inf, 0.25))
    self.assertEqual(kernel.operations, ('dot_general',))
    self.assertFalse(kernel.native)
    self.assertStartsWith(kernel.reason, 'dot_general: ')

  @parameterized.parameters(
    ([3.0, 4.0], [3.0, 4.5], 20.0),
    ([1.0, 0.0], [1.0, 0.0], math.inf),
    ([0.0, 0.0], [0.0, 1.0], -math.inf),
    ([0.0, 0.0], [0.0, 0.0], math.inf),
    ([1.0, 1.0], [math.nan, 1.0], math.nan),
  )
  def test_error_db(self, w, w_hat, expected):
    found = leaves_lib.error_db(np.float32(w), np.float32(w_hat))
    np.testing.assert_equal(found, expected)

  def test_without_a_reference_nothing_is_claimed(self):
    (row,) = leaves_lib.coverage({'w': np.ones(3)}, {'w': np.ones(4)})
    self.assertIsNone(row.error_db)

  def test_a_leaf_that_no_operation_meets(self):
    (row,) = leaves_lib.coverage(
      {'w': report_example.Halved(jnp.ones(3))}, met=[]
    )
    self.assertEqual((row.native, row.reason), (None, 'meets no operation'))


if __name__ == '__main__':
  absltest.main()
