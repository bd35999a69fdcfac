"""What is left of a program is what it was."""

from absl.testing import absltest
import jax
from jax import lax
import jax.numpy as jnp
import made_weights
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis import walk

X = made_weights.X


def primitives(fun, *args):
  return [at.path for at in walk.places(jax.make_jaxpr(fun)(*args))]


class RestTest(absltest.TestCase):
  def test_of_a_program_without_such_values_nothing_changes(self):
    def apply(p, x):
      def turn(h, w):
        return jax.checkpoint(jax.nn.relu)(h @ w['w'].T + w['b']), h.sum()

      h, sums = lax.scan(turn, x, p)
      return {'h': jnp.where(h > 1, h, -h), 'sums': sums}

    params = {'w': jnp.ones((3, 4, 4)), 'b': jnp.ones((3, 1, 4))}
    on_weights, weights = jc.hoist(apply)(params, X)
    self.assertIs(weights['w'], params['w'])
    before, after = (
      str(jax.make_jaxpr(f)(params, X)) for f in (apply, on_weights)
    )
    self.assertEqual(before, after)

  def test_the_turn_of_a_loop_computes_no_weight(self):
    fun, params, _ = made_weights.PROGRAMS['rematted']
    on_weights, weights = jc.hoist(fun)(params, X)
    self.assertIn('sqrt', primitives(fun, params, X))
    self.assertEqual(
      primitives(on_weights, weights, X), ['dot_general', 'tanh', 'mul']
    )
    # It still recomputes in its backward pass what it recomputed.
    text = str(jax.make_jaxpr(on_weights)(weights, X))
    self.assertIn('remat', text)
    self.assertIn('reverse=True', text)

  def test_gradients_of_weights_are_those_of_the_program(self):
    fun, params, _ = made_weights.PROGRAMS['scanned']
    on_weights, weights = jc.hoist(fun)(params, X)

    def through_weights(p):
      return on_weights(jc.hoist(fun)(p, X)[1], X).sum()

    expected = jax.jit(jax.grad(lambda p: fun(p, X).sum()))(params)
    got = jax.jit(jax.grad(through_weights))(params)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      got,
      expected,
    )

  def test_what_a_call_gets_and_does_not_read(self):
    """One layer's gains go into a call that ignores them."""
    first = jax.jit(lambda w, h: h.sum(), keep_unused=True)

    def apply(p, x):
      def turn(h, q):
        return jnp.tanh(h @ (q['g'] * q['v'])), first(q['v'], h) + q['g'].sum()

      h, sums = lax.scan(turn, x, p)
      # Here it is read as it is.
      return lax.scan(lambda h, q: (h * q['v'], None), h, p)[0], sums

    params = {'g': jnp.ones((3, 4, 4)), 'v': jnp.ones((3, 1, 4)) / 4}
    on_weights, weights = jc.hoist(apply)(params, X)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
      on_weights(weights, X),
      apply(params, X),
    )

  def test_vmap_over_batches_and_over_weights(self):
    fun, params, _ = made_weights.PROGRAMS['cell']
    on_weights, weights = jc.hoist(fun)(params, X)
    both = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), weights)
    got, _ = jax.vmap(on_weights, (0, None))(both, X)
    for i, scale in enumerate((1, 2)):
      scaled = jax.tree.map(lambda w, by=scale: by * w, params)
      np.testing.assert_allclose(got[i], fun(scaled, X)[0], rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
