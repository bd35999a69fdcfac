"""Networks that grow: each function returns (fun, shapes of its parameters)."""

import functools

import jax
from jax import lax
import jax.numpy as jnp


def promoted(fun):
  """The function where ranks are promoted, as they are by default."""

  @functools.wraps(fun)
  def run(*args):
    with jax.numpy_rank_promotion('allow'):
      return fun(*args)

  return run


def _layer_norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  x = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  return x * p['scale'] + p['bias']


def _rms_norm(x, gain):
  return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * gain


def _attention(q, k, v, causal=True):
  """Of q [b, t, kv, rep, f], k and v [b, t, kv, f]."""
  scores = jnp.einsum('btkrf,bskf->bkrts', q, k) * q.shape[-1] ** -0.5
  if causal:
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    scores = jnp.where(seen, scores, -jnp.inf)
  weights = jax.nn.softmax(scores)
  return jnp.einsum('bkrts,bskf->btkrf', weights, v)


def mlp():
  """One hidden layer, with what never is zero: a unit of a relu may be dead."""
  fun = lambda p, x: jax.nn.softplus(x @ p['a'] + p['b']) @ p['c']
  return fun, {'a': (3, 8), 'b': (8,), 'c': (8, 2)}


def lstm():
  """Gates of one product, states that begin as zeros."""

  def fun(p, x):
    def step(carry, x):
      h, c = carry
      i, f, g, o = jnp.split(x @ p['into'] + h @ p['round'], 4, -1)
      c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
      return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zero = jnp.zeros((x.shape[0], p['round'].shape[0]))
    (h, _), _ = lax.scan(step, (zero, zero), jnp.swapaxes(x, 0, 1))
    return h @ p['head']

  return fun, {'into': (3, 20), 'round': (5, 20), 'head': (5, 2)}


def decoder(tied=True, scanned=True, depth=2, width=8, kv=2, rep=2, features=4):
  """Grouped queries, RMS norms, SwiGLU; ids to logits."""
  hidden, tokens = 12, 7

  def layer(x, p):
    y = _rms_norm(x, p['norm1'])
    q = jnp.einsum('btd,dkrf->btkrf', y, p['q'])
    k, v = (jnp.einsum('btd,dkf->btkf', y, p[name]) for name in 'kv')
    x = x + jnp.einsum('btkrf,krfd->btd', _attention(q, k, v), p['o'])
    y = _rms_norm(x, p['norm2'])
    return x + (jax.nn.silu(y @ p['gate']) * (y @ p['up'])) @ p['down'], None

  def fun(p, ids):
    x = p['embed'][ids]
    if scanned:
      x, _ = lax.scan(layer, x, p['layers'])
    else:
      for one in p['layers']:
        x, _ = layer(x, one)
    y = _rms_norm(x, p['norm'])
    return y @ (p['embed'].T if tied else p['head'])

  one = {
    'norm1': (width,),
    'norm2': (width,),
    'q': (width, kv, rep, features),
    'k': (width, kv, features),
    'v': (width, kv, features),
    'o': (kv, rep, features, width),
    'gate': (width, hidden),
    'up': (width, hidden),
    'down': (hidden, width),
  }
  stacked = {name: (depth, *shape) for name, shape in one.items()}
  shapes = {
    'embed': (tokens, width),
    'layers': stacked if scanned else [one] * depth,
    'norm': (width,),
  }
  return fun, shapes if tied else shapes | {'head': (width, tokens)}


def vit(heads=2, width=8):
  """Layer norms, a class token, learned positions; heads are a size of the code."""
  hidden = 12

  def fun(p, x):
    x = x @ p['patches'] + p['bias']
    token = jnp.broadcast_to(p['token'], (x.shape[0], 1, x.shape[-1]))
    x = jnp.concatenate([token, x], 1) + p['positions']
    y = _layer_norm(x, p['norm1'])
    q, k, v = (
      (y @ p[name] + p[f'{name}_bias']).reshape(*y.shape[:-1], heads, 1, -1)
      for name in 'qkv'
    )
    y = _attention(q, k[..., 0, :], v[..., 0, :], causal=False)
    x = x + y.reshape(*x.shape[:-1], -1) @ p['o']
    y = _layer_norm(x, p['norm2'])
    x = x + jax.nn.gelu(y @ p['up'] + p['up_bias']) @ p['down']
    return _layer_norm(x, p['norm'])[:, 0] @ p['head']

  norm = {'scale': (width,), 'bias': (width,)}
  return fun, {
    'patches': (4, width),
    'bias': (width,),
    'token': (1, 1, width),
    'positions': (6, width),
    **{f'norm{i}': norm for i in ('', 1, 2)},
    **{name: (width, width) for name in 'qkvo'},
    **{f'{name}_bias': (width,) for name in 'qkv'},
    'up': (width, hidden),
    'up_bias': (hidden,),
    'down': (hidden, width),
    'head': (width, 3),
  }


def flat(side=4):
  """Convolutions, batch norm, pooling, flatten, dense."""

  def conv(x, w):
    dims = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(
      x, w, (1, 1), 'SAME', dimension_numbers=dims
    )

  def fun(p, x):
    x = jax.nn.relu(conv(x, p['stem']))
    y = (conv(x, p['conv']) - p['mean']) * lax.rsqrt(p['var'] + 1e-5)
    x = jax.nn.relu(x + y * p['scale'] + p['bias'])
    x = lax.reduce_window(
      x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'SAME'
    )
    return x.reshape(x.shape[0], -1) @ p['head']

  norm = {name: (6,) for name in ('mean', 'var', 'scale', 'bias')}
  return fun, {
    'stem': (3, 3, 2, 6),
    'conv': (3, 3, 6, 6),
    **norm,
    'head': ((side // 2) ** 2 * 6, 3),
  }


def drawn(shapes, seed=0):
  """Parameters of these shapes; variances and gains lie around one."""

  def draw(path, shape, key):
    name = str(getattr(path[-1], 'key', path[-1]))
    x = jax.random.normal(key, shape) * 0.4
    return jnp.abs(x) + 0.5 if name in ('var', 'scale') or 'norm' in name else x

  found, treedef = jax.tree_util.tree_flatten_with_path(
    shapes, is_leaf=lambda x: isinstance(x, tuple)
  )
  keys = jax.random.split(jax.random.key(seed), len(found))
  return treedef.unflatten(
    [draw(path, s, k) for (path, s), k in zip(found, keys, strict=True)]
  )


IDS = jnp.arange(12).reshape(2, 6) % 7
PATCHES = jnp.sin(jnp.arange(40.0)).reshape(2, 5, 4)
IMAGES = jnp.sin(jnp.arange(64.0)).reshape(2, 4, 4, 2)
SEQUENCES = jnp.sin(jnp.arange(24.0)).reshape(2, 4, 3)
ROWS = jnp.sin(jnp.arange(15.0)).reshape(5, 3)
