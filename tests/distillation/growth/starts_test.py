"""What new channels start from."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

KEY = jax.random.key(0)


def fun(p, x):
  def layer(x, p):
    return x + jnp.tanh(x @ p['up'] + p['bias']) @ p['down'], None

  return jax.lax.scan(layer, x, p)[0]


def drawn():
  shapes = {'up': (3, 2, 4), 'bias': (3, 1, 4), 'down': (3, 4, 2)}
  keys = dict(zip(shapes, jax.random.split(KEY, 3)))
  return {n: jax.random.normal(keys[n], s) for n, s in shapes.items()}


PARAMS = drawn()
PLAN = jc.widen(jc.structure(fun)(PARAMS, jnp.ones((5, 2))), factor=2)
UP, DOWN = PARAMS['up'], PARAMS['down']


class StartsTest(parameterized.TestCase):
  def test_net2net_shares_sum_to_one(self):
    got = jc.grow(PLAN, PARAMS, 'net2net', key=KEY)
    np.testing.assert_array_equal(got['up'], np.tile(UP, 2))
    both = got['down'][:, :4], got['down'][:, 4:]
    np.testing.assert_allclose(both[0] + both[1], DOWN, rtol=1e-5)
    self.assertGreater(float(jnp.abs(both[0] - both[1]).min()), 1e-6)

  def test_fpi_divides(self):
    got = jc.grow(PLAN, PARAMS, 'fpi')
    np.testing.assert_allclose(got['down'], np.tile(DOWN, (1, 2, 1)) / 2)

  def test_aki_takes_new_outputs_from_above(self):
    # Equations 9 to 11: columns that are new are those of the next layer, of which
    # the last has none; rows are divided as in FPI.
    got = jc.grow(PLAN, PARAMS, 'aki')
    np.testing.assert_array_equal(got['up'][..., :4], UP)
    np.testing.assert_array_equal(got['up'][..., 4:], UP[jnp.array([1, 2, 2])])
    np.testing.assert_allclose(got['down'], np.tile(DOWN, (1, 2, 1)) / 2)
    np.testing.assert_array_equal(got['bias'], np.tile(PARAMS['bias'], 2))

  def test_zero_has_random_inputs_and_zero_outputs(self):
    got = jc.grow(PLAN, PARAMS, 'zero', key=KEY)
    np.testing.assert_array_equal(got['down'][:, :4], DOWN)
    self.assertFalse(got['down'][:, 4:].any())
    new = got['up'][..., 4:]
    self.assertLess(abs(float(new.std() / UP.std()) - 1), 0.5)
    self.assertGreater(float(jnp.abs(new - UP).min()), 1e-4)

  @parameterized.parameters(
    lambda w: w / jnp.linalg.norm(w, axis=0, keepdims=True),
    lambda w: w / jnp.abs(w).max(0, keepdims=True),
    lambda w: w * jax.lax.rsqrt(jnp.einsum('io,io->o', w, w)[None]),
    lambda w: jax.nn.softmax(w, 0),
  )
  def test_zero_leaves_copies_where_a_weight_is_normalised(self, unit):
    def cosine(p, x):
      h = jnp.tanh(x @ p['a']) @ p['e']
      h = h / jnp.linalg.norm(h, axis=-1, keepdims=True)
      return p['s'] * (h @ unit(p['w']))

    shapes = {'a': (3, 4), 'e': (4, 6), 'w': (6, 2), 's': (1, 1)}
    p = {n: jax.random.normal(KEY, s) for n, s in shapes.items()}
    x = jnp.ones((1, 3))
    plan = jc.widen(jc.structure(cosine)(p, x), factor=2)
    with self.assertWarnsRegex(UserWarning, 'in e:-1'):
      got = jc.grow(plan, p, 'zero', key=KEY)
    np.testing.assert_allclose(cosine(got, x), cosine(p, x), rtol=1e-5)
    self.assertFalse(got['e'][4:].any())  # the hidden units start from zero

  def test_zero_leaves_copies_under_a_mean_of_squares_less_that_of_the_mean(
    self,
  ):
    def fun(p, x):
      h = jnp.tanh(x @ p['a'])
      mean = h.mean(-1, keepdims=True)
      var = (h * h).mean(-1, keepdims=True) - mean**2
      y = (h - mean) * jax.lax.rsqrt(var + 1e-6) @ p['c']
      h = jnp.tanh(x @ p['b'])
      return y + h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True)) @ p['d']

    shapes = {'a': (3, 4), 'c': (4, 2), 'b': (3, 6), 'd': (6, 2)}
    p = {n: jax.random.normal(KEY, s) for n, s in shapes.items()}
    x = jax.random.normal(KEY, (5, 3))
    plan = jc.widen(jc.structure(fun)(p, x), factor=2)
    with self.assertWarnsRegex(UserWarning, r'in a:-1 \(sub at .*number'):
      got = jc.grow(plan, p, 'zero', key=KEY)
    np.testing.assert_allclose(fun(got, x), fun(p, x), rtol=1e-4, atol=1e-5)
    # The other stream starts from zero.
    self.assertFalse(got['b'][:, 6:].any())
    np.testing.assert_array_equal(got['a'], np.tile(p['a'], 2))

  def test_zero_of_a_moment_is_zero(self):
    got = jc.grow(PLAN, {'mu': PARAMS, 'nu': PARAMS}, 'zero', key=KEY)
    self.assertFalse(got['mu']['up'][..., 4:].any())
    np.testing.assert_array_equal(got['mu']['up'][..., :4], UP)
    np.testing.assert_array_equal(got['nu']['up'], np.tile(UP, 2))

  def test_a_start_of_ones_own(self):
    own = lambda leaf, key: leaf.shared(
      jnp.where(leaf.made, 0, leaf.copies), key
    )
    got = jc.grow(PLAN, PARAMS, own)
    self.assertFalse(got['up'][..., 4:].any())
    np.testing.assert_array_equal(got['up'][..., :4], UP)


if __name__ == '__main__':
  absltest.main()
