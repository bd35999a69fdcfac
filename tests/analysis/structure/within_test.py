from absl.testing import absltest
from absl.testing import parameterized
from jax import lax
import jax.numpy as jnp

import jaxopt_compress as jc


def _scanned(p):
  def layer(x, p):
    return x + jnp.tanh(x @ p['a']) @ p['b'], None

  return lax.scan(layer, jnp.ones((1, 4)), p)[0].sum()


def _carried(p):
  # What a layer computes of its own channels meets those of the next.
  def layer(carry, p):
    x, h = carry
    h = jnp.tanh(x @ p['a'] + h)
    return (x + h @ p['b'], h), None

  start = jnp.ones((1, 4)), jnp.zeros((1, p['a'].shape[-1]))
  return lax.scan(layer, start, p)[0][0].sum()


def _together(p, f):
  return jnp.einsum('lij,ljk->lik', p['a'], f(p['b'])).sum()


# Of a [2, 4, 6] and b [2, 6, 4]: what the 6 lie within.
CASES = {
  'scanned': (_scanned, True),
  'carried': (_carried, False),
  'batch': (lambda p: _together(p, jnp.tanh), True),
  'reversed': (lambda p: _together(p, lambda b: b[::-1]), False),
  'sorted': (lambda p: _together(p, lambda b: jnp.sort(b, 0)), False),
  'cumulated': (lambda p: _together(p, lambda b: jnp.cumsum(b, 0)), False),
  'rolled': (lambda p: _together(p, lambda b: jnp.roll(b, 1, 0)), False),
  'summed': (
    lambda p: _together(p, lambda b: b + b.sum(0, keepdims=True)),
    False,
  ),
  'permuted': (
    lambda p: _together(p, lambda b: b[jnp.array([1, 0])]),
    False,
  ),
}


class WithinTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_within(self, name):
    fun, inside = CASES[name]
    p = {'a': jnp.ones((2, 4, 6)), 'b': jnp.ones((2, 6, 4))}
    found = jc.structure(fun)(p)
    (group,) = (g for g in found.groups.values() if g.size == 6)
    self.assertFalse(group.locked)
    self.assertEqual('a:-3' in group.within, inside)


if __name__ == '__main__':
  absltest.main()
