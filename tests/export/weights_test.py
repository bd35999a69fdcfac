"""Weights by name: the size of their file, names, arrays that lie oddly in memory."""

import os
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

import jaxopt_compress as jc
from jaxopt_compress.export import trees
from jaxopt_compress.export import weights as weights_lib


def header_bytes(path):
  """A safetensors file is a length, a JSON header of it, and the data."""
  with open(path, 'rb') as f:
    return 8 + int.from_bytes(f.read(8), 'little')


class WeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = folder.name + '/weights.safetensors'

  def round_trip(self, weights):
    trees.save(self.path, weights)
    dtypes = {name: str(x.dtype) for name, x in weights.items()}
    return weights_lib.load(self.path, dtypes)

  def test_int4_with_groups_of_128_is_half_a_byte_and_two_128ths(self):
    tree = jc.quantize(
      {'kernel': jnp.ones((1024, 64))}, [(r'kernel', jc.W4A16)]
    )
    trees.save(self.path, tree)
    arithmetic = 1024 * 64 // 2 + 2 * (1024 // 128) * 64
    self.assertEqual(arithmetic, (0.5 + 2 / 128) * 1024 * 64)
    self.assertEqual(jc.nbytes(tree), arithmetic)
    self.assertEqual(
      os.path.getsize(self.path), arithmetic + header_bytes(self.path)
    )
    self.assertLess(header_bytes(self.path), 1000)

  def test_names_of_nested_leaves_and_back(self):
    tree = {
      'a': [
        jc.quantize({'kernel': jnp.ones((4, 2))}, [(r'.*', jc.W8A8)]),
        jnp.zeros(3),
      ]
    }
    weights, rebuild = weights_lib.flatten(tree)
    self.assertEqual(
      sorted(weights),
      ['a/0/kernel.weight.qvalue', 'a/0/kernel.weight.scale', 'a/1'],
    )
    jax.tree.map(np.testing.assert_array_equal, rebuild(weights), tree)

  @parameterized.parameters(
    'bool', 'int8', 'uint8', 'int32', 'bfloat16', 'float16', 'float32',
    'float8_e4m3fn', 'float8_e5m2', 'float8_e8m0fnu',
  )  # fmt: skip
  def test_dtypes(self, dtype):
    x = np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype))
    back = self.round_trip({'x': x})['x']
    self.assertEqual((back.dtype, back.shape), (x.dtype, x.shape))
    self.assertEqual(back.tobytes(), x.tobytes())

  @parameterized.named_parameters(
    ('transposed', np.arange(6.0).reshape(2, 3).T),
    ('strided', np.arange(12.0)[::2]),
    ('reversed', np.arange(5.0)[::-1]),
    ('scalar', np.array(3.0)),
    ('empty', np.zeros((0, 3))),
  )
  def test_layouts(self, x):
    x = x.astype(np.float32) if x.ndim == 0 else x
    weights, _ = weights_lib.flatten({'x': x})
    back = self.round_trip(weights)['x']
    np.testing.assert_array_equal(back, x)
    self.assertEqual(back.shape, x.shape)

  @parameterized.parameters(
    (3.0, 'x is 3.0, which is no array'),
    ('word', 'no array of numbers'),
  )
  def test_what_is_no_array(self, x, message):
    with self.assertRaisesRegex(ValueError, message):
      weights_lib.flatten({'x': x})

  def test_keys_and_native_int4(self):
    with self.assertRaisesRegex(ValueError, 'jax.random.key_data'):
      weights_lib.flatten({'key': jax.random.key(0)})
    with self.assertRaisesRegex(ValueError, 'dtype int4.*Pack it'):
      weights_lib.flatten({'x': jnp.ones(4, jnp.int4)})

  def test_leaves_cast_one_by_one(self):
    q = jc.quantize(
      {'w': jnp.ones((8, 4))}, [('w', 'int8')], uses=in_out.IN_OUT
    )
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), q)
    for ask in (weights_lib.flatten, weights_lib.describe):
      with self.assertRaisesRegex(ValueError, 'qvalue is bfloat16, not int8'):
        ask(cast)

  def test_another_layout(self):
    trees.write(self.path, {'x': np.zeros(3)}, {'format': 'theirs/2'})
    with self.assertRaisesRegex(ValueError, "'theirs/2', and 'jaxopt.*again"):
      weights_lib.load(self.path, {'x': 'float64'})
    safetensors.save_file({'x': np.zeros(3)}, self.path)
    with self.assertRaisesRegex(ValueError, "format None, and 'jaxopt"):
      weights_lib.load(self.path, {'x': 'float64'})

  def test_leaves_without_zeros_and_back(self):
    x = np.eye(64, dtype=np.float32)
    tree, _ = jc.sparsify(
      {
        'w': x[0, :50],
        'q': jc.quantize({'k': x}, [('k', 'int8')], uses=in_out.IN_OUT)['k'],
      }
    )
    weights, rebuild = weights_lib.flatten(tree)
    self.assertEqual(
      sorted(weights),
      [
        'q.leaf.scale',
        'q.stored.indices',
        'q.stored.values',
        'w.bits',
        'w.values',
      ],
    )
    back = rebuild(self.round_trip(weights))
    jax.tree.map(np.testing.assert_array_equal, back, tree)

  def test_a_file_is_replaced_as_a_whole(self):
    self.round_trip({'x': np.zeros(3)})
    with mock.patch.object(os, 'fsync', side_effect=OSError('disk full')):
      with self.assertRaisesRegex(OSError, 'disk full'):
        trees.save(self.path, {'x': np.ones(9)})
    found = weights_lib.load(self.path, {'x': 'float64'})
    np.testing.assert_array_equal(found['x'], np.zeros(3))
    self.assertLen(os.listdir(os.path.dirname(self.path)), 1)

  def test_another_set_of_arrays(self):
    trees.save(self.path, {'x': np.zeros(3)})
    with self.assertRaisesRegex(ValueError, r"holds \['x'\].*\['y'\]"):
      weights_lib.load(self.path, {'y': 'float64'})


if __name__ == '__main__':
  absltest.main()
