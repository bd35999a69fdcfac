"""N:M storage: drawn, without loss, and what moves keep it."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.pruning import masks
from jaxopt_compress.pruning.storage import n_m_array

RNG = np.random.default_rng(0)


def pruned(shape, n, m, axis, dtype='float32'):
  x = jnp.asarray(RNG.standard_normal(shape) * 9, 'float32')
  kept = masks.n_m(jnp.abs(x), n, m, axis)
  return jnp.where(kept, x, 0).astype(dtype)


def same_bits(a, b):
  a, b = np.asarray(a), np.asarray(b)
  return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


class NMArrayTest(parameterized.TestCase):
  def test_drawn(self):
    x = jnp.float32([[0, 0], [5, 0], [0, 0], [7, 9]])
    leaf = n_m_array.of_array(x, 2, 4, -2)
    # The second column has one entry: a zero is kept beside it, from place 0.
    self.assertEqual(leaf.values.tolist(), [[5, 0], [7, 9]])
    self.assertEqual(leaf.indices.tolist(), [[0b1101, 0b1100]])

  @parameterized.parameters(
    ('float32', (2, 4), -1),
    ('bfloat16', (2, 4), -2),
    ('float8_e4m3fn', (1, 2), -3),
    ('int8', (4, 8), -2),
    ('float32', (1, 16), -3),
    ('float32', (2, 3), -1),
  )
  def test_without_loss(self, dtype, n_m, axis):
    shape = [2, 3, 5]
    shape[axis] = 3 * n_m[1]
    x = pruned(shape, *n_m, axis, dtype)
    leaf = n_m_array.of_array(x, *n_m, axis)
    self.assertEqual((leaf.shape, leaf.dtype), (x.shape, x.dtype))
    self.assertTrue(same_bits(leaf.materialize(), x))

  def test_what_is_not_quite_zero_comes_back(self):
    odd = jnp.float32([-0.0, 0, np.nan, 0, 1e-45, 0, 0, 0, -np.inf, 0, 0, 3])
    leaf = n_m_array.of_array(odd, 2, 4, -1)
    self.assertTrue(same_bits(jax.jit(jc.materialize)(leaf), odd))

  @parameterized.parameters((2, 4, 0.5625), (4, 8, 0.59375), (1, 8, 0.1484375))
  def test_bytes_are_those_of_the_equation(self, n, m, share):
    # Of bfloat16: n / m * (16 + log2 m) bits of 16.
    x = pruned((64, 8), n, m, -2, 'bfloat16')
    leaf = n_m_array.of_array(x, n, m, -2)
    self.assertEqual(jc.nbytes(leaf) / x.nbytes, share)

  @parameterized.named_parameters(
    ('layer', lambda w, i: w[1], True),
    ('traced layer', lambda w, i: jax.lax.dynamic_index_in_dim(w, i), True),
    ('columns', lambda w, i: w[:, :, 1:4], True),
    ('turned', lambda w, i: w.transpose(2, 1, 0), True),
    ('merged', lambda w, i: w.reshape(3, 8, 2, 3).reshape(3, 8, 6), True),
    ('split', lambda w, i: w.reshape(3, 8, 2, 3), True),
    ('squeezed', lambda w, i: w[:1].squeeze(0), True),
    ('bfloat16', lambda w, i: w.astype(jnp.bfloat16), True),
    ('across', lambda w, i: w.reshape(24, 6), False),
    ('rows', lambda w, i: w[:, :4], False),
  )
  def test_moves(self, move, stays):
    x = pruned((3, 8, 6), 2, 4, -2)
    leaf = n_m_array.of_array(x, 2, 4, -2)
    got = jc.lift(move, keep=True)(leaf, 2)
    self.assertEqual(jc.is_compressed(got), stays)
    self.assertTrue(same_bits(jc.materialize(got), move(x, 2)))

  @parameterized.parameters('clip', 'fill')
  def test_rows_of_a_table(self, mode):
    table = pruned((5, 8), 2, 4, -1)
    leaf = n_m_array.of_array(table, 2, 4, -1)
    ids = jnp.array([[4, 0], [2, 7]])
    for fill in (None, -2):
      take = lambda t, ids, fill=fill: t.at[ids].get(mode=mode, fill_value=fill)
      (met,) = jc.explain(take)(leaf, ids)
      self.assertTrue(met.native, met)
      self.assertTrue(same_bits(jc.lift(take)(leaf, ids), take(table, ids)))

  def test_is_cut_over_devices_along_each_axis(self):
    mesh = jax.make_mesh((4,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
    x = pruned((32, 8), 2, 4, -2)
    leaf = n_m_array.of_array(x, 2, 4, -2)
    for spec in (PartitionSpec('d'), PartitionSpec(None, 'd')):
      put = jc.parallel.device_put(leaf, mesh, spec)
      self.assertFalse(put.values.sharding.is_fully_replicated)
      self.assertTrue(same_bits(jax.jit(jc.materialize)(put), x))
    # A group of 2:4 has half a byte of indices: three of them do not end with one.
    with self.assertRaisesRegex(ValueError, 'cannot be cut'):
      jc.parallel.device_put(
        n_m_array.of_array(x[:16], 2, 4, -2), mesh, PartitionSpec('d')
      )

  @parameterized.named_parameters(
    ('ragged', jnp.ones(6), 2, 4, -1, 'whole groups of 4'),
    ('from the start', jnp.zeros(8), 2, 4, 0, 'counted from the end'),
    ('bool', jnp.zeros(8, bool), 2, 4, -1, 'bool'),
    ('too many', jnp.ones(8), 2, 4, -1, '2 of 2 groups keep more than 2'),
  )
  def test_refuses(self, x, n, m, axis, message):
    with self.assertRaisesRegex(ValueError, message):
      n_m_array.of_array(x, n, m, axis)

  def test_a_group_of_too_many_under_a_trace_has_nan(self):
    make = lambda x: n_m_array.of_array(x, 1, 2, -1).materialize()
    got = jax.jit(make)(jnp.float32([0, 1, 1, 1]))
    self.assertEqual(np.isnan(got).tolist(), [False, False, True, False])


if __name__ == '__main__':
  absltest.main()
