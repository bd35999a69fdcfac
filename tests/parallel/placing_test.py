"""Trees with compressed leaves, placed as their dense form would be."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.parallel import placing


def _mesh():
  return jax.make_mesh(
    (2, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


def _leaf(rows, group=0):
  w = jax.random.normal(jax.random.key(0), (rows, 12))
  words = f'int8 g{group}' if group else 'int8'
  return jc.quantize({'w': w}, [('w', words)], uses=in_out.IN_OUT)['w']


class DevicePutTest(parameterized.TestCase):
  def test_one_spec_for_each_leaf(self):
    tree = {'q': _leaf(8), 'b': jnp.ones(4)}
    out = placing.device_put(tree, _mesh(), {'q': P('a', 'b'), 'b': P('a')})
    self.assertEqual(out['q'].qvalue.sharding.spec, P('a', 'b'))
    self.assertEqual(out['q'].scale.sharding.spec, P(None, 'b'))
    self.assertEqual(out['b'].sharding.spec, P('a'))
    want = tree['q'].materialize()
    np.testing.assert_array_equal(out['q'].materialize(), want)

  def test_one_spec_for_all(self):
    tree = {'q': _leaf(8), 'b': jnp.ones(4)}
    out = placing.device_put(tree, _mesh(), P())
    for part in jax.tree.leaves(out):
      self.assertTrue(part.sharding.is_fully_replicated)

  def test_refusal_names_the_parts(self):
    with self.assertRaisesRegex(
      ValueError, r'int8 g8 of shape \(12, 12\) cannot be cut .* \(2, 12\)\]'
    ):
      placing.device_put(_leaf(12, group=8), _mesh(), P('a'))


if __name__ == '__main__':
  absltest.main()
