"""DIST: what is a relation within a batch, and what is one of its parts."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import loss_oracles
import numpy as np
from positions_of_logits import logits
from positions_of_logits import MASK

from jaxopt_compress.distillation import losses

dist, kl = jax.jit(losses.dist), jax.jit(losses.kl)


class DistTest(parameterized.TestCase):
  def test_what_it_does_not_see(self):
    # Within a position: the mean of p and one spread have the same relations.
    p = jnp.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    q = 0.5 * p + 0.5 / 3
    s, t = jnp.log(q), jnp.log(p)
    np.testing.assert_allclose(dist(s, t)[0], 0, atol=1e-6)
    self.assertGreater(float(kl(s, t)[0]), 0.1)

  def test_each_term_alone(self):
    # Classes are in order in both positions; class by class, the positions are not.
    s, t = jnp.log(
      jnp.array([[[0.6, 0.4], [0.7, 0.3]], [[0.7, 0.3], [0.6, 0.4]]])
    )
    inter = dist(s, t, gamma=0.0)
    intra = dist(s, t, beta=0.0)
    np.testing.assert_allclose(inter, (0, 2), atol=1e-5)
    np.testing.assert_allclose(intra, (2 * 2, 2), rtol=1e-5)

  @parameterized.parameters(-10.0, -50.0, -85.0)
  def test_classes_of_any_probability(self, unlikely):
    s, t = (logits(i, (6, 3)).at[:, 0].add(unlikely) for i in (0, 1))
    args = np.float64(s), np.float64(t), None, np.ones(6)
    oracle = loss_oracles.dist(0.0, 1.0, 1.0)
    value, grads = jax.value_and_grad(lambda s: dist(s, t, beta=0.0)[0])(s)
    np.testing.assert_allclose(value, oracle(*args), rtol=1e-4)
    want = loss_oracles.gradient(oracle, *args)
    np.testing.assert_allclose(grads, want, rtol=1e-3, atol=1e-4)

  def test_a_weight_is_how_often_a_position_is_there(self):
    s, t = logits(0, (4, 5)), logits(1, (4, 5))
    mask = jnp.array([2.0, 1.0, 0.0, 1.0])
    often = jnp.array([0, 0, 1, 3])
    np.testing.assert_allclose(
      dist(s, t, mask=mask), dist(s[often], t[often]), rtol=1e-5
    )

  def test_leading_axes_are_one_batch(self):
    s, t, mask = logits(0), logits(1), jnp.asarray(MASK)
    flat = [x.reshape(15, *x.shape[2:]) for x in (s, t, mask)]
    np.testing.assert_allclose(
      dist(s, t, mask=mask),
      dist(*flat[:2], mask=flat[2]),
      rtol=1e-6,
    )

  def test_microbatches_are_other_batches(self):
    s, t = logits(0, (8, 5)), logits(1, (8, 5))
    parts = [dist(s[i : i + 4], t[i : i + 4]) for i in (0, 4)]
    whole = dist(s, t)
    self.assertEqual(float(sum(p[1] for p in parts)), float(whole[1]))
    self.assertGreater(abs(float(sum(p[0] for p in parts) - whole[0])), 0.01)


if __name__ == '__main__':
  absltest.main()
