"""From leaves for the kernels back to leaves for any machine."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.kernels.leaves import portable

# On machines without the library, too: laying out needs none of it.
pack = functools.partial(jc.pack, target='cpu')

_KEYS = [jax.random.key(i) for i in range(2)]
W = jax.random.normal(_KEYS[1], (64, 40))


class PortableTest(parameterized.TestCase):
  def test_bytes(self):
    w = jax.random.normal(_KEYS[0], (256, 64))
    q = jc.quantize({'w': w}, [('w', 'int4 g128 bfloat16')], uses=in_out.IN_OUT)
    self.assertEqual(jc.nbytes(pack(q, uses=in_out.IN_OUT)), jc.nbytes(q))

  def test_there_and_back(self):
    q = jc.quantize({'w': W}, [('w', 'int4 g32')], uses=in_out.IN_OUT)
    back = jc.unpack(pack(q, uses=in_out.IN_OUT))
    self.assertEqual(jc.nbytes(back), jc.nbytes(q))
    self.assertEqual(back['w'].describe(), q['w'].describe())
    np.testing.assert_array_equal(back['w'].materialize(), q['w'].materialize())

  @parameterized.parameters('int4 g32', 'nf4', 'int8 asym', 'W8A8')
  def test_codes_share_bytes_only_where_they_are_kept(self, words):
    q = jc.quantize({'w': W}, [('w', words)], uses=in_out.IN_OUT)['w']
    p = pack({'w': q}, uses=in_out.IN_OUT)['w']
    kept, open_ = portable.unpack(p, stored=True), portable.unpack(p)
    self.assertEqual(jc.nbytes(kept), jc.nbytes(q))
    self.assertGreaterEqual(jc.nbytes(open_), jc.nbytes(kept))
    for leaf in (kept, open_):
      self.assertIs(type(leaf), type(q))
      np.testing.assert_array_equal(leaf.materialize(), p.materialize())


if __name__ == '__main__':
  absltest.main()
