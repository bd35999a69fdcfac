"""What leaves of every layout share: one static record, and their stacks."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels import matrix
from jaxopt_compress.kernels.leaves import plan as plan_lib

W = jax.random.normal(jax.random.key(0), (3, 64, 40))
THIN = jnp.where(jax.random.uniform(jax.random.key(1), W.shape) < 0.8, 0, W)
PLAN = plan_lib.Plan(
  'int8', jnp.dtype('float32'), matrix.Matrix((64,), (40,), (0, 1)), 64
)


def _matmul(p, x):
  return jax.vmap(jnp.matmul)(x, p['w'])


def _leaf(kind):
  w, target = (THIN if kind == 'StreamArray' else W), 'cpu'
  if kind == 'TiledArray':
    target = 'tpu'
  uses = jc.uses(_matmul)({'w': w}, jnp.ones((3, 5, 64)))
  q = jc.quantize({'w': w}, [('w', 'int8')], uses)
  return jc.pack(q, uses, target=target, sparse=True)['w']


KINDS = ('PanelArray', 'StreamArray', 'TiledArray')


class LeafTest(parameterized.TestCase):
  @parameterized.parameters(*KINDS)
  def test_one_static_field(self, kind):
    leaf = _leaf(kind)
    self.assertIsInstance(leaf, getattr(leaves, kind))
    self.assertEqual(isinstance(leaf, jc.PackedArray), kind != 'TiledArray')
    arrays = set(leaf.axes(leaf.plan))
    self.assertEqual(set(vars(leaf)), arrays | {'plan'})
    # JAX compares it in every call: a record, equal to one that was made anew.
    self.assertEqual(_leaf(kind).plan, leaf.plan)
    self.assertEqual(jax.tree.structure(_leaf(kind)), jax.tree.structure(leaf))

  @parameterized.parameters(*KINDS)
  def test_scales_that_no_kernel_reads(self, kind):
    leaf = _leaf(kind)
    leaf.check_dtypes()
    cast = dataclasses.replace(leaf, scale=leaf.scale.astype(jnp.float16))
    with self.assertRaisesRegex(ValueError, 'scale is float16, not float32'):
      cast.check_dtypes()

  @parameterized.parameters(*KINDS)
  def test_stacks_come_apart_like_those_of_an_array(self, kind):
    leaf = _leaf(kind)
    self.assertEqual(plan_lib.stack(leaf), (3,))
    self.assertEqual(leaf.shape, W.shape)
    self.assertTrue(leaf.can_cut(-3, 1))
    self.assertFalse(leaf.can_cut(-2, 32))
    second = jax.tree.map(lambda x: x[1], leaf)
    self.assertEqual(second.shape, W.shape[1:])
    np.testing.assert_array_equal(second.materialize(), leaf.materialize()[1])

  @parameterized.parameters(*KINDS)
  def test_seen_with_more_axes_no_part_has_fewer(self, kind):
    leaf = _leaf(kind)
    seen = plan_lib.seen_as(
      leaf, matrix.Matrix((2, 4, 8), (5, 8), (0, 1, 2, 3, 4))
    )
    self.assertEqual(seen.shape, (3, 2, 4, 8, 5, 8))
    for part in jax.tree.leaves(seen):
      self.assertGreaterEqual(part.ndim, seen.ndim)
    np.testing.assert_array_equal(
      seen.materialize().reshape(W.shape), leaf.materialize()
    )
    back = plan_lib.as_matrices(seen)
    np.testing.assert_array_equal(back.materialize(), leaf.materialize())

  def test_paths_by_the_nearest_number_of_rows(self):
    self.assertEqual(PLAN.path_for(7), '')
    leaf = plan_lib.with_paths(_leaf('PanelArray'), {1: 'a', 64: 'b'}.items())
    found = {m: leaf.plan.path_for(m) for m in (0, 1, 7, 9, 64, 10**6)}
    self.assertEqual(
      found, {0: 'a', 1: 'a', 7: 'a', 9: 'b', 64: 'b', 10**6: 'b'}
    )


if __name__ == '__main__':
  absltest.main()
