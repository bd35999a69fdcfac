"""Penalties, by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import doubled
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import penalties

A = {'b': jnp.array([1.0, 2.0]), 'w': jnp.array([[0.0, 3.0, 0.0]])}
B = {'b': jnp.array([1.0, 0.0]), 'w': jnp.array([[0.0, 3.0, 4.0]])}


class PenaltiesTest(parameterized.TestCase):
  @parameterized.parameters(
    (penalties.l1, 6.0),
    (penalties.l2, 14.0),
    (penalties.towards(B), 4.0),
    (penalties.l2_sp(B), 20.0),
    (penalties.by_path([(r'w', penalties.l2), (r'.*', None)]), 9.0),
    (penalties.by_path([(r'w', penalties.l2), (r'b', penalties.l1)]), 12.0),
    (penalties.by_path([(r'.*', None)]), 0.0),
  )
  def test_values(self, penalty, expected):
    self.assertEqual(float(penalty(A)), expected)

  def test_what_is_zero_stays(self):
    grads = jax.grad(penalties.l1)({'w': jnp.array([-2.0, 0.0, 3.0])})['w']
    self.assertEqual(grads.tolist(), [-1.0, 0.0, 1.0])

  def test_group_lasso(self):
    w = np.array([[3.0, 1.0], [4.0, 0.0]], np.float32)
    for axis, expected in (
      (-1, np.sqrt(2) * (5 + 1)),
      (-2, np.sqrt(2) * (np.sqrt(10) + 4)),
      ((-2, -1), 8.0),
    ):
      got = penalties.group_lasso(axis)({'w': jnp.asarray(w)})
      np.testing.assert_allclose(got, expected, rtol=1e-6)

  def test_group_lasso_has_a_gradient_at_zero(self):
    w = jnp.array([[3.0, 0.0], [4.0, 0.0]])
    grads = jax.grad(penalties.group_lasso(-1))({'w': w})['w']
    root = np.sqrt(2)
    np.testing.assert_allclose(
      grads, [[root * 0.6, 0], [root * 0.8, 0]], rtol=1e-6
    )

  def test_group_lasso_names_the_way_out(self):
    with self.assertRaisesRegex(ValueError, 'penalties.by_path'):
      penalties.group_lasso((-2, -1))(A | {'b': jnp.ones(2)})

  def test_compressed_leaves_count_for_what_they_stand_for(self):
    self.assertEqual(
      float(penalties.l2({'w': doubled.Doubled(jnp.ones(3))})), 12.0
    )


if __name__ == '__main__':
  absltest.main()
