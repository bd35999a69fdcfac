"""Attention as libraries and people write it, and programs that only look like it.

Each is (function, arguments); small, and of sizes that differ from each other.
"""

import dataclasses
from typing import Any

import equinox as eqx
from flax import linen
from flax import nnx
import haiku as hk
import jax
import jax.numpy as jnp

from jaxopt_compress.models import causal

B, T, S, H, D = 2, 5, 7, 4, 8


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


Q, K, V = normal(0, B, T, H, D), normal(1, B, S, H, D), normal(2, B, S, H, D)
FEW = K[:, :, :2], V[:, :, :2]  # two heads that four share
X, Y = normal(3, B, T, H * D), normal(4, B, S, H * D)
PADDED = normal(5, B, S) > 0


@dataclasses.dataclass(frozen=True)
class Program:
  """A program and what is to be found in it.

  Attributes:
    run: a function.
    args: its arguments.
    moved: which of query, key, value and result do not lie as the kernel has them.
    right, left: of the places that a causal mask or a window leaves; or None.
    masks: the shapes of the masks that are left.
    lengths: how many values say how many keys there are.
    why: in words, the kernel does not compute it; '' where it does.
    within: how far the kernel may be from the program.
  """

  run: Any
  args: tuple[Any, ...]
  moved: tuple[str, ...] = ()
  right: int | None = None
  left: int | None = None
  masks: tuple[tuple[int, ...], ...] = ()
  lengths: int = 0
  why: str = ''
  within: float = 2e-6


def _jax(**how):
  return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **how)


def _einsum(of_scores=lambda s: s, weights=jax.nn.softmax):
  def attend(q, k, v):
    scores = of_scores(jnp.einsum('bqhd,bkhd->bhqk', q, k))
    return jnp.einsum('bhqk,bkhd->bqhd', weights(scores), v)

  return attend


def _sentences(q, k, v, mask):
  """As sentence encoders have it: padding is no key, heads are merged."""
  scores = jnp.einsum('bqhd,bkhd->bhqk', q, k) * q.shape[-1] ** -0.5
  scores = jnp.where(mask[:, None, None, :], scores, -jnp.inf)
  y = jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(scores), v)
  return y.reshape(*y.shape[:-2], -1)


def _powers(x):
  return jnp.exp(x - x.max(-1, keepdims=True))


def _by_hand(x):
  return _powers(x) / _powers(x).sum(-1, keepdims=True)


def _inverse(x):
  e = _powers(x)
  return e * (1 / e.sum(-1, keepdims=True))


def _matmuls(q, k, v):
  """Head by head, divided at the end."""
  scores = q.swapaxes(1, 2) @ k.transpose(0, 2, 3, 1) / jnp.sqrt(8.0)
  e = _powers(scores)
  y = e @ v.swapaxes(1, 2) / e.sum(-1, keepdims=True)
  return y.swapaxes(1, 2).reshape(B, T, -1)


def _repeated(q, k, v):
  """Keys are repeated for the heads that share them."""
  k, v = (jnp.repeat(x, 2, 2) for x in (k, v))
  return _einsum()(q * D**-0.5, k / D**0.25, v)


def _shared(q, k, v):
  """One head of keys for all queries."""
  scores = jnp.einsum('bthd,bsd->bhts', q, k)
  return jnp.einsum('bhts,bsd->bthd', jax.nn.softmax(scores), v)


def _lower(scores):
  seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
  return jnp.where(seen, scores, jnp.finfo(scores.dtype).min)


def _window(scores):
  """The key of a place, and two before it."""
  t, s = (jnp.arange(n) for n in scores.shape[-2:])
  seen = (s[None] <= t[:, None]) & (s[None] > t[:, None] - 3)
  return jnp.where(seen, scores, -1e9)


def _unpadded(bias):
  """Padding as a bias, as Hugging Face has it."""
  return lambda s: s / 8**0.5 + jnp.where(bias, 0.0, jnp.finfo(s.dtype).min)


def _step(q, k, v, place):
  """A query at a place of a cache."""
  scores = jnp.einsum('bhd,bshd->bhs', q, k) / 8**0.5
  seen = jnp.arange(S)[None, None] <= place[:, None, None]
  scores = jnp.where(seen, scores, -1e30)
  return jnp.einsum('bhs,bshd->bhd', jax.nn.softmax(scores), v)


def _halves(q, k, v):
  """Scores in float32, products in bfloat16."""
  scores = jnp.einsum('bqhd,bkhd->bhqk', q, k).astype(jnp.float32)
  weights = jax.nn.softmax(scores).astype(q.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, v)


def _own(start):
  def attend(q, k, v):
    return causal.attend(q, k, v, start + jnp.arange(T))

  return attend


def _nnx(**how):
  module = nnx.MultiHeadAttention(H, H * D, rngs=nnx.Rngs(0), **how)
  if how.get('decode'):
    module.init_cache((B, S, H * D))
  graphdef, state = nnx.split(module)

  def apply(state, *args, **kwargs):
    module = nnx.merge(graphdef, state, copy=True)
    return module(*args, **kwargs), nnx.state(module, nnx.Cache)

  return apply, state


def _nnx_causal():
  apply, state = _nnx(decode=False)

  def masked(state, x):
    return apply(state, x, mask=nnx.make_causal_mask(x[..., 0]))

  return masked, (state, X)


def _linen():
  module = linen.MultiHeadDotProductAttention(H)
  params = module.init(jax.random.key(0), X, Y)

  def cross(params, x, y, padded):
    rows = jnp.ones(x.shape[:2], bool)
    mask = linen.make_attention_mask(rows, padded)
    return module.apply(params, x, y, mask=mask, deterministic=True)

  return cross, (params, X, Y, PADDED)


def _linen_step():
  module = linen.MultiHeadDotProductAttention(H, decode=True)
  variables = module.init(jax.random.key(0), Y)
  return (
    lambda v, x: module.apply(v, x, mutable=['cache']),
    (variables, X[:, :1]),
  )


def _haiku():
  init = hk.initializers.VarianceScaling()
  f = hk.transform(lambda x: hk.MultiHeadAttention(H, D, w_init=init)(x, x, x))
  params = f.init(jax.random.key(0), X)
  return lambda p, x: f.apply(p, None, x), (params, X)


def _equinox():
  module = eqx.nn.MultiheadAttention(H, H * D, key=jax.random.key(0))
  arrays, rest = eqx.partition(module, eqx.is_array)

  def apply(arrays, x):
    return jax.vmap(lambda x: eqx.combine(arrays, rest)(x, x, x))(x)

  return apply, (arrays, X)


def _dropped(weights):
  kept = jax.random.bernoulli(jax.random.key(0), 0.5, weights.shape)
  return jnp.where(kept, weights / 0.5, 0)


def _returned(q, k, v):
  weights = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k))
  return weights, jnp.einsum('bhqk,bkhd->bqhd', weights, v)


def _other_sum(x):
  # The sum of each query, divided along the keys.
  return _powers(x) / _powers(x).sum(-1)[..., None, :]


def _unshifted(x):
  return jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)


_ALL = ('query', 'key', 'value', 'out')
_SQUARE = Q, K[:, :T], V[:, :T]

PROGRAMS = {
  'jax': Program(_jax(), (Q, K, V)),
  'jax causal': Program(_jax(is_causal=True), (Q, K, V), right=0),
  # JAX has the numbers of places as constants, which a program does not tell.
  'jax window': Program(
    _jax(local_window_size=(2, 1)), (Q, K, V), masks=((T, S), (T, S))
  ),
  'jax mask': Program(
    _jax(mask=PADDED[:, None, None]), (Q, K, V), masks=((B, 1, 1, S),)
  ),
  'jax heads that share keys': Program(_jax(), (Q, *FEW)),
  'einsums': Program(_einsum(), (Q, K, V)),
  'sentences': Program(_sentences, (Q, K, V, PADDED), masks=((B, S),)),
  'written out': Program(_einsum(weights=_by_hand), (Q, K, V)),
  'times an inverse': Program(_einsum(weights=_inverse), (Q, K, V)),
  'divided at the end': Program(_matmuls, (Q, K, V)),
  'logsumexp': Program(
    _einsum(
      weights=lambda x: jnp.exp(x - jax.nn.logsumexp(x, -1, keepdims=True))
    ),
    (Q, K, V),
  ),
  'log softmax': Program(
    _einsum(weights=lambda x: jnp.exp(jax.nn.log_softmax(x))), (Q, K, V)
  ),
  'repeated keys': Program(_repeated, (Q, *FEW)),
  'one head of keys': Program(_shared, (Q, K[:, :, 0], V[:, :, 0])),
  'matrices': Program(
    lambda q, k, v: jax.nn.softmax(q @ k.T) @ v,
    (Q[0, :, 0], K[0, :, 0], V[0, :, 0, :6]),
  ),
  'a relative bias': Program(
    lambda q, k, v, b: _einsum(lambda s: s + b)(q, k, v),
    (Q, K, V, normal(7, 1, H, T, S)),
  ),
  'padding as a bias': Program(
    lambda q, k, v, m: _einsum(_unpadded(m[:, None, None]))(q, k, v),
    (Q, K, V, PADDED),
  ),
  'tril': Program(_einsum(_lower), (Q, K, V), right=0),
  'window': Program(_einsum(_window), (Q, K, V), right=0, left=2),
  'a factor that is learned': Program(
    lambda q, k, v, a: _einsum(lambda s: s * a)(q, k, v),
    (Q, K, V, jnp.float32(0.3)),
  ),
  'a step': Program(_step, (Q[:, 0], K, V, jnp.array([2, 5])), lengths=1),
  'bfloat16': Program(
    _halves, tuple(x.astype(jnp.bfloat16) for x in (Q, K, V)), within=2e-2
  ),
  'keys in float8': Program(
    lambda q, k, v: _einsum()(q, k.astype(q.dtype), v.astype(q.dtype)),
    (Q, *(x.astype(jnp.float8_e4m3fn) for x in (K, V))),
  ),
  'our own': Program(_own(0), (Q, *(x.swapaxes(1, 2) for x in FEW)), right=0),
  'our own, later': Program(
    _own(2), (Q, *(x.swapaxes(1, 2) for x in FEW)), right=2
  ),
  'two axes of places': Program(
    lambda q, k, v: jnp.einsum(
      'bxyhs,bshd->bxyhd',
      jax.nn.softmax(jnp.einsum('bxyhd,bshd->bxyhs', q, k)),
      v,
    ),
    (normal(0, B, 3, T, H, D), K, V),
  ),
  'nnx': Program(_nnx(decode=False)[0], (_nnx(decode=False)[1], X)),
  'nnx causal': Program(*_nnx_causal(), right=0),
  'nnx decode': Program(
    _nnx(decode=True)[0], (_nnx(decode=True)[1], X[:, :1]), lengths=1
  ),
  'linen': Program(*_linen(), masks=((B, S),)),
  'linen decode': Program(*_linen_step(), lengths=1),
  'haiku': Program(*_haiku()),
  'equinox': Program(*_equinox(), moved=_ALL),
  # What is none.
  'dropout': Program(
    _einsum(weights=lambda x: _dropped(jax.nn.softmax(x))),
    (Q, K, V),
    why='something else than a softmax',
  ),
  'weights are a result': Program(
    _returned, (Q, K, V), why='also read elsewhere'
  ),
  'soft cap': Program(
    _einsum(lambda s: jnp.tanh(s / 50) * 50),
    (Q, K, V),
    why='something else than a product',
  ),
  'softmax over heads': Program(
    _einsum(weights=lambda x: jax.nn.softmax(x, 1)),
    (Q, K, V),
    why='something else than a softmax',
  ),
  'the sum of another axis': Program(
    _einsum(weights=_other_sum), _SQUARE, why='something else than a softmax'
  ),
  'no maximum': Program(
    _einsum(weights=_unshifted), (Q, K, V), why='something else than a softmax'
  ),
  'a small number for masked': Program(
    _einsum(lambda s: jnp.where(PADDED[:, None, None], s, -1.0)),
    (Q, K, V),
    why='masked scores are -1,',
  ),
  'masked, and then scaled per head': Program(
    lambda q, k, v, a: _einsum(lambda s: s * a[None, :, None, None])(q, k, v),
    (Q, K, V, normal(8, H)),
    why='something else than a product',
  ),
}
