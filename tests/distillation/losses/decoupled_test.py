"""DKD: what it is made of, and labels that are none."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from positions_of_logits import logits

from jaxopt_compress.distillation import losses

INF = np.inf
dkd, kl = jax.jit(losses.dkd), jax.jit(losses.kl)


class DkdTest(absltest.TestCase):
  def test_kl_is_a_choice_of_weights(self):
    # Zhao et al. 2022, eq. 6: KL = TCKD + (1 - p_label) NCKD.
    s, t, label = logits(0, (1, 6)), logits(1, (1, 6)), jnp.array([2])
    p = jax.nn.softmax(t / 3)[0, 2]
    got = dkd(s, t, label, alpha=1.0, beta=1 - p, temperature=3.0)
    want = kl(s, t, temperature=3.0)
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_without_labels_the_teacher_chooses(self):
    s, t = logits(0), logits(1)
    np.testing.assert_array_equal(dkd(s, t, None), dkd(s, t, jnp.argmax(t, -1)))

  def test_a_label_that_is_no_class_shows(self):
    s, labels = logits(0, (2, 5)), jnp.array([0, -100])
    self.assertTrue(np.isnan(dkd(s, s, labels)[0]))
    got = dkd(s, s, labels, mask=jnp.array([True, False]))
    self.assertEqual([float(x) for x in got], [0, 1])

  def test_a_teacher_that_is_sure(self):
    # float32 has no 1 - p_label here, and none is needed.
    s, t = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[200.0, 1.0, 0.0]])
    label = jnp.array([0])
    f = lambda s: dkd(s, t, label, alpha=0.0, beta=1.0)[0]
    value, grads = jax.jit(jax.value_and_grad(f))(s)
    want = kl(s[:, 1:], t[:, 1:])[0]
    np.testing.assert_allclose(value, want, rtol=1e-5)
    self.assertTrue(np.isfinite(grads).all())

  def test_impossible_classes(self):
    # The teacher allows the label alone: there are no others to compare.
    s, t = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[0.0, -INF, -INF]])
    f = lambda s: dkd(s, t, jnp.array([0]), alpha=1.0, beta=1.0)[0]
    value, grads = jax.jit(jax.value_and_grad(f))(s)
    np.testing.assert_allclose(value, -jax.nn.log_softmax(s)[0, 0], rtol=1e-5)
    self.assertTrue(np.isfinite(grads).all())


if __name__ == '__main__':
  absltest.main()
