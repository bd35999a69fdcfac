"""Bitmasks: drawn, without loss, and what moves keep them."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.pruning.storage import bitmask

RNG = np.random.default_rng(0)


def pruned(shape, dtype='float32', zeros=0.6):
  x = RNG.standard_normal(shape)
  return jnp.asarray(np.where(RNG.random(shape) < zeros, 0, x * 9), dtype)


def same_bits(a, b):
  a, b = np.asarray(a), np.asarray(b)
  return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


class BitmaskTest(parameterized.TestCase):
  def test_drawn(self):
    leaf = bitmask.of_array(
      jnp.float32([[[0, 1], [0, 2]], [[3, 4], [0, 5]]]), 1
    )
    # Lowest first: the second and the fourth; the first, second and fourth.
    self.assertEqual(leaf.bits.tolist(), [[[0b1010]], [[0b1011]]])
    self.assertEqual(leaf.values.tolist(), [[[1, 2, 0]], [[3, 4, 5]]])
    self.assertEqual(leaf.describe(), 'bitmask 38%')

  @parameterized.parameters(
    ('float32', (37,), 0),
    ('bfloat16', (6, 9), 0),
    ('float16', (6, 9), 1),
    ('float8_e4m3fn', (3, 6, 9), 1),
    ('int8', (2, 3, 8), 2),
    ('int32', (2, 3, 8), 0),
  )
  def test_without_loss(self, dtype, shape, lead):
    x = pruned(shape, dtype)
    leaf = bitmask.of_array(x, lead)
    self.assertEqual((leaf.shape, leaf.dtype), (x.shape, x.dtype))
    self.assertTrue(same_bits(leaf.materialize(), x))

  @parameterized.parameters('float32', 'bfloat16')
  def test_what_is_not_quite_zero_comes_back(self, dtype):
    tiny = jnp.finfo(dtype).smallest_subnormal
    odd = jnp.array([0, -0.0, np.nan, -np.inf, tiny, 0, 0, -tiny, 0], dtype)
    leaf = bitmask.of_array(odd)
    self.assertEqual(leaf.values.size, 5)
    self.assertTrue(same_bits(jax.jit(jc.materialize)(leaf), odd))

  @parameterized.parameters(0.0, 1.0)
  def test_all_or_nothing(self, zeros):
    x = pruned((4, 5), zeros=zeros)
    self.assertTrue(same_bits(bitmask.of_array(x).materialize(), x))

  def test_bytes_are_those_of_the_equation(self):
    x = pruned((3, 50, 41), zeros=0.9)
    most = max(int((layer != 0).sum()) for layer in x)
    want = 3 * (-(-50 * 41 // 8) + most * 4)
    self.assertEqual(jc.nbytes(bitmask.of_array(x, 1)), want)

  @parameterized.named_parameters(
    ('layer', lambda w, i: w[1], True),
    ('traced layer', lambda w, i: jax.lax.dynamic_index_in_dim(w, i), True),
    ('layers', lambda w, i: w[1:], True),
    ('merged', lambda w, i: w.reshape(3, 24), True),
    ('split', lambda w, i: w.reshape(3, 2, 2, 6), True),
    ('squeezed', lambda w, i: w[:1].squeeze(0), True),
    ('bfloat16', lambda w, i: w.astype(jnp.bfloat16), True),
    ('across', lambda w, i: w.reshape(12, 6), False),
    ('columns', lambda w, i: w[:, :, :2], False),
    ('turned', lambda w, i: w.swapaxes(1, 2), False),
    ('integers', lambda w, i: w.astype(jnp.float8_e5m2), False),
  )
  def test_moves(self, move, stays):
    x = pruned((3, 4, 6))
    leaf = bitmask.of_array(x, 1)
    got = jc.lift(move, keep=True)(leaf, 2)
    self.assertEqual(jc.is_compressed(got), stays)
    self.assertTrue(same_bits(jc.materialize(got), move(x, 2)))

  @parameterized.parameters('clip', 'fill', 'promise_in_bounds')
  def test_rows_of_a_table(self, mode):
    table = pruned((5, 9))
    leaf = bitmask.of_array(table, 1)
    ids = jnp.array([[4, 0], [2, 4 if mode[0] == 'p' else 7]])
    take = lambda t, ids: t.at[ids].get(mode=mode)
    (met,) = jc.explain(take)(leaf, ids)
    self.assertTrue(met.native, met)
    got, want = jax.jit(jc.lift(take))(leaf, ids), take(table, ids)
    self.assertTrue(same_bits(got, want))
    filled = lambda t, ids: t.at[ids].get(mode='fill', fill_value=-2)
    self.assertTrue(same_bits(jc.lift(filled)(leaf, ids), filled(table, ids)))

  def test_layers_of_a_scan_are_put_back_one_by_one(self):
    x, y = pruned((3, 4, 4)), jnp.ones((2, 4))
    scan = lambda w, y: jax.lax.scan(lambda y, w: (y @ w, None), y, w)[0]
    leaf = bitmask.of_array(x, 1)
    program = jax.jit(jc.lift(scan)).lower(leaf, y).as_text()
    self.assertNotIn('tensor<3x4x4xf32>', program)
    np.testing.assert_allclose(jc.lift(scan)(leaf, y), scan(x, y), rtol=1e-5)

  def test_is_cut_over_devices_between_segments(self):
    mesh = jax.make_mesh((4,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
    x, spec = pruned((4, 3, 8)), jax.sharding.PartitionSpec('d')
    put = jc.parallel.device_put(bitmask.of_array(x, 1), mesh, spec)
    self.assertEqual(put.values.sharding.spec[0], 'd')
    program = jax.jit(jc.materialize).lower(put).compile()
    self.assertNotRegex(program.as_text(), 'all-(gather|reduce)')
    self.assertTrue(same_bits(program(put), x))
    with self.assertRaisesRegex(ValueError, 'cannot be cut'):
      jc.parallel.device_put(bitmask.of_array(x), mesh, spec)

  def test_gradients_are_of_what_is_kept(self):
    x = jnp.float32([[0, 2], [3, 0]])
    leaf = bitmask.of_array(x)
    g = jax.grad(lambda w: jnp.sum(jc.materialize(w) ** 2), allow_int=True)(
      leaf
    )
    self.assertEqual(g.values.tolist(), [[4, 6]])

  @parameterized.named_parameters(
    ('scalar', lambda: bitmask.of_array(jnp.float32(1)), 'axes after'),
    ('empty', lambda: bitmask.of_array(jnp.zeros((0, 3))), 'not empty'),
    ('bool', lambda: bitmask.of_array(jnp.ones(3, bool)), 'bool'),
    (
      'lead',
      lambda: bitmask.of_array(jnp.ones((3, 3)), 2),
      'after the first 2',
    ),
    ('room', lambda: bitmask.of_array(jnp.ones(3), 0, 2), 'keeps 3 .* for 2'),
    (
      'traced',
      lambda: jax.jit(bitmask.of_array)(jnp.ones(3)),
      'pass capacity=',
    ),
  )
  def test_refuses(self, f, message):
    with self.assertRaisesRegex(ValueError, message):
      f()

  def test_no_room_under_a_trace_is_nan(self):
    make = lambda x: bitmask.of_array(x, 1, 1).materialize()
    got = jax.jit(make)(jnp.float32([[0, 1], [1, 1]]))
    np.testing.assert_array_equal(got, [[0, 1], [np.nan, np.nan]])


if __name__ == '__main__':
  absltest.main()
