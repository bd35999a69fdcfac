"""Tests of `ends`: which products come first and last."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp

import jaxopt_compress as jc

X = jnp.ones((2, 4))
W = jnp.ones((4, 4))


def chain(p, x):
  return jnp.tanh(x @ p['a'] * p['scale']) @ p['b'] @ p['c']


def attention(p, x):
  q, k, v = (x @ p[name] for name in 'qkv')
  return jax.nn.softmax(q @ k.T) @ v @ p['o']


def two_heads(p, x):
  h = jnp.tanh(x @ p['a'])
  return h @ p['b'], h @ p['c'], h


def skipping(p, x):
  return jnp.concatenate([x, x @ p['a']], axis=1) @ jnp.tile(p['b'], (2, 1))


def normalised(p, x):
  a = p['a'] / jnp.linalg.norm(p['a']) * p['scale']
  return (x @ a) @ p['b']


def scanned(p, x):
  def layer(h, w):
    return jnp.tanh(h @ w['up']) @ w['down'], None

  return lax.scan(layer, x, {'up': p['up'], 'down': p['down']})[0] @ p['head']


def recurrent(p, x):
  step = jax.checkpoint(lambda h, x: (jnp.tanh(h @ p['h'] + x @ p['i']), None))
  return lax.scan(step, jnp.zeros(4), x)[0] @ p['o']


def branching(p, x):
  h = lax.cond(x.sum() > 0, lambda x: x @ p['a'], lambda x: x @ p['b'], x)
  return jax.jit(jnp.dot)(h, p['c'])


def shared(p, x):
  return (x @ p['a']) @ p['b'] @ p['a']


def residual(p, x):
  h = x @ p['a']
  return h + jnp.tanh(h @ p['b'])


class EndsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('chain', chain, 'a', 'c'),
    ('attention', attention, 'qkv', 'o'),
    ('two_heads', two_heads, 'a', 'bc'),
    ('the_input_again', skipping, 'a', 'b'),
    ('computed_weights', normalised, ['a', 'scale'], 'b'),
    ('scan', scanned, ['up'], ['head']),
    ('rnn', recurrent, 'hi', 'o'),
    ('cond', branching, 'ab', 'c'),
    ('shared', shared, 'a', 'a'),
    ('residual', residual, 'a', 'b'),
  )
  def test(self, f, first, last):
    stack = jnp.ones((3, 4, 4))
    params = {name: W for name in 'abchikoqv'} | {'up': stack, 'down': stack}
    params |= {'head': W, 'scale': jnp.ones((1, 1))}
    uses = jc.uses(f)(params, X)
    found = {
      end: [p for p, met in uses.items() if any(getattr(u, end) for u in met)]
      for end in ('first', 'last')
    }
    self.assertEqual(found, {'first': sorted(first), 'last': sorted(last)})


if __name__ == '__main__':
  absltest.main()
