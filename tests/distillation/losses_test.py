"""Losses against numpy, written from the equations in float64."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxopt_compress.distillation import losses

INF = np.inf


def log_softmax(x):
  return special.log_softmax(np.asarray(x, np.float64), axis=-1)


def kl_oracle(student, teacher, temperature=1.0):
  log_q = log_softmax(np.asarray(student, np.float64) / temperature)
  log_p = log_softmax(np.asarray(teacher, np.float64) / temperature)
  return temperature**2 * special.rel_entr(np.exp(log_p), np.exp(log_q)).sum(-1)


def logits(seed, shape=(3, 5, 7), dtype=jnp.float32):
  return (3 * jax.random.normal(jax.random.key(seed), shape)).astype(dtype)


MASK = np.array(
  [[1, 0, 1, 0.5, 1], [0, 0, 0, 0, 0], [2, 1, 0, 1, 1]], np.float32
)


class LossesTest(parameterized.TestCase):
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

  def test_temperature_squared_keeps_the_gradient(self):
    # For large T the gradient is (s - t) / classes, of centred logits.
    s, t = logits(0), logits(1)
    centred = lambda x: np.asarray(x) - np.asarray(x).mean(-1, keepdims=True)
    grads = jax.grad(lambda s: losses.kl(s, t, temperature=1e3)[0])(s)
    np.testing.assert_allclose(grads, (centred(s) - centred(t)) / 7, atol=5e-3)

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

  def test_mse(self):
    s, t = logits(0), logits(1)
    got, count = losses.mse(s, t, mask=jnp.asarray(MASK))
    want = MASK * ((np.asarray(s) - np.asarray(t)) ** 2).mean(-1)
    np.testing.assert_allclose(got, want.sum(), rtol=1e-5)
    self.assertEqual(float(count), MASK.sum())

  @parameterized.parameters(
    # student, teacher, weight, expected
    ([[1, 2], [3, 0]], [[0, 9], [0, 9]], None, (1, 2)),
    ([[1, 2], [3, 0]], [[0, 9], [0, 9]], [1, 0], (1, 1)),
    ([[1, np.nan], [0, 3]], [[0, 9], [0, 9]], None, (1, 2)),
    ([[-INF, 2], [0, 3]], [[-INF, 9], [INF, 9]], None, (1, 2)),
  )
  def test_agreement(self, student, teacher, mask, expected):
    s, t = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
    mask = None if mask is None else jnp.asarray(mask)
    got = losses.agreement(s, t, mask=mask)
    self.assertEqual(tuple(float(x) for x in got), expected)

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

  def test_mse_of_impossible_entries(self):
    s, t = jnp.array([[1.0, -INF]]), jnp.array([[3.0, -INF]])
    value, grads = jax.value_and_grad(lambda s: losses.mse(s, t)[0])(s)
    self.assertEqual(float(value), 2.0)
    self.assertEqual(grads.tolist(), [[-2.0, 0.0]])

  @parameterized.parameters('kl', 'reverse_kl', 'mse', 'distill', 'ce')
  def test_what_is_masked_has_no_part(self, name):
    labels = jnp.zeros((3, 5), jnp.int32).at[1].set(-100)
    mask = jnp.asarray(MASK)
    f = {
      'kl': lambda s, t: losses.kl(s, t, mask=mask),
      'reverse_kl': lambda s, t: losses.reverse_kl(s, t, mask=mask),
      'mse': lambda s, t: losses.mse(s, t, mask=mask),
      'ce': lambda s, t: losses.cross_entropy(s, labels, mask),
      'distill': lambda s, t: losses.distill(
        s, t, labels, alpha=0.5, temperature=2.0, mask=mask
      ),
    }[name]
    s, t = logits(0), logits(1)
    bad = jnp.where((mask == 0)[..., None], jnp.nan, s)
    (want, _), grads = (
      f(s, t),
      jax.grad(lambda s: f(s, jnp.where((mask == 0)[..., None], INF, t))[0])(
        bad
      ),
    )
    np.testing.assert_allclose(f(bad, t)[0], want, rtol=1e-6)
    self.assertTrue(np.isfinite(grads).all())
    np.testing.assert_array_equal(np.where(MASK[..., None] == 0, grads, 0), 0)

  def test_sums_of_parts_add_up(self):
    s, t, mask = logits(0), logits(1), jnp.asarray(MASK)
    whole = losses.kl(s, t, mask=mask)
    parts = [losses.kl(s[i], t[i], mask=mask[i]) for i in range(3)]
    for i in (0, 1):
      np.testing.assert_allclose(whole[i], sum(p[i] for p in parts), rtol=1e-6)

  def test_all_masked_is_zero_of_zero(self):
    total, count = losses.kl(logits(0), logits(1), mask=jnp.zeros((3, 5)))
    self.assertEqual((float(total), float(count)), (0.0, 0.0))

  @parameterized.parameters(-1, 7, -100)
  def test_a_label_that_is_no_class_shows(self, label):
    labels = jnp.zeros((3, 5), jnp.int32).at[0, 0].set(label)
    self.assertTrue(np.isnan(losses.cross_entropy(logits(0), labels)[0]))

  def test_bfloat16_is_summed_in_float32(self):
    s = jnp.zeros((1000, 4), jnp.bfloat16)
    total, count = losses.cross_entropy(s, jnp.zeros(1000, jnp.int32))
    np.testing.assert_allclose(total, 1000 * np.log(4), rtol=1e-6)
    self.assertEqual(float(count), 1000)

  def test_errors(self):
    s, t = jnp.zeros((2, 5)), jnp.zeros((2, 6))
    labels = jnp.zeros(2, jnp.int32)
    mix = lambda **kw: losses.distill(
      s, s, labels, **{'alpha': 0.5, 'temperature': 1.0, **kw}
    )
    for f, message in (
      (lambda: losses.kl(s, t), r'\(2, 5\).*\(2, 6\).*vocabularies'),
      (lambda: losses.kl(s, jnp.zeros((3, 5))), 'the same examples'),
      (lambda: losses.mse(s, t), 'vocabularies'),
      (lambda: losses.agreement(s, t), 'vocabularies'),
      (lambda: losses.kl(s, s, temperature=0.0), 'temperature=0.0; T > 0'),
      (lambda: losses.kl(s, s, temperature=jnp.float32(-1)), 'T > 0'),
      (lambda: losses.reverse_kl(s, s, temperature=-2), 'T > 0'),
      (lambda: mix(alpha=1.5), 'alpha=1.5'),
      (lambda: mix(temperature=0), 'T > 0'),
      (lambda: losses.kl(s, s, mask=jnp.ones((2, 1))), r'mask has.*\(2,\) is'),
      (lambda: losses.cross_entropy(s, labels[:1]), r'Labels have.*\(2,\) is'),
      (lambda: losses.cross_entropy(s, s), 'class numbers'),
      (
        lambda: losses.cross_entropy(s, labels, label_smoothing=1.0),
        'label_smoothing=1.0',
      ),
      (lambda: losses.kl(jnp.zeros((0, 5)), jnp.zeros((0, 5))), 'nothing'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        f()


if __name__ == '__main__':
  absltest.main()
