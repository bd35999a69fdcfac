"""Whatever changes a network changes its fingerprint, and nothing else does."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.distillation import cache

W = np.arange(8, dtype=np.float32).reshape(2, 4)


class FingerprintTest(parameterized.TestCase):
  def test_where_arrays_lie_does_not_matter(self):
    mesh = jax.make_mesh((4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, jax.P(None, 'x'))
    same = [
      W,
      jnp.asarray(W),
      np.asfortranarray(W),
      jax.device_put(W, spread),
    ]
    self.assertLen({cache.fingerprint({'w': x}) for x in same}, 1)

  def test_everything_else_does(self):
    w = jnp.asarray(W)
    q8, q4 = (
      jc.quantize({'w': w}, [('w', s)], uses=in_out.IN_OUT)['w']
      for s in ('W8A8', 'W8A16')
    )
    trees = [
      {'w': w},
      {'v': w},
      [w],
      {'w': w.reshape(4, 2)},
      {'w': w.at[0, 0].set(1e-30)},
      {'w': w.astype(jnp.bfloat16)},
      {'w': w.astype(jnp.int32)},
      {'w': w, 'b': w[:0]},
      {'w': q8},
      {'w': q4},
      {'w': jax.random.key(0)},
      {'w': jax.random.key(1)},
      {},
    ]
    self.assertLen({cache.fingerprint(t) for t in trees}, len(trees))

  def test_what_is_no_array(self):
    with self.assertRaisesRegex(ValueError, 'a/b is .*; an array is expected'):
      cache.fingerprint({'a': {'b': object()}})


if __name__ == '__main__':
  absltest.main()
