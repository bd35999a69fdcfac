"""What all losses on logits share: errors, and what a mask hides."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from positions_of_logits import logits
from positions_of_logits import MASK

from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation.losses import softened

INF = np.inf


class SoftenedTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.3, 1.0)
  def test_mixtures(self, weight):
    log_p, log_q = (
      jnp.array([-INF, 0.0, -INF, -1e3]),
      jnp.array([-INF, -INF, -0.5, -1e3]),
    )
    f = lambda p, q: softened.log_mixture(p, q, weight)
    with np.errstate(divide='ignore'):
      want = np.logaddexp(log_p + np.log(weight), log_q + np.log1p(-weight))
    np.testing.assert_allclose(f(log_p, log_q), want, rtol=1e-6)
    _, pull = jax.vjp(f, log_p, log_q)
    for grads in pull(jnp.where(want > -INF, 1.0, 0.0)):
      self.assertTrue(np.isfinite(grads).all())

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
      (lambda: losses.jsd(s, s, beta=-0.1), 'beta=-0.1; a weight in'),
      (lambda: losses.skew_kl(s, s, skew=2), 'skew=2; a weight in'),
      (lambda: losses.dkd(s, t, labels), 'vocabularies'),
      (lambda: losses.dkd(s, s, labels[:1]), r'Labels have.*\(2,\) is'),
      (lambda: losses.dist(s, t), 'vocabularies'),
      (lambda: losses.cosine(s, t), 'vocabularies'),
      (lambda: losses.hard(s, t), 'vocabularies'),
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
