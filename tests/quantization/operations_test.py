"""The table of operations: each leaf knows what its rows say."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.core import lift
from jaxopt_compress.quantization import cache
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import operations
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import trained

CODES = (qarray.QArray, qarray.QDotArray, trained.FakeQuant)


class OperationsTest(parameterized.TestCase):
  @parameterized.parameters(*CODES)
  def test_products_and_moves(self, leaf):
    for primitive in (*operations.PRODUCTS, *moves.MOVES):
      self.assertIsNotNone(lift.rule_for(primitive, leaf), primitive)

  def test_caches_move_but_a_convolution_of_one_is_dense(self):
    for primitive in moves.MOVES:
      self.assertIsNotNone(lift.rule_for(primitive, cache.QCache), primitive)
    self.assertIsNone(lift.rule_for('conv_general_dilated', cache.QCache))

  def test_every_row_is_registered(self):
    for primitive, leaf, rule in operations.ROWS:
      self.assertIs(lift.rule_for(primitive, leaf), rule)
    for primitive, _ in operations.WRITES:
      self.assertIsNotNone(lift.rule_for(primitive, cache.QCache))


if __name__ == '__main__':
  absltest.main()
