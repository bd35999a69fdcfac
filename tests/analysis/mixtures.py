"""Mixtures of experts, as they are written elsewhere: `{name: layer(p, x)}`.

Parameters: router [d, experts], up [experts, d, f], down [experts, f, d]; x [tokens, d].
"""

import jax
from jax import lax
import jax.numpy as jnp


def _chosen(p, x, k):
  """Gates [tokens, k] that sum to one, and numbers of experts."""
  gates, which = lax.top_k(jax.nn.softmax(x @ p['router']), k)
  return gates / gates.sum(-1, keepdims=True), which


def every(p, x):
  """All experts for all tokens."""
  gates, which = _chosen(p, x, 2)
  chosen = jax.nn.one_hot(which, p['router'].shape[-1])
  weights = jnp.einsum('tk,tke->te', gates, chosen)
  h = jax.nn.relu(jnp.einsum('td,edf->tef', x, p['up']))
  return jnp.einsum('tef,efd,te->td', h, p['down'], weights)


def switch(p, x):
  """One expert for a token, and a place for so many tokens in each expert."""
  n, places = p['router'].shape[-1], x.shape[0]
  chances = jax.nn.softmax(x @ p['router'])
  which = jax.nn.one_hot(jnp.argmax(chances, -1), n)
  place = (jnp.cumsum(which, 0) - 1) * which
  place = jax.nn.one_hot(place.sum(-1).astype(int), places)
  dispatch = jnp.einsum('te,tc->tec', which, place)
  inputs = jnp.einsum('tec,td->ecd', dispatch, x)
  h = jax.nn.relu(jnp.einsum('ecd,edf->ecf', inputs, p['up']))
  y = jnp.einsum('ecf,efd->ecd', h, p['down'])
  gates = (chances * which).sum(-1)
  return jnp.einsum('ecd,tec,t->td', y, dispatch, gates)


def ragged(p, x):
  """Rows sorted by expert."""
  n, k = p['router'].shape[-1], 2
  gates, which = _chosen(p, x, k)
  order = jnp.argsort(which.ravel())
  rows = x[order // k]
  sizes = jnp.bincount(which.ravel(), length=n)
  h = jax.nn.relu(lax.ragged_dot(rows, p['up'], sizes))
  y = lax.ragged_dot(h, p['down'], sizes) * gates.ravel()[order][:, None]
  return jnp.zeros_like(x).at[order // k].add(y)


MIXTURES = {'every': every, 'switch': switch, 'ragged': ragged}
TAKES = {'every': 2, 'switch': 1, 'ragged': 2}


def drawn(n=4, layers=()):
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = {'router': (6, n), 'up': (n, 6, 5), 'down': (n, 5, 6)}
  return {
    name: jax.random.normal(key, (*layers, *shape))
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


X = jax.random.normal(jax.random.key(1), (7, 6))
