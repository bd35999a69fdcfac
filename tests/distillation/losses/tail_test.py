"""Losses with a tail bucket against numpy, written from the equations in float64."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from positions_of_logits import log_softmax
from positions_of_logits import logits
from positions_of_logits import MASK
from scipy import special

from jaxopt_compress.distillation import losses

INF = np.inf
LOSSES = {
  'kl': jax.jit(losses.topk_kl),
  'reverse': jax.jit(losses.topk_reverse_kl),
  'jsd': jax.jit(losses.topk_jsd),
}


def buckets_oracle(x, ids):
  """k + 1 probabilities of logits x: those of the ids, and of all the rest."""
  p = np.exp(log_softmax(x))
  kept = np.take_along_axis(p, ids, -1)
  rest = p.copy()
  np.put_along_axis(rest, ids, 0.0, -1)
  return np.concatenate([kept, rest.sum(-1, keepdims=True)], -1)


def oracle(name, student, teacher, k):
  ids = np.argsort(-np.asarray(teacher, np.float64), -1)[..., :k]
  q, p = buckets_oracle(student, ids), buckets_oracle(teacher, ids)
  kl = lambda p, q: special.rel_entr(p, q).sum(-1)
  m = (p + q) / 2
  return {
    'kl': kl(p, q),
    'reverse': kl(q, p),
    'jsd': (kl(p, m) + kl(q, m)) / 2,
  }[name]


class TailTest(parameterized.TestCase):
  @parameterized.parameters(1, 3, 7)
  def test_compress(self, k):
    x = logits(0)
    ids, log_probs, log_tail = losses.tail.compress(x, k)
    want = np.argsort(-np.asarray(x), -1)[..., :k]
    np.testing.assert_array_equal(ids, want)
    p = buckets_oracle(x, want)
    np.testing.assert_allclose(np.exp(log_probs), p[..., :-1], rtol=1e-5)
    np.testing.assert_allclose(np.exp(log_tail), p[..., -1], rtol=1e-5)
    self.assertEqual((ids.dtype, log_tail.shape), (jnp.int32, (3, 5)))
    self.assertEqual(bool((log_tail == -INF).all()), k == 7)

  @parameterized.parameters(
    (1, None, 'float32'), (3, MASK, 'float32'), (7, MASK > 0, 'bfloat16')
  )
  def test_losses(self, k, mask, dtype):
    s, t = logits(0, dtype=dtype), logits(1)
    w = np.ones((3, 5)) if mask is None else np.asarray(mask, np.float64)
    mask = None if mask is None else jnp.asarray(mask)
    kept = losses.tail.compress(t, k)
    for name, loss in LOSSES.items():
      total, count = loss(s, *kept, mask=mask)
      self.assertEqual((total.dtype, count.dtype), (jnp.float32, jnp.float32))
      want = (w * oracle(name, s, t, k)).sum()
      np.testing.assert_allclose(total, want, rtol=1e-5)
      self.assertEqual(float(count), w.sum())

  def test_what_a_bucket_is_serves_any_loss(self):
    s, t = logits(0), logits(1)
    got = losses.total_variation(
      *losses.tail.buckets(s, *losses.tail.compress(t, 3))
    )
    ids = np.argsort(-np.asarray(t), -1)[..., :3]
    apart = np.abs(buckets_oracle(s, ids) - buckets_oracle(t, ids))
    np.testing.assert_allclose(got[0], apart.sum() / 2, rtol=1e-5)

  def test_gradient(self):
    # d KL / d s_j = q_j - p_j of the k; of the tail, its mass p_t is spread as q.
    s, t = logits(0, (4, 7)), logits(1, (4, 7))
    kept = losses.tail.compress(t, 3)
    grads = jax.jit(jax.grad(lambda s: losses.topk_kl(s, *kept)[0]))(s)
    q, p = np.exp(log_softmax(s)), np.exp(log_softmax(t))
    ids = np.asarray(kept[0])
    inside = np.zeros(q.shape, bool)
    np.put_along_axis(inside, ids, True, -1)
    mass = lambda x: np.where(inside, 0, x).sum(-1, keepdims=True)
    want = q - np.where(inside, p, mass(p) * q / mass(q))
    np.testing.assert_allclose(grads, want, atol=1e-6)

  def test_all_classes_are_the_dense_loss(self):
    s, t = logits(0), logits(1)
    got = LOSSES['kl'](s, *losses.tail.compress(t, 7))
    np.testing.assert_allclose(got[0], losses.kl(s, t)[0], rtol=1e-5)

  def test_the_mass_of_the_tail_is_learned(self):
    # A Zipf teacher, one distribution fitted: renormalised over the k, a loss leaves
    # the tail where the student has it; with a tail of 0 it takes all of it away.
    t = -jnp.log(jnp.arange(1.0, 65))[None]
    ids, log_probs, log_tail = losses.tail.compress(t, 4)
    mass = float(jnp.exp(log_probs).sum())
    start = jnp.zeros_like(t).at[:, 50].set(6.0)
    none = jnp.full_like(log_tail, -INF)

    def renormalised(s):
      return losses.kl(jnp.take_along_axis(s, ids, -1), log_probs)[0]

    def fitted(loss):
      step = jax.jit(lambda s: s - 2.0 * jax.grad(loss)(s))
      s = start
      for _ in range(300):
        s = step(s)
      return float(np.exp(log_softmax(s))[:, :4].sum())

    bucket = fitted(lambda s: losses.topk_kl(s, ids, log_probs, log_tail)[0])
    self.assertAlmostEqual(bucket, mass, 3)
    self.assertLess(fitted(renormalised), 0.1)
    zero = fitted(lambda s: losses.topk_kl(s, ids, log_probs, none)[0])
    self.assertGreater(zero, 0.98)
    self.assertLess(mass, 0.5)

  @parameterized.named_parameters(
    ('a tail of nearly nothing', [90.0, 0.0, 0.0, 0.0], None),
    ('no tail on either side', [1.0, 0.0, -INF, -INF], [2.0, 0.0, -INF, -INF]),
    ('a class that cannot occur', [1.0, 0.0, -INF, 3.0], [1.0, 2.0, -INF, 0.0]),
    ('huge', [3e38, 0.0, -3e38, 0.0], [1.0, 2.0, 3.0, 0.0]),
  )
  def test_extreme_logits(self, student, teacher):
    s = jnp.array([student])
    t = jnp.array([[0.0, 1.0, 0.5, 0.0]] if teacher is None else [teacher])
    kept = losses.tail.compress(t, 2)
    f = lambda s: losses.topk_kl(s, *kept)[0]
    value, grads = jax.jit(jax.value_and_grad(f))(s)
    want = oracle('kl', s, t, 2).sum()
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-6)
    self.assertTrue(np.isfinite(grads).all())

  def test_what_is_masked_or_no_entry_has_no_part(self):
    s, t = logits(0, (2, 7)), logits(1, (2, 7))
    ids, log_probs, log_tail = losses.tail.compress(t, 3)
    want = LOSSES['kl'](s[:1], ids[:1], log_probs[:1], log_tail[:1])
    mask = jnp.array([1, 0])
    # Beyond the mask all is NaN, and ids are no classes.
    args = (
      s.at[1].set(jnp.nan),
      jnp.concatenate([ids, jnp.array([[-1], [99]])], 1).at[1].set(-7),
      jnp.pad(log_probs, ((0, 0), (0, 1)), constant_values=-INF)
      .at[1]
      .set(jnp.nan),
      log_tail.at[1].set(jnp.nan),
    )
    f = lambda s, *kept: losses.topk_kl(s, *kept, mask=mask)[0]
    value, grads = jax.jit(jax.value_and_grad(f))(*args)
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    self.assertTrue(np.isfinite(grads).all())

  def test_rounded_and_unsigned_caches(self):
    s, t = logits(0), logits(1)
    ids, log_probs, log_tail = losses.tail.compress(t, 3)
    want = LOSSES['kl'](s, ids, log_probs, log_tail)[0]
    got = LOSSES['kl'](
      np.asarray(s),
      np.asarray(ids, np.uint16),
      np.asarray(log_probs, np.float16),
      np.asarray(log_tail, np.float16),
    )[0]
    np.testing.assert_allclose(got, want, rtol=2e-3)
    # Scaled to a sum of 1, the teacher may be known up to a factor.
    got = LOSSES['kl'](s, ids, log_probs - 5, log_tail - 5)[0]
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_an_id_outside_the_vocabulary_is_seen(self):
    kept = losses.tail.compress(logits(1, (2, 9)), 9)
    self.assertTrue(np.isnan(LOSSES['kl'](logits(0, (2, 7)), *kept)[0]))

  def test_what_does_not_fit_is_refused(self):
    s = logits(0)
    ids, log_probs, log_tail = losses.tail.compress(s, 2)
    with self.assertRaisesRegex(ValueError, r'k=8.*\[1, 7\]'):
      losses.tail.compress(s, 8)
    with self.assertRaisesRegex(ValueError, r'log_tail \(5,\) does not fit'):
      losses.topk_kl(s, ids, log_probs, log_tail[0])
    with self.assertRaisesRegex(ValueError, 'ids are float32'):
      losses.topk_kl(s, log_probs, log_probs, log_tail)
    with self.assertRaisesRegex(ValueError, 'The mask has shape'):
      losses.topk_kl(s, ids, log_probs, log_tail, mask=jnp.ones(5))


if __name__ == '__main__':
  absltest.main()
