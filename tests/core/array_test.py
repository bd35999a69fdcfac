"""The noun: shape, meaning and bytes of leaves."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Times(array.CompressedArray):
  """Stands for value * factor."""

  value: jax.Array
  factor: jax.Array

  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)

  def materialize(self):
    return array.materialize(self.value) * self.factor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pairs(array.CompressedArray):
  """Stands for `value`, whose last axis comes in pairs."""

  value: jax.Array

  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)

  def materialize(self):
    return self.value

  def can_cut(self, axis, size):
    return axis != -1 or size % 2 == 0


class ArrayTest(parameterized.TestCase):
  @parameterized.parameters(
    ((), 0, 1), ((3,), 1, 3), ((2, 3, 4), 3, 24), ((2, 0), 2, 0)
  )
  def test_ndim_and_size(self, shape, ndim, size):
    leaf = Times(jnp.ones(shape), jnp.ones(()))
    self.assertEqual((leaf.ndim, leaf.size), (ndim, size))
    self.assertEqual((leaf.shape, leaf.dtype), (shape, jnp.float32))

  def test_a_leaf_type_is_final(self):
    said = 'derives from Times, a concrete'
    with self.assertRaisesRegex(TypeError, f'Twice {said}'):

      class Twice(Times):
        pass

    with self.assertRaisesRegex(TypeError, f'Both {said}'):

      class Both(Times, array.CompressedArray):
        pass

  def test_materialize_replaces_leaves_only(self):
    bias = jnp.ones(2)
    leaf = Times(jnp.arange(4.0), jnp.float32(3))
    nested = Times(leaf, jnp.float32(2))
    out = array.materialize({'w': leaf, 'n': (nested, 'relu', None), 'b': bias})
    np.testing.assert_array_equal(out['w'], [0, 3, 6, 9])
    np.testing.assert_array_equal(out['n'][0], [0, 6, 12, 18])
    self.assertEqual(out['n'][1:], ('relu', None))
    self.assertIs(out['b'], bias)

  def test_is_compressed(self):
    leaf = Times(jnp.ones(2), jnp.ones(()))
    self.assertTrue(array.is_compressed(leaf))
    for x in (jnp.ones(2), None, 1.0, Times):
      self.assertFalse(array.is_compressed(x))

  def test_freeze_and_describe_by_default(self):
    leaf = Times(jnp.ones(2), jnp.ones(()))
    self.assertIs(leaf.freeze(), leaf)
    self.assertEqual(leaf.describe(), 'Times')

  @parameterized.parameters((-2, 1, True), (-1, 2, True), (-1, 3, False))
  def test_can_cut_asks_the_leaf_inside(self, axis, size, expected):
    leaf = Times(Times(Pairs(jnp.ones((2, 6))), jnp.ones(())), jnp.ones(()))
    self.assertEqual(leaf.can_cut(axis, size), expected)

  def test_arrays_apart(self):
    leaf = Times(jnp.ones(2), jnp.ones(()))
    tree = {'flag': True, 'x': jnp.zeros(3), 'w': leaf, 'none': None}
    arrays, refill = array.arrays_apart(
      tree, lambda x: not isinstance(x, bool), array.is_compressed
    )
    self.assertEqual([type(x) for x in arrays], [Times, type(jnp.ones(()))])
    self.assertIs(refill(arrays)['w'], leaf)
    self.assertEqual(
      refill('ab'), {'flag': True, 'x': 'b', 'w': 'a', 'none': None}
    )
    with self.assertRaises(ValueError):
      refill('a')


if __name__ == '__main__':
  absltest.main()
