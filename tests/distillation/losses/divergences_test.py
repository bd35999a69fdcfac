"""Divergences against numpy, written from the equations in float64."""

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


class DivergencesTest(parameterized.TestCase):
  @parameterized.product(
    temperature=[0.5, 1.0, 4.0],
    mask=[None, MASK, MASK > 0],
    dtype=['float32', 'bfloat16'],
  )
  def test_kl_both_ways(self, temperature, mask, dtype):
    s, t = logits(0, dtype=dtype), logits(1, dtype=dtype)
    w = np.ones((3, 5)) if mask is None else np.asarray(mask, np.float64)
    mask = None if mask is None else jnp.asarray(mask)
    for loss, want in (
      (losses.kl, kl_oracle(s, t, temperature)),
      (losses.reverse_kl, kl_oracle(t, s, temperature)),
    ):
      total, count = loss(s, t, temperature=temperature, mask=mask)
      self.assertEqual((total.dtype, count.dtype), (jnp.float32, jnp.float32))
      np.testing.assert_allclose(total, (w * want).sum(), rtol=1e-5)
      self.assertEqual(float(count), w.sum())

  @parameterized.parameters(1.0, 8.0)
  def test_gradient_of_kl(self, temperature):
    # d T^2 KL(p || q) / d s = T (q - p)
    s, t = logits(0), logits(1)
    grads = jax.grad(lambda s: losses.kl(s, t, temperature=temperature)[0])(s)
    p, q = (np.exp(log_softmax(np.asarray(x) / temperature)) for x in (t, s))
    np.testing.assert_allclose(grads, temperature * (q - p), atol=2e-5)

  @parameterized.parameters('kl', 'reverse_kl')
  def test_close_distributions(self, name):
    s, t = logits(0) / 10, logits(1) / 10
    total, _ = getattr(losses, name)(s, t, temperature=100.0)
    want = kl_oracle(*(s, t) if name == 'kl' else (t, s), 100.0).sum()
    np.testing.assert_allclose(total, want, rtol=1e-4)

  def test_a_temperature_of_float16(self):
    s, t = logits(0), logits(1)
    f = jax.jit(lambda T: losses.kl(s, t, temperature=T))
    np.testing.assert_allclose(f(jnp.float16(300)), f(300.0), rtol=1e-5)

  def test_temperature_squared_keeps_the_gradient(self):
    # For large T the gradient is (s - t) / classes, of centred logits.
    s, t = logits(0), logits(1)
    centred = lambda x: np.asarray(x) - np.asarray(x).mean(-1, keepdims=True)
    grads = jax.grad(lambda s: losses.kl(s, t, temperature=1e3)[0])(s)
    np.testing.assert_allclose(grads, (centred(s) - centred(t)) / 7, atol=5e-3)

  @parameterized.named_parameters(
    ('impossible for both', [0.0, 1.0, -INF], [1.0, 0.0, -INF], None),
    ('impossible for the teacher', [0.0, 1.0, 2.0], [1.0, 0.0, -INF], None),
    ('impossible for the student', [0.0, -INF, 1.0], [1.0, 0.0, 0.0], INF),
    ('certain', [100.0, 0.0, 0.0], [100.0, 0.0, 0.0], 0.0),
    ('huge', [3e38, 0.0, -3e38], [3e38, 0.0, -3e38], 0.0),
    ('shifted', [1e4, 1e4 + 1, 1e4], [-1e4, -1e4, -1e4 + 1], None),
  )
  def test_extreme_logits(self, student, teacher, expected):
    s, t = jnp.array([student]), jnp.array([teacher])
    if expected is None:
      expected = kl_oracle(student, teacher, 0.5)
    f = lambda s: losses.kl(s, t, temperature=0.5)[0]
    value, grads = jax.value_and_grad(f)(s)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
    self.assertTrue(np.isfinite(grads).all())
    backwards = jax.grad(lambda t: losses.reverse_kl(t, s, temperature=0.5)[0])
    self.assertTrue(np.isfinite(jax.grad(f)(s)).all())
    if np.isfinite(student).all() or student == teacher:
      self.assertTrue(np.isfinite(backwards(t)).all())

  def test_jsd_at_its_ends(self):
    s, t = logits(0) / 3, logits(1) / 3
    grads = jax.jit(
      jax.value_and_grad(lambda s, beta: losses.jsd(s, t, beta=beta)[0])
    )
    for beta, end in ((0.0, losses.kl), (1.0, losses.reverse_kl)):
      want = jax.value_and_grad(lambda s, end=end: end(s, t)[0])(s)
      # The limit: JSD(beta) / beta, or / (1 - beta), near the end.
      near = 1e-3 if beta == 0 else 1 - 1e-3
      limit = jax.tree.map(lambda x: x / 1e-3, grads(s, near))
      for got, rtol in ((grads(s, beta), 1e-5), (limit, 0.05)):
        np.testing.assert_allclose(got[0], want[0], rtol=rtol)
        np.testing.assert_allclose(got[1], want[1], atol=rtol)

  def test_skew_at_its_ends(self):
    s, t = logits(0), logits(1)
    for skewed, plain in (
      (losses.skew_kl, losses.kl),
      (losses.skew_reverse_kl, losses.reverse_kl),
    ):
      skewed = jax.jit(skewed)
      want = jax.jit(plain)(s, t)
      np.testing.assert_allclose(skewed(s, t, skew=0.0), want, rtol=1e-6)
      np.testing.assert_allclose(skewed(s, t, skew=1.0)[0], 0, atol=1e-5)

  @parameterized.parameters(
    'jsd', 'skew_kl', 'skew_reverse_kl', 'total_variation'
  )
  def test_bounds_where_nothing_is_shared(self, name):
    # p and q on different classes, and a class that neither has.
    s, t = jnp.array([[0.0, -INF, -INF]]), jnp.array([[-INF, 0.0, -INF]])
    value, grads = jax.value_and_grad(lambda s: getattr(losses, name)(s, t)[0])(
      s
    )
    want = {'jsd': np.log(2), 'total_variation': 1.0}.get(name, -np.log(0.1))
    np.testing.assert_allclose(value, want, rtol=1e-6)
    self.assertTrue(np.isfinite(grads).all())

  @parameterized.parameters(
    ('kl', {}),
    ('jsd', {'beta': 0.2}),
    ('skew_kl', {}),
    ('total_variation', {}),
  )
  def test_powers_of_the_temperature_keep_the_gradient(self, name, how):
    s, t = logits(0), logits(1)
    loss = getattr(losses, name)
    grads = jax.jit(jax.grad(lambda s, T: loss(s, t, temperature=T, **how)[0]))
    sizes = [np.linalg.norm(grads(s, T)) for T in (50.0, 400.0)]
    np.testing.assert_allclose(sizes[1], sizes[0], rtol=0.2)

  def test_sums_of_parts_add_up(self):
    s, t, mask = logits(0), logits(1), jnp.asarray(MASK)
    whole = losses.kl(s, t, mask=mask)
    parts = [losses.kl(s[i], t[i], mask=mask[i]) for i in range(3)]
    for i in (0, 1):
      np.testing.assert_allclose(whole[i], sum(p[i] for p in parts), rtol=1e-6)

  def test_all_masked_is_zero_of_zero(self):
    total, count = losses.kl(logits(0), logits(1), mask=jnp.zeros((3, 5)))
    self.assertEqual((float(total), float(count)), (0.0, 0.0))


if __name__ == '__main__':
  absltest.main()
