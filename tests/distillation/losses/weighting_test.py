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
    got = losses.weighted(
      (0.3, partial(losses.kl, temperature=2.0), S, T),
      (0.7, losses.cross_entropy, S, LABELS),
      mask=mask,
    )
    want = losses.distill(S, T, LABELS, alpha=0.3, temperature=2.0, mask=mask)
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_losses_of_teachers_and_their_distribution(self):
    # d KL(p || q) is q - p: linear in the teacher.
    kl = partial(losses.kl, temperature=2.0)
    of_losses = lambda s: losses.weighted((0.5, kl, s, T), (0.5, kl, s, U))[0]
    of_mean = lambda s: kl(s, teachers.ensemble([T, U], temperature=2.0))[0]
    np.testing.assert_allclose(
      jax.grad(of_losses)(S), jax.grad(of_mean)(S), atol=1e-5
    )

  def test_weight_zero(self):
    broken = jnp.full_like(T, jnp.nan)

    def loss(s, weight):
      return losses.weighted(
        (weight, losses.kl, s, broken), (1.0, losses.kl, s, T)
      )

    want = losses.kl(S, T)
    for weight in (0.0, 0, jnp.float32(0)):
      for f in (loss, jax.jit(loss)):
        np.testing.assert_allclose(f(S, weight), want, rtol=1e-6)
      grads = jax.grad(lambda s, w=weight: loss(s, w)[0])(S)
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
