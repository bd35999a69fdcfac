"""Who takes what up where channels are repeated, worked out by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis.plan import shares


def rms(x):
  return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def layer_norm(x):
  x = x - x.mean(-1, keepdims=True)
  return rms(x)


# {name: (fun, shapes, what takes shares of the group that grows up, drawn unevenly)}.
CASES = {
  # What reads the hidden units.
  'dense': (
    lambda p, x: jnp.tanh(x @ p['a'] + p['b']) @ p['c'],
    {'a': (3, 4), 'b': (1, 4), 'c': (4, 2)},
    {('c', 0): 1.0},
    {('c', 0): 1.0},
  ),
  # A tied table is read and makes: the gain between takes it up. Drawn copies carry
  # the root through the norm, so both sides of the table have one half.
  'tied': (
    lambda p, x: (rms(x @ p['a']) * p['gain']) @ p['a'].T,
    {'a': (3, 4), 'gain': (1, 4)},
    {('gain', 1): 1.0},
    {('a', 1): 0.5},
  ),
  # Nothing between: each side takes the root up.
  'tied without a gain': (
    lambda p, x: x @ p['a'] @ p['a'].T,
    {'a': (3, 4)},
    {('a', 1): 0.5},
    {('a', 1): 0.5},
  ),
  # Of a product of two values, one of the weights that make them.
  'scores': (
    lambda p, x: jax.nn.softmax((x @ p['q']) @ (x @ p['k']).T),
    {'q': (3, 4), 'k': (3, 4)},
    {('k', 1): 1.0},
    {('k', 1): 1.0},
  ),
  'layer norm': (
    lambda p, x: layer_norm(x @ p['a']) @ p['c'],
    {'a': (3, 4), 'c': (4, 2)},
    {('c', 0): 1.0},
    None,
  ),
  'softmax': (
    lambda p, x: jax.nn.softmax(x @ p['a']) @ p['c'],
    {'a': (3, 4), 'c': (4, 2)},
    None,
    None,
  ),
}


def found(name, source):
  fun, shapes, *_ = CASES[name]
  params = {k: jnp.ones(s) for k, s in shapes.items()}
  structure = jc.structure(fun)(params, jnp.ones((5, 3)))
  (group,) = [n for n, g in structure.free.items() if g.size == 4]
  return shares.shares(structure, {group: np.array(source)})


class SharesTest(parameterized.TestCase):
  @parameterized.product(name=list(CASES), even=[True, False])
  def test_who_takes_up(self, name, even):
    source = [0, 1, 2, 3, 0, 1, 2, 3] if even else [0, 1, 2, 3, 3]
    got = found(name, source)
    want = CASES[name][2 if even else 3]
    if name == 'softmax':
      # Sums of exponentials count copies; what they divide does, too, so this is
      # right for even copies alone.
      want = {('c', 0): 1.0} if even else None
    self.assertEqual(bool(got.left), want is None, got)
    if want is not None:
      self.assertEqual({k[:2]: v for k, v in got.powers.items()}, want)

  def test_numbers_for_sizes(self):
    # scores / sqrt(4) and / sqrt(8): a parameter takes up the root of two.
    def fun(p, x):
      q, k = x @ p['q'], x @ p['k']
      return jax.nn.softmax(q @ k.T * q.shape[-1] ** -0.5)

    p = {'q': jnp.ones((3, 4)), 'k': jnp.ones((3, 4))}
    structure = jc.structure(fun)(p, jnp.ones((5, 3)))
    got = shares.shares(structure, {'k:-1': np.arange(8) % 4})
    self.assertEqual({*got.factors}, {'k'})
    np.testing.assert_allclose(got.factors['k'], 2**0.5, rtol=1e-6)
    self.assertEqual(got.assumed, ())

  @parameterized.parameters(
    # The mean square is over 8 channels, 4 of which are zero: `a` makes up for it.
    (lambda x: x, {'a': 2**0.5, 'c': 0.5**0.5}, False),
    # Nothing behind tanh can.
    (jnp.tanh, {'c': 0.5**0.5}, True),
  )
  def test_epsilon_of_a_norm(self, bounded, factors, near):
    fun = lambda p, x: rms(bounded(x @ p['a'])) @ p['c']
    p = {'a': jnp.ones((3, 4)), 'c': jnp.ones((4, 2))}
    structure = jc.structure(fun)(p, jnp.ones((5, 3)))
    source = {'a:-1': np.arange(8) % 4}
    got = shares.shares(structure, source, silent=frozenset(source))
    self.assertEqual(bool(got.near), near)
    self.assertEqual({*got.factors}, {*factors})
    for path, factor in factors.items():
      self.assertAlmostEqual(got.factors[path], factor, 5)

  def test_numbers_that_are_taken_to_fit(self):
    # The code has the size four: it does not run with eight.
    def fun(p, x):
      q, k = ((x @ p[n]).reshape(5, 4) for n in 'qk')
      return jax.nn.softmax(q @ k.T * 0.5)

    p = {'q': jnp.ones((3, 4)), 'k': jnp.ones((3, 4))}
    structure = jc.structure(fun)(p, jnp.ones((5, 3)))
    got = shares.shares(structure, {'k:-1': np.arange(8) % 4})
    np.testing.assert_allclose(got.factors['k'], 2**0.5, rtol=1e-6)
    self.assertRegex(got.assumed[0], 'mul by 0.5, which fits')


if __name__ == '__main__':
  absltest.main()
