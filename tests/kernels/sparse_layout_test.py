"""How weights without their zeros lie in memory: there and back."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import sparse_cases

from jaxopt_compress.kernels import sparse_layout


class SparseLayoutTest(parameterized.TestCase):
  @parameterized.parameters(*sparse_cases.cases())
  def test_round_trip(self, dtype, kept, k, n):
    rng = np.random.default_rng(k)
    w = np.stack(
      [sparse_cases.weight(rng, dtype, kept, (k, n)) for _ in range(2)]
    )
    group = 20 if k == 131 else k
    stream, offsets, how = sparse_layout.to_streams(w, group)
    self.assertEqual(how.type, dtype)
    self.assertEqual(stream.shape[0], 2)
    back = jax.jit(
      functools.partial(
        sparse_layout.from_streams, how=how, group=group, k=k, n=n
      )
    )(stream, offsets)
    np.testing.assert_array_equal(back, w)

  @parameterized.product(skips=[False, True], constant=[False, True])
  def test_flags(self, skips, constant):
    w = sparse_cases.weight(
      np.random.default_rng(0), 'float32', 'rows', (203, 70)
    )
    stream, offsets, how = sparse_layout.to_streams(
      w, 203, skips=skips, constant=constant
    )
    self.assertEqual((how.skips, how.constant > 0), (skips, constant))
    back = sparse_layout.from_streams(stream, offsets, how, 203, 203, 70)
    np.testing.assert_array_equal(back, w)

  def test_chosen_by_bytes(self):
    rng = np.random.default_rng(0)

    def streams(dtype, kept):
      w = sparse_cases.weight(rng, dtype, kept, (512, 512))
      return sparse_layout.to_streams(w, 512)

    def how(dtype, kept):
      return streams(dtype, kept)[2]

    def bytes_of(dtype, kept):
      return streams(dtype, kept)[0].size / 512**2

    self.assertEqual(how('int8', '2:4'), ('int8', False, 64))
    self.assertEqual(how('float32', '1:4'), ('float32', False, 32))
    self.assertEqual(how('int8', 'half'), ('int8', False, 0))
    self.assertTrue(how('int8', 'rows').skips)
    self.assertTrue(how('int8', 'hundredth').skips)
    self.assertAlmostEqual(bytes_of('int8', '2:4'), 5 / 8, delta=0.01)
    self.assertAlmostEqual(bytes_of('float32', 'half'), 2.125, delta=0.02)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'traced array'):
      jax.jit(lambda w: sparse_layout.to_streams(w, 8)[0])(jnp.ones((8, 8)))
    with self.assertRaisesRegex(ValueError, 'int8, bfloat16 or float32'):
      sparse_layout.to_streams(np.ones((8, 8), np.int32), 8)


if __name__ == '__main__':
  absltest.main()
