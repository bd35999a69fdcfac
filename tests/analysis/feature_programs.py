"""One network in many programs, and the values in it by their names."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

_RNG = np.random.default_rng(0)


def rand(*shape):
  return jnp.asarray(_RNG.normal(size=shape).astype(np.float32))


PARAMS = {
  'a': {'w': rand(4, 6), 'b': rand(1, 6)},
  'c': {'w': rand(6, 4)},
}
X = rand(8, 4)


def block(p, x):
  """x + tanh(x w + b) w'."""
  return x + jnp.tanh(x @ p['a']['w'] + p['a']['b']) @ p['c']['w']


def values(p, x):
  """What is made on the way, by the names that it should have."""
  y = x @ p['a']['w']
  biased = y + p['a']['b']
  product = jnp.tanh(biased) @ p['c']['w']
  return {
    'a/dot_general': y,
    'a/w': biased,
    'a/b': biased,
    'a/tanh': jnp.tanh(biased),
    'c/w': product,
    'c/add': x + product,
  }


def jit(p, x):
  return jax.jit(block)(p, x) * 1


def remat(p, x):
  return jax.checkpoint(block)(p, x)


def jit_in_remat(p, x):
  return jax.checkpoint(jax.jit(block))(p, x)


def given_back(p, x):
  f = jax.custom_vjp(block)
  f.defvjp(lambda p, x: (block(p, x), (p, x)), lambda r, g: r)
  return f(p, x)


def cond(p, x):
  return lax.cond(x[0, 0] < 100, lambda: block(p, x), lambda: x)


def while_(p, x):
  turn = lambda c: (c[0] + 1, block(p, c[1]))
  return lax.while_loop(lambda c: c[0] < 1, turn, (0, x))[1]


STACKED = jax.tree.map(lambda w: jnp.stack([w, -w, 2 * w]), PARAMS)


def layers(p, x):
  """What `block` gives, layer by layer, and the values in it."""
  found = []
  for i in range(3):
    layer = jax.tree.map(lambda w, i=i: w[i], p)
    found.append(values(layer, x))
    x = block(layer, x)
  return x, jax.tree.map(lambda *v: jnp.stack(v), *found)


def scan(p, x):
  return lax.scan(lambda h, q: (block(q, h), None), x, p)[0]


def scan_remat(p, x):
  body = jax.checkpoint(lambda h, q: (block(q, h), h))
  return lax.scan(body, x, p)[0]
