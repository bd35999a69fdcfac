"""What is known of attention that is found; `claim_test` has the table of programs."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

from jaxopt_compress.kernels import flow
from jaxopt_compress.kernels.attends import match
from tests.kernels.attends import programs


class MatchTest(absltest.TestCase):
  def test_what_is_read_and_made(self):
    def f(q, k, v):
      scores = jnp.einsum('bqhd,bkhd->bhqk', q * 0.5, k / 4)
      y = jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(scores), v)
      return y.reshape(*y.shape[:2], -1)

    args = programs.Q, programs.K, programs.V
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    (found,) = match.find(flow.Flow(jaxpr))
    self.assertEqual(found.sources, jaxpr.invars)
    self.assertIs(found.out.v, jaxpr.outvars[0])
    self.assertEqual(found.scores.scale, 0.125)

  def test_one_after_the_other(self):
    def f(x):
      for _ in range(3):
        x = jax.nn.dot_product_attention(x, x, x)
      return x

    jaxpr = jax.make_jaxpr(f)(programs.Q).jaxpr
    found = match.find(flow.Flow(jaxpr))
    self.assertLen(found, 3)
    for first, second in zip(found, found[1:], strict=False):
      self.assertIs(first.out.v, second.query.seen.v)


if __name__ == '__main__':
  absltest.main()
