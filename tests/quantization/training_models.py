"""Small functions of two weights, and the clocks that train them."""

import functools

import jax
from jax import lax
import jax.numpy as jnp

import jaxopt_compress as jc

W4G4 = jc.Scheme(jc.schemes.Spec('int4', 'group', 4, scale='bfloat16'))


SCHEMES = {'W8A16': jc.W8A16, 'W8A8': jc.W8A8, 'W4G4': W4G4}


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def _mlp(p, x):
  return jnp.tanh(x @ p['a']) @ p['b']


def _cnn(p, x):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  x = lax.conv_general_dilated(
    x, p['a'], (1, 1), 'SAME', dimension_numbers=numbers
  )
  return jnp.tanh(x).mean((1, 2)) @ p['b']


def _attention(p, x):
  q, k, v = jnp.einsum('td,dchk->cthk', x, p['a'].reshape(8, 3, 2, 4))
  a = jax.nn.softmax(jnp.einsum('thk,shk->hts', q, k))
  return jnp.einsum('hts,shk,hkd->td', a, v, p['b'])


def _embedding(p, tokens):
  return jnp.tanh(p['a'][tokens] @ p['b']) @ p['a'].T


def _scanned(p, x):
  body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
  return lax.scan(body, x, p['a'])[0] @ p['b']


def model(name):
  """(apply, params, x)"""
  f, a, b, x = dict(
    mlp=(_mlp, (8, 16), (16, 4), normal(5, 8, seed=2)),
    cnn=(_cnn, (3, 3, 4, 8), (8, 4), normal(2, 5, 5, 4, seed=2)),
    attention=(_attention, (8, 24), (2, 4, 8), normal(5, 8, seed=2)),
    embedding=(_embedding, (12, 8), (8, 8), jnp.array([1, 5, 5])),
    scanned=(_scanned, (3, 8, 8), (8, 4), normal(5, 8, seed=2)),
  )[name]
  return f, {'a': normal(*a) / 3, 'b': normal(*b, seed=1) / 3}, x


@functools.cache
def setup(name, scheme):
  f, params, x = model(name)
  uses = jc.uses(f)(params, x)
  rules = [(r'.*', SCHEMES[scheme])]
  return f, params, x, jc.fake_quantize(rules, uses), rules, uses
