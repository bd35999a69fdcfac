"""Blocks of positions: what lies in each, and sums over them."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation.losses import blocks


class CutTest(parameterized.TestCase):
  @parameterized.parameters(
    # shape of positions, at most, the first block, (n, blocks, r)
    ((4, 6), 8, [[0, 1], [6, 7], [12, 13], [18, 19]], (4, 3, 2)),
    ((4, 6), 4, [[0], [6], [12], [18]], (4, 6, 1)),
    ((4, 6), 2, [[0], [12]], (2, 12, 1)),
    ((4, 6), 1, [[0]], (1, 24, 1)),
    ((4, 6), 99, np.arange(24).reshape(4, 6).tolist(), (4, 1, 6)),
    ((2, 2, 3), 4, [[0, 1], [6, 7]], (2, 3, 2)),
    ((6,), 3, [[0], [2], [4]], (3, 2, 1)),
    ((), 3, [[0]], (1, 1, 1)),
    # What does not come out even is filled up with zeros.
    ((5,), 2, [[0], [3]], (2, 3, 1)),
    ((2, 5), 4, [[0, 1], [5, 6]], (2, 3, 2)),
  )
  def test_first_block(self, lead, most, first, shape):
    cut = blocks.Cut.of(lead, most)
    x = np.arange(np.prod(lead, dtype=int)).reshape(lead)
    got = np.asarray(cut(jnp.asarray(x)))
    self.assertEqual(got.shape, shape)
    self.assertEqual(got[:, 0].tolist(), first)
    self.assertLessEqual(got[:, 0].size, max(most, 1))
    self.assertEqual(sorted(got[got > 0]), sorted(x[x > 0]))
    self.assertEqual(any(cut.padding), got.size > x.size)


class SumTest(absltest.TestCase):
  def test_only_what_is_differentiated_has_a_gradient(self):
    def of_block(values):
      x, labels, w = values
      return jnp.sum(w * x**2), jnp.sum(labels).astype(jnp.float32)

    def total(x, w):
      labels = jnp.ones((2, 3), jnp.int32)
      return blocks.Sum(of_block, 2)([x, labels, w])

    x, w = jnp.arange(6.0).reshape(2, 3), jnp.float32(2)
    (value, count), _ = jax.jit(total)(x, w), None
    self.assertEqual((float(value), float(count)), (110.0, 6.0))
    for argnums, want in ((0, 4 * x), (1, 55.0)):
      grad = jax.grad(lambda x, w: 3 * total(x, w)[0], argnums)
      np.testing.assert_allclose(jax.jit(grad)(x, w), 3 * want)
      jaxpr = jax.make_jaxpr(grad)(x, w)
      [scan] = [e for e in jaxpr.eqns if e.primitive.name == 'scan']
      self.assertLen(scan.outvars, 3)  # the two sums, and one gradient
    # Of the count alone, nothing has one.
    grad = jax.grad(lambda x: total(x, w)[1])(x)
    np.testing.assert_array_equal(grad, 0 * x)


if __name__ == '__main__':
  absltest.main()
