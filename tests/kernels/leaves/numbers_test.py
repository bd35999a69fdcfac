"""Every format of the kernels: numbers to codes and back."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels.leaves import numbers


class NumbersTest(parameterized.TestCase):
  @parameterized.parameters(*numbers.LAYOUT)
  def test_there_and_back(self, name):
    w = jax.random.normal(jax.random.key(0), (64, 40))
    q = jc.quantize({'w': w}, [('w', name)], uses=in_out.IN_OUT)['w']
    codes = numbers.codes_of(q)
    self.assertEqual(codes.dtype, np.uint8)
    bits = layout.CODES[numbers.LAYOUT[name].name].bits
    self.assertLess(int(codes.max()), 2**bits)
    back = numbers.of_codes(codes, name)
    np.testing.assert_array_equal(back, q.numbers.astype(np.float32))


if __name__ == '__main__':
  absltest.main()
