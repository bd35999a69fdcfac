"""Draws, counted."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import draws

P = [0.4, 0.3, 0.2, 0.1]


class DrawTest(parameterized.TestCase):
  @parameterized.parameters(
    # options, the distribution that is drawn from
    (dict(), P),
    (dict(temperature=0.5), [0.16, 0.09, 0.04, 0.01]),
    (dict(temperature=0), [1, 0, 0, 0]),
    (dict(top_k=2), [4, 3, 0, 0]),
    (dict(top_k=9), P),
    (dict(top_p=0.71), [4, 3, 2, 0]),
    (dict(top_p=0.69), [4, 3, 0, 0]),
    (dict(top_p=0.1), [1, 0, 0, 0]),
    (dict(top_p=1.0), P),
    (dict(top_k=3, top_p=0.5), [4, 3, 0, 0]),
  )
  def test_distribution(self, how, expected):
    n, order = 20_000, np.array([2, 0, 3, 1])
    logits = jnp.broadcast_to(jnp.log(jnp.array(P))[order] + 7, (n, 4))
    drawn = draws.draw(jax.random.key(0), logits, **how)
    got = np.bincount(drawn, minlength=4) / n
    want = np.array(expected)[order] / np.sum(expected)
    # Five standard errors; what is excluded is never drawn.
    np.testing.assert_allclose(got, want, atol=5 * 0.5 / n**0.5)
    self.assertFalse(got[want == 0].any())

  @parameterized.parameters(1.0, 0, 1e-30)
  def test_nan_is_no_class(self, temperature):
    logits = jnp.array([[0.0, jnp.nan], [-jnp.inf, 3e38]])
    got = draws.draw(jax.random.key(0), logits, temperature=temperature)
    self.assertEqual(got.tolist(), [-1, 1])

  @parameterized.parameters(
    (dict(temperature=-1), 'T >= 0'),
    (dict(top_k=0), 'top_k=0; an int'),
    (dict(top_k=2.0), 'top_k=2.0; an int'),
    (dict(top_p=0.0), 'a mass in'),
    (dict(top_p=1.5), 'a mass in'),
  )
  def test_errors(self, how, message):
    with self.assertRaisesRegex(ValueError, message):
      draws.draw(jax.random.key(0), jnp.zeros((1, 3)), **how)


if __name__ == '__main__':
  absltest.main()
