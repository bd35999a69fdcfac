"""Types that no file has, as bytes and back, to the bit."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.disk import tensors
from jaxopt_compress.export import numbers

RNG = np.random.default_rng(0)


def there_and_back(x):
  stored = numbers.stored(x, 'x')
  content = stored.read()
  assert (content.dtype, content.shape) == (stored.dtype, stored.shape)
  entry = tensors.Entry(stored.dtype, stored.shape, 0, content.nbytes)
  return numbers.restore(content, numbers.ref('x', entry, stored.words)), stored


class NumbersTest(parameterized.TestCase):
  @parameterized.parameters(
    *('bool', 'int8', 'uint16', 'int64', 'float16', 'bfloat16', 'complex64'),
    *('complex128', 'float8_e4m3fn', 'float8_e5m2', 'float8_e8m0fnu'),
    *('int4', 'uint4', 'int2', 'uint2', 'float4_e2m1fn'),
  )
  def test_every_bit(self, name):
    dtype = np.dtype(name)
    for shape in ((), (0, 2), (5,), (3, 5)):
      x = RNG.integers(0, 2, shape).astype(dtype)
      if dtype.itemsize == 1 and name != 'bool':
        x = RNG.integers(-8, 7, shape).astype(dtype)
      got, _ = there_and_back(x)
      self.assertEqual((got.dtype, got.shape), (x.dtype, x.shape))
      self.assertEqual(got.tobytes(), x.tobytes())

  def test_codes_share_bytes_the_first_in_the_lowest_bits(self):
    x = np.array([1, -2, 7], ml_dtypes.int4)
    stored = numbers.stored(x, 'x')
    self.assertEqual(stored.read().tolist(), [0xE1, 0x07])
    self.assertEqual(stored.words, {'dtype': 'int4', 'shape': [3]})
    x = np.array([3, 0, 1, 2, 1], ml_dtypes.uint2)
    self.assertEqual(numbers.stored(x, 'x').read().tolist(), [0b10010011, 1])

  @parameterized.named_parameters(
    ('transposed', np.arange(6.0).reshape(2, 3).T),
    ('strided', np.arange(12.0)[::2]),
    ('reversed', np.arange(5.0)[::-1]),
    ('broadcast', np.broadcast_to(np.float32(3), (2, 3))),
    ('big endian', np.arange(3, dtype='>i4')),
  )
  def test_memory_that_lies_oddly(self, x):
    got, stored = there_and_back(x)
    self.assertTrue(stored.read().flags.c_contiguous)
    np.testing.assert_array_equal(got, x)

  def test_an_array_that_is_cut_over_devices(self):
    mesh = jax.make_mesh((2, 2), ('a', 'b'))
    x = np.arange(48.0, dtype=np.float32).reshape(4, 12)
    for spec in (('b',), (None, ('a', 'b')), ('a', 'b'), ()):
      place = jax.NamedSharding(mesh, jax.P(*spec))
      np.testing.assert_array_equal(
        there_and_back(jax.device_put(x, place))[0], x
      )

  def test_leaves_for_one_machine(self):
    w = jnp.asarray(RNG.standard_normal((64, 8), np.float32))
    uses = jc.uses(lambda p, x: x @ p['w'])({'w': w}, jnp.ones((1, 64)))
    q = jc.quantize({'w': w}, [('w', jc.W8A16)], uses)
    packed = jc.pack(q, uses, target='cpu')['w']
    leaf = numbers.portable(packed)
    self.assertIsInstance(leaf, jc.QArray)
    self.assertIs(numbers.portable(q['w']), q['w'])
    got = [numbers.stored(x, '').read() for x in jax.tree.leaves(leaf)]
    jax.tree.map(np.testing.assert_array_equal, got, jax.tree.leaves(q))

  def test_refused(self):
    gone = jnp.ones(2)
    gone.delete()
    for x, message in (
      (gone, 'x was deleted'),
      (np.array(['a']), 'x is an array of <U1'),
      (np.array([None]), 'x is an array of object'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        numbers.stored(x, 'x')
    with self.assertRaisesRegex(ValueError, 'outside of jax.jit'):
      jax.jit(lambda x: numbers.stored(x, 'x'))(1.0)
    for word in ('O', 'float', 'object', 'S9', None, 3):
      with self.assertRaisesRegex(ValueError, 'no type of numbers'):
        numbers.dtype(word)
    entry = tensors.Entry(np.dtype('u1'), (2,), 0, 2)
    for said in (
      {'dtype': 'int4', 'shape': [5]},
      {'dtype': 'int4', 'shape': [-2, -2]},
      {'dtype': 'int4', 'shape': [2**64, 2**64]},
      {'dtype': 'complex128', 'shape': [1]},
    ):
      with self.assertRaisesRegex(ValueError, 'is said to be'):
        numbers.ref('x', entry, said)


if __name__ == '__main__':
  absltest.main()
