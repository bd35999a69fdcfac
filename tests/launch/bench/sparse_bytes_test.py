"""Bytes of leaves without zeros: by the equation, in memory, in files, checkpoints."""

import os
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.pruning.storage import bitmask
from jaxopt_compress.train import checkpoint
from launch.bench import sparse_bytes

W = np.random.default_rng(0).standard_normal((2, 40, 24)).astype(np.float32)
W = jnp.asarray(np.where(np.abs(W) > 1.6, W, 0))


class SparseBytesTest(parameterized.TestCase):
  @parameterized.parameters('bfloat16', 'int8')
  def test_rows(self, dtype):
    size = jnp.dtype(dtype).itemsize
    make = lambda x: bitmask.of_array(x, 1)
    want = sparse_bytes.equation(W, size, 1)
    with tempfile.TemporaryDirectory() as folder:
      for off in (0, 1):
        forms = [('bitmask', make, want + off)]
        ((line, found),) = sparse_bytes.rows(W, dtype, forms, folder)
        self.assertStartsWith(line, f'{dtype} | bitmask | ')
        self.assertEqual(found, bool(off))

  def test_checkpoint(self):
    codes = jc.quantize(
      {'k': W[0]}, [('k', 'int4 g8 asym')], uses=in_out.IN_OUT
    )['k']
    n_m = jnp.zeros((8, 16)).at[:, 3::8].set(1)
    tree, _ = jc.sparsify({'w': W, 'q': codes, 'n_m': n_m})
    self.assertEqual(
      [type(x) for x in tree.values()],
      [jc.pruning.NMArray, jc.pruning.SparseCodes, jc.pruning.Bitmask],
    )
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'checkpoint')
      checkpoint.save(path, tree, {})
      back = checkpoint.restore(path, jax.eval_shape(lambda: tree), {})
      self.assertEqual(jax.tree.structure(back), jax.tree.structure(tree))
      jax.tree.map(np.testing.assert_array_equal, back, tree)
      # A template with room for another number of values is of another tree.
      other = dict(tree, w=bitmask.of_array(W, 1, 500))
      with self.assertRaisesRegex(ValueError, r'w/values is float32\[2, 1, '):
        checkpoint.restore(path, jax.eval_shape(lambda: other), {})


if __name__ == '__main__':
  absltest.main()
