"""The masked leaf: its meaning, its derivative, what it keeps back."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import storage
from jaxopt_compress.core import array
from jaxopt_compress.core import compression
from jaxopt_compress.core import lift
from jaxopt_compress.pruning import masked_array

MASK = jnp.array([[True, False, True], [False, False, True]])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Stored(array.CompressedArray):
  """A leaf that stays what it is when training is over."""

  x: jax.Array
  shape = property(lambda self: self.x.shape)
  dtype = property(lambda self: self.x.dtype)

  def materialize(self):
    return self.x


def leaf(dtype=jnp.float32):
  return masked_array.Masked(
    jnp.arange(1.0, 7.0, dtype=dtype).reshape(2, 3), MASK
  )


class MaskedTest(parameterized.TestCase):
  @parameterized.parameters('float32', 'bfloat16', 'float16')
  def test_meaning(self, dtype):
    x = leaf(dtype)
    self.assertEqual((x.shape, x.dtype, x.ndim), ((2, 3), dtype, 2))
    self.assertEqual(x.materialize().dtype, dtype)
    np.testing.assert_array_equal(x.materialize(), [[1, 0, 3], [0, 0, 6]])

  @parameterized.parameters(jnp.nan, jnp.inf)
  def test_what_is_behind_the_mask_stays_there(self, bad):
    x = leaf()
    x = masked_array.Masked(jnp.where(MASK, x.value, bad), MASK)

    def loss(value):
      return jnp.sum(masked_array.Masked(value, MASK).materialize() ** 2)

    value, grads = jax.value_and_grad(loss)(x.value)
    self.assertEqual(float(value), 1 + 9 + 36)
    np.testing.assert_array_equal(grads, [[2, 0, 6], [0, 0, 12]])

  def test_gradient_is_zero_though_all_that_arrives_is_nan(self):
    def loss(value):
      return jnp.sum(masked_array.Masked(value, MASK).materialize() * jnp.nan)

    grads = jax.grad(loss)(leaf().value)
    self.assertEqual(jnp.isnan(grads).tolist(), MASK.tolist())
    self.assertEqual(float(jnp.where(MASK, 0, grads).sum()), 0.0)

  @parameterized.parameters('masked', 'dense')
  def test_gradients_behind_the_mask_and_of_scores(self, gradient):
    value, by = jnp.array([2.0, 3.0]), jnp.array([5.0, 7.0])
    mask = jnp.array([True, False])

    def loss(value, scores):
      x = masked_array.Masked(value, mask, scores, gradient)
      return jnp.sum(x.materialize() * by)

    zeros = jnp.zeros(2)
    y, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(value, zeros)
    self.assertEqual(float(y), 10)
    # The mask of a weight is what its score would multiply it by: w * dy/dw.
    want = [5, 7] if gradient == 'dense' else [5, 0]
    self.assertEqual(grads[0].tolist(), want)
    self.assertEqual(grads[1].tolist(), [10, 21])
    y, tangent = jax.jvp(loss, (value, zeros), (jnp.ones(2), zeros))
    self.assertEqual(float(tangent), sum(want))

  def test_dense_gradients_ignore_what_is_behind_the_mask(self):
    value = jnp.array([2.0, jnp.nan])

    def loss(value):
      x = masked_array.Masked(value, jnp.array([True, False]), gradient='dense')
      return jnp.sum(x.materialize() * 3)

    self.assertEqual(jax.grad(loss)(value).tolist(), [3, 3])

  def test_freezes_to_a_plain_array(self):
    frozen = compression.freeze({'w': leaf(), 'b': jnp.ones(2)})
    self.assertFalse(array.is_compressed(frozen['w']))
    np.testing.assert_array_equal(frozen['w'], leaf().materialize())

  def test_nests(self):
    outer = masked_array.Masked(leaf(), jnp.array([[False] * 3, [True] * 3]))
    want = [[0, 0, 0], [0, 0, 6]]
    np.testing.assert_array_equal(outer.materialize(), want)
    np.testing.assert_array_equal(outer.freeze(), want)
    self.assertEqual(outer.describe(), 'masked 50% masked 50%')

  def test_a_mask_over_what_is_stored_is_refused(self):
    outer = masked_array.Masked(
      Stored(jnp.ones((2, 3))), jnp.ones((2, 3), bool)
    )
    with self.assertRaisesRegex(ValueError, 'Prune first'):
      outer.freeze()

  def test_describe_of_nothing(self):
    empty = masked_array.Masked(jnp.zeros((0, 3)), jnp.zeros((0, 3), bool))
    self.assertEqual(empty.describe(), 'masked 0%')

  def test_describe_without_values(self):
    self.assertEqual(leaf().describe(), 'masked 50%')
    self.assertEqual(jax.eval_shape(leaf).describe(), 'masked')
    seen = []
    jax.jit(lambda x: seen.append(x.describe()))(leaf())
    self.assertEqual(seen, ['masked'])

  def test_bytes_are_counted_as_they_are(self):
    self.assertEqual(storage.nbytes(leaf()), 6 * 4 + 6)

  def test_lifted_through_a_scan(self):
    value = jax.random.normal(jax.random.key(0), (3, 4, 4))
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, (3, 4, 4))

    def f(w, x):
      return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    x = jnp.ones((2, 4))
    got = jax.jit(lift.lift(f))(masked_array.Masked(value, mask), x)
    np.testing.assert_allclose(got, f(jnp.where(mask, value, 0), x), rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
