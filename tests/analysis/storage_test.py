"""What a tree takes in memory."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import storage
from jaxopt_compress.pruning import masked_array


def _struct(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


class StorageTest(parameterized.TestCase):
  @parameterized.named_parameters(
    dict(testcase_name='f32', x=_struct(3, 4), expected=48),
    dict(testcase_name='bf16', x=_struct(5, dtype=jnp.bfloat16), expected=10),
    dict(testcase_name='bool', x=_struct(5, dtype=jnp.bool_), expected=5),
    dict(testcase_name='scalar', x=_struct(), expected=4),
    dict(testcase_name='empty', x=_struct(0, 7), expected=0),
    dict(testcase_name='tree', x={'a': [_struct(2), 'name', 3]}, expected=8),
    dict(
      testcase_name='leaf',
      x=masked_array.Masked(
        _struct(6, dtype=jnp.int8), _struct(4, dtype=jnp.bool_)
      ),
      expected=10,
    ),
    dict(
      testcase_name='leaf in a leaf',
      x=masked_array.Masked(
        masked_array.Masked(
          _struct(6, dtype=jnp.int8), _struct(6, dtype=jnp.bool_)
        ),
        _struct(2, dtype=jnp.bool_),
      ),
      expected=14,
    ),
  )
  def test_nbytes(self, x, expected):
    self.assertEqual(storage.nbytes(x), expected)

  def test_nbytes_of_numpy_and_keys(self):
    self.assertEqual(storage.nbytes(np.zeros(3, np.float64)), 24)
    keys = jax.random.split(jax.random.key(0), 3)
    self.assertEqual(storage.nbytes(keys), 3 * 8)

  def test_what_is_of_the_form_of_a_leaf(self):
    # Moments of an optimizer, say, in a type of their own: 2 bytes for each.
    leaf = masked_array.Masked(jnp.ones(4), jnp.ones(4, bool))
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {'w': leaf})
    self.assertEqual(storage.nbytes(cast), 2 * (4 + 4))


if __name__ == '__main__':
  absltest.main()
