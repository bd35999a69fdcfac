"""Sums of losses, and of teachers."""

from functools import partial

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from positions_of_logits import logits
from positions_of_logits import MASK

from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import teachers

S, T, U = logits(0), logits(1), logits(2)
LABELS = jnp.zeros((3, 5), jnp.int32)


class WeightedTest(absltest.TestCase):
  def test_distill_is_one(self):
    mask = jnp.asarray(MASK)

    @jax.jit
    def both(s, t):
      return losses.weighted(
        (0.3, partial(losses.kl, temperature=2.0), s, t),
        (0.7, losses.cross_entropy, s, LABELS),
        mask=mask,
      ), losses.distill(s, t, LABELS, alpha=0.3, temperature=2.0, mask=mask)

    got, want = both(S, T)
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_losses_of_teachers_and_their_distribution(self):
    # d KL(p || q) is q - p: linear in the teacher.
    kl = partial(losses.kl, temperature=2.0)
    of_losses = lambda s: losses.weighted((0.5, kl, s, T), (0.5, kl, s, U))[0]
    of_mean = lambda s: kl(s, teachers.ensemble([T, U], temperature=2.0))[0]
    np.testing.assert_allclose(
      jax.jit(jax.grad(of_losses))(S), jax.jit(jax.grad(of_mean))(S), atol=1e-5
    )

  def test_weight_zero(self):
    broken = jnp.full_like(T, jnp.nan)

    def loss(s, weight):
      return losses.weighted(
        (weight, losses.kl, s, broken), (1.0, losses.kl, s, T)
      )

    want = losses.kl(S, T)
    f = jax.value_and_grad(loss, has_aux=True)
    known = jax.jit(f, static_argnums=1)
    for (total, count), grads in (
      known(S, 0.0),
      known(S, 0),
      jax.jit(f)(S, jnp.float32(0)),
    ):
      np.testing.assert_allclose((total, count), want, rtol=1e-6)
      self.assertTrue(np.isfinite(grads).all())

  def test_a_count_that_only_a_term_of_weight_zero_has(self):
    got = losses.weighted((0.0, losses.kl, S, T))
    self.assertEqual([float(x) for x in got], [0, 15])

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, 'no losses'):
      losses.weighted()
    with self.assertRaisesRegex(ValueError, r'count different .*\[7.0, 15.0\]'):
      losses.weighted(
        (1.0, losses.kl, S, T),
        (1.0, lambda s, mask: (s.sum(), jnp.float32(7)), S),
      )


if __name__ == '__main__':
  absltest.main()
