"""Losses that need labels, against numpy in float64."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from positions_of_logits import kl_oracle
from positions_of_logits import log_softmax
from positions_of_logits import logits
from positions_of_logits import MASK

from jaxopt_compress.distillation import losses

INF = np.inf


class LabelsTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.1, 0.9)
  def test_cross_entropy(self, smoothing):
    x = logits(0)
    labels = jax.random.randint(jax.random.key(2), (3, 5), 0, 7)
    log_q = log_softmax(x)
    target = (1 - smoothing) * np.eye(7)[labels] + smoothing / 7
    want = -(target * log_q).sum(-1)
    total, count = losses.cross_entropy(
      x, labels, jnp.asarray(MASK), label_smoothing=smoothing
    )
    np.testing.assert_allclose(total, (MASK * want).sum(), rtol=1e-5)
    self.assertEqual(float(count), MASK.sum())

  @parameterized.parameters(0.0, 0.3, 1.0)
  def test_distill_mixes(self, alpha):
    s, t = logits(0), logits(1)
    labels = jnp.zeros((3, 5), jnp.int32)
    got, count = losses.distill(s, t, labels, alpha=alpha, temperature=2.0)
    want = alpha * kl_oracle(s, t, 2.0) - (1 - alpha) * log_softmax(s)[..., 0]
    np.testing.assert_allclose(got, want.sum(), rtol=1e-5)
    self.assertEqual(float(count), 15)

  @parameterized.named_parameters(
    # weights, what is NaN or infinite where they are 0, the loss that is left
    ('unlabelled', dict(alpha=1.0), dict(label=-1), 'kl'),
    ('a broken teacher', dict(alpha=0.0), dict(teacher=np.nan), 'ce'),
    (
      'a class that cannot occur',
      dict(alpha=0.0, label_smoothing=0.0),
      dict(student=-INF),
      'ce',
    ),
  )
  def test_a_term_of_weight_zero_has_no_part(self, weights, bad, left):
    s = logits(0, (5, 7)).at[:, 6].set(bad.get('student', 1.0))
    t = logits(1, (5, 7)).at[:, 6].set(bad.get('teacher', 1.0))
    labels = jnp.full(5, bad.get('label', 2))

    def loss(s, weights):
      return losses.distill(s, t, labels, temperature=2.0, **weights)[0]

    want, _ = {
      'ce': lambda: losses.cross_entropy(s, labels),
      'kl': lambda: losses.kl(s, t, temperature=2.0),
    }[left]()
    for f in (jax.value_and_grad(loss), jax.jit(jax.value_and_grad(loss))):
      for given in (weights, jax.tree.map(jnp.float32, weights)):
        got, grads = f(s, given)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        self.assertTrue(np.isfinite(grads).all())

  def test_alpha_and_temperature_may_be_traced(self):
    s, t, labels = logits(0), logits(1), jnp.zeros((3, 5), jnp.int32)
    f = jax.jit(
      lambda a, temperature: losses.distill(
        s, t, labels, alpha=a, temperature=temperature
      )[0]
    )
    for a, temperature in ((0.0, 1.0), (0.7, 3.0)):
      want = losses.distill(s, t, labels, alpha=a, temperature=temperature)[0]
      np.testing.assert_allclose(f(a, temperature), want, rtol=1e-6)
    self.assertEqual(f._cache_size(), 1)

  @parameterized.parameters(-1, 7, -100)
  def test_a_label_that_is_no_class_shows(self, label):
    labels = jnp.zeros((3, 5), jnp.int32).at[0, 0].set(label)
    self.assertTrue(np.isnan(losses.cross_entropy(logits(0), labels)[0]))

  def test_bfloat16_is_summed_in_float32(self):
    s = jnp.zeros((1000, 4), jnp.bfloat16)
    total, count = losses.cross_entropy(s, jnp.zeros(1000, jnp.int32))
    np.testing.assert_allclose(total, 1000 * np.log(4), rtol=1e-6)
    self.assertEqual(float(count), 1000)

  def test_hard_is_the_cross_entropy_of_the_first_choice(self):
    s, t = logits(0), logits(1)
    np.testing.assert_array_equal(
      losses.hard(s, t, label_smoothing=0.1),
      losses.cross_entropy(s, jnp.argmax(t, -1), label_smoothing=0.1),
    )

  def test_distill_takes_any_soft_loss(self):
    s, t, labels = logits(0), logits(1), jnp.zeros((3, 5), jnp.int32)
    how = dict(alpha=0.25, temperature=2.0)
    jsd = functools.partial(losses.jsd, beta=0.1)
    got, _ = losses.distill(s, t, labels, soft=jsd, **how)
    want = 0.25 * jsd(s, t, temperature=2.0)[0]
    want += 0.75 * losses.cross_entropy(s, labels)[0]
    np.testing.assert_allclose(got, want, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
