"""Which channels of a wider network are copies of which."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

PARAMS = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 6)), 'c': jnp.ones((6, 2))}


def fun(p, x):
  return jnp.tanh(jnp.tanh(x @ p['a']) @ p['b']) @ p['c']


STRUCTURE = jc.structure(fun)(PARAMS, jnp.ones((1, 3)))


class WidenTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(factor=2), {'a:-1': 8, 'b:-1': 12}),
    (dict(factor=1.5), {'a:-1': 6, 'b:-1': 9}),
    (dict(factor=1.5, multiple=4), {'a:-1': 8, 'b:-1': 12}),
    (dict(factor=2, sizes={'b:-1': 6}), {'a:-1': 8}),
    (dict(sizes={'b:-1': 7}), {'b:-1': 7}),
  )
  def test_sizes(self, kwargs, want):
    self.assertEqual(jc.widen(STRUCTURE, **kwargs).sizes, want)

  def test_balanced_is_in_turn(self):
    plan = jc.widen(STRUCTURE, sizes={'a:-1': 10})
    self.assertEqual(
      plan.sources['a:-1'].tolist(), [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    )

  def test_drawn_keeps_what_is_there(self):
    plans = [jc.widen(STRUCTURE, 8, key=jax.random.key(i)) for i in (0, 0, 1)]
    a, again, other = (p.sources['a:-1'] for p in plans)
    np.testing.assert_array_equal(a[:4], range(4))
    np.testing.assert_array_equal(a, again)
    self.assertTrue((a != other).any())
    self.assertEqual({*a}, {0, 1, 2, 3})

  def test_text_says_what_stays(self):
    text = str(jc.widen(STRUCTURE, sizes={'a:-1': 8}))
    self.assertIn('4 ->      8  a:-1', text)
    self.assertRegex(text, '3 .* a:-2 stays: the size of an input')
    self.assertRegex(text, '6 .* b:-1 stays: it is not asked for')

  @parameterized.parameters(
    (dict(), 'Nothing says how wide'),
    (dict(factor=0.5), 'jc.select'),
    (dict(sizes={'a:-1': 2}), 'no smaller'),
    (dict(sizes={'d:-1': 8}), 'choose one of'),
    (dict(sizes={'c:-1': 8}), 'size of a result'),
    (dict(factor=2, multiple=0), 'whole number'),
  )
  def test_mistakes(self, kwargs, said):
    with self.assertRaisesRegex(ValueError, said):
      jc.widen(STRUCTURE, **kwargs)

  @parameterized.parameters(True, False)
  def test_an_axis_grows_once(self, separate):
    # Heads grow, and features of heads stay, on one axis or on two.
    def attend(p, x):
      q, k, v = (x @ p[n].reshape(4, -1) for n in 'qkv')
      q, k, v = (y.reshape(5, -1, 3) for y in (q, k, v))
      scores = jnp.einsum('qhf,khf->hqk', q, k)
      y = jnp.einsum('hqk,khf->qhf', jax.nn.softmax(scores), v)
      return y.reshape(5, -1) @ p['o'].reshape(-1, 4)

    shape, out = ((4, 2, 3), (2, 3, 4)) if separate else ((4, 6), (6, 4))
    p = {n: jnp.ones(shape) for n in 'qkv'} | {'o': jnp.ones(out)}
    structure = jc.structure(attend)(p, jnp.ones((5, 4)))
    plan = jc.widen(structure, factor=2)
    self.assertEqual([*plan.sizes.values()], [4])
    self.assertRegex(str(plan), '3 .* stays: it lies within')

  def test_layers_and_experts_stay(self):
    def mixture(p, x):
      weights = jax.nn.softmax(x @ p['router'])
      top, which = jax.lax.top_k(weights, 1)
      chosen = top * jax.nn.one_hot(which[..., 0], weights.shape[-1])
      y = jnp.einsum('bd,edm->bem', x, p['up'])
      return jnp.einsum('bem,emd,be->bd', jnp.tanh(y), p['down'], chosen)

    p = {
      'router': jnp.ones((3, 4)),
      'up': jnp.ones((4, 3, 5)),
      'down': jnp.ones((4, 5, 3)),
    }
    plan = jc.widen(jc.structure(mixture)(p, jnp.ones((2, 3))), factor=2)
    self.assertEqual([*plan.sizes.values()], [10])


if __name__ == '__main__':
  absltest.main()
