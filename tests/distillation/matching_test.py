"""Distances of trees, and losses that are pulled, by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import doubled
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import matching
from jaxopt_compress.distillation import penalties

A = {'b': jnp.array([1.0, 2.0]), 'w': jnp.array([[0.0, 3.0, 0.0]])}
B = {'b': jnp.array([1.0, 0.0]), 'w': jnp.array([[0.0, 3.0, 4.0]])}


class MatchingTest(parameterized.TestCase):
  def test_mean_over_all_entries(self):
    self.assertEqual(float(matching.squared_distance(A, B)), (4 + 16) / 5)
    self.assertEqual(float(matching.squared_distance(A, A)), 0.0)

  def test_gradient(self):
    grads = jax.grad(matching.squared_distance)(A, B)
    np.testing.assert_allclose(grads['b'], [0, 2 * 2 / 5])
    np.testing.assert_allclose(grads['w'], [[0, 0, -2 * 4 / 5]])

  def test_bfloat16_is_summed_in_float32(self):
    a = {'w': jnp.ones(1000, jnp.bfloat16)}
    b = {'w': jnp.zeros(1000, jnp.bfloat16)}
    got = matching.squared_distance(a, b)
    self.assertEqual((float(got), got.dtype), (1.0, jnp.float32))

  def test_descent_finds_the_nearest(self):
    # Of rank 1, those that the largest singular value leaves.
    w = np.array([[2.0, 1.0, 0.0], [4.0, 2.1, 0.3]])
    u, s, v = np.linalg.svd(w)
    nearest = s[0] * np.outer(u[:, 0], v[0])

    def distance(p):
      return matching.squared_distance(
        {'w': p['u'] @ p['v']}, {'w': jnp.asarray(w, jnp.float32)}
      )

    def step(p, _):
      return jax.tree.map(
        lambda x, g: x - 0.1 * g, p, jax.grad(distance)(p)
      ), ()

    start = {'u': jnp.ones((2, 1)), 'v': jnp.ones((1, 3))}
    got, _ = jax.lax.scan(step, start, length=3000)
    np.testing.assert_allclose(got['u'] @ got['v'], nearest, atol=1e-3)
    self.assertAlmostEqual(float(distance(got)), s[1] ** 2 / 6, places=5)

  @parameterized.parameters(
    ({'b': A['b']}, r"only the first has \['w'\] \(1"),
    ({**A, 'x': A['b']}, r"only the second \['x'\]"),
    ({**A, 'w': A['b']}, r'w: \(1, 3\) and \(2,\)'),
  )
  def test_layouts_that_differ(self, other, message):
    with self.assertRaisesRegex(ValueError, message):
      matching.squared_distance(A, other)

  def test_nothing_to_compare(self):
    with self.assertRaisesRegex(ValueError, 'no distance'):
      matching.squared_distance({}, {})

  def test_regularized_scalar(self):
    loss = lambda params, x: jnp.sum(params['b'] * x)
    got = matching.regularized(loss, penalties.l2, 0.1)(A, 2.0)
    self.assertAlmostEqual(float(got), 6.0 + 0.1 * 14, places=5)

  def test_regularized_sum_and_count_has_that_mean(self):
    params = {'w': jnp.array([[1.0, -2.0]])}
    labels = jnp.array([0, 1, 1])

    def loss(params, x, mask):
      return losses.cross_entropy(x @ params['w'], labels, mask)

    x, mask = jnp.ones((3, 1)), jnp.array([1.0, 1.0, 0.0])
    total, count = loss(params, x, mask)
    got = matching.regularized(loss, penalties.l1, 0.5)(params, x, mask)
    np.testing.assert_allclose(got[0] / got[1], total / count + 0.5 * 3)

  @parameterized.parameters(float, jnp.float32, jnp.int32)
  def test_a_penalty_of_weight_zero_has_no_part(self, number):
    params = {'w': jnp.array([0.0, -1.0])}
    loss = lambda params: jnp.sum(params['w'])
    logarithm = lambda params: jnp.sum(jnp.log(params['w']))  # -inf + NaN
    f = jax.value_and_grad(matching.regularized(loss, logarithm, number(0)))
    value, grads = f(params)
    self.assertEqual((float(value), grads['w'].tolist()), (-1.0, [1.0, 1.0]))
    # Nor has any penalty in a batch in which nothing counts.
    empty = lambda params: (0 * loss(params), jnp.float32(0))
    f = matching.regularized(empty, logarithm, 1.0)
    self.assertEqual([float(x) for x in f(params)], [0.0, 0.0])

  def test_regularized_refuses_what_is_no_loss(self):
    for bad in ((1.0, {'aux': 1}), jnp.ones(3), (1.0, 2.0, 3.0)):
      f = matching.regularized(lambda p, bad=bad: bad, penalties.l1, 1.0)
      with self.assertRaisesRegex(ValueError, 'scalar or scalars'):
        f(A)

  def test_compressed_leaves_count_for_what_they_stand_for(self):
    got = matching.squared_distance(
      {'w': doubled.Doubled(jnp.ones(3))}, {'w': jnp.zeros(3)}
    )
    self.assertEqual(float(got), 4.0)


if __name__ == '__main__':
  absltest.main()
