"""Networks that take all sizes from their parameters: `{name: (fun, shapes, x)}`.

A `shapes` is a tree of shapes of parameters.
"""

import jax
from jax import lax
import jax.numpy as jnp

import jaxopt_compress as jc


def _conv(x, w, groups=1, stride=1):
  return lax.conv_general_dilated(
    x,
    w,
    (stride, stride),
    'SAME',
    feature_group_count=groups,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _norm(x, p):
  """Batch norm by its statistics."""
  return (x - p['mean']) * lax.rsqrt(p['var'] + 1e-5) * p['scale'] + p['bias']


def _norms(n):
  return {k: (1, 1, 1, n) for k in ('mean', 'var', 'scale', 'bias')}


def mlp(p, x):
  return jax.nn.relu(x @ p['a'] + p['b']) @ p['c']


def resnet(p, x):
  x = jax.nn.relu(_norm(_conv(x, p['stem']), p['norm']))
  y = jax.nn.relu(_norm(_conv(x, p['conv1']), p['norm1']))
  x = jax.nn.relu(x + _norm(_conv(y, p['conv2']), p['norm2']))
  return x.mean((1, 2)) @ p['head']


_RESNET = {
  'stem': (3, 3, 3, 8),
  'norm': _norms(8),
  'conv1': (3, 3, 8, 12),
  'norm1': _norms(12),
  'conv2': (3, 3, 12, 8),
  'norm2': _norms(8),
  'head': (8, 5),
}


def densenet(p, x):
  x = _conv(x, p['stem'])
  for i in range(2):
    y = _conv(jax.nn.relu(_norm(x, p[f'norm{i}'])), p[f'conv{i}'])
    x = jnp.concatenate([x, y], -1)
  x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), 'SAME')
  return x.reshape(x.shape[0], -1) @ p['head']


_DENSENET = {
  'stem': (3, 3, 3, 6),
  'norm0': _norms(6),
  'conv0': (3, 3, 6, 4),
  'norm1': _norms(10),
  'conv1': (3, 3, 10, 4),
  'head': (2 * 2 * 14, 5),
}


def mobilenet(p, x):
  x = jax.nn.relu6(_conv(x, p['stem']))
  y = jax.nn.relu6(_norm(_conv(x, p['wide']), p['norm']))
  y = jax.nn.relu6(_conv(y, p['depthwise'], y.shape[-1]))
  z = jax.nn.relu(y.mean((1, 2)) @ p['squeeze'])
  y = y * jax.nn.sigmoid(z @ p['excite'])[:, None, None]
  return (x + _conv(y, p['narrow'])).mean((1, 2)) @ p['head']


_MOBILENET = {
  'stem': (3, 3, 3, 8),
  'wide': (1, 1, 8, 24),
  'norm': _norms(24),
  'depthwise': (3, 3, 1, 24),
  'squeeze': (24, 6),
  'excite': (6, 24),
  'narrow': (1, 1, 24, 8),
  'head': (8, 5),
}


def unet(p, x):
  a = jax.nn.relu(_conv(x, p['down1']))
  b = jax.nn.relu(_conv(a, p['down2'], stride=2))
  up = lax.conv_transpose(
    b, p['up'], (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  both = jnp.concatenate([a, jax.nn.relu(up)], -1)
  return _conv(jax.nn.relu(_conv(both, p['mix'])), p['out'])


_UNET = {
  'down1': (3, 3, 3, 8),
  'down2': (3, 3, 8, 12),
  'up': (2, 2, 12, 6),
  'mix': (3, 3, 14, 10),
  'out': (1, 1, 10, 2),
}


def fused(p, x):
  """Scanned layers of attention with one product for q, k, v, and of SwiGLU."""

  def layer(x, p):
    qkv = jnp.split(x @ p['qkv'], 3, -1)
    q, k, v = (y.reshape(*y.shape[:-1], 4, -1) for y in qkv)
    weights = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k) * 0.3)
    y = jnp.einsum('bhqk,bkhd->bqhd', weights, v)
    x = x + y.reshape(*x.shape[:-1], -1) @ p['o']
    return x + (jax.nn.silu(x @ p['gate']) * (x @ p['up'])) @ p['down'], None

  return lax.scan(layer, x, p['layers'])[0] @ p['head']


_FUSED = {
  'layers': {
    'qkv': (3, 16, 96),
    'o': (3, 32, 16),
    'gate': (3, 16, 40),
    'up': (3, 16, 40),
    'down': (3, 40, 16),
  },
  'head': (16, 4),
}


def grouped_queries(p, x):
  """Two queries for each key, of weights [width, heads, features]."""
  q = jnp.einsum('btd,dhk->bthk', x, p['q'])
  kv = p['k'].shape[1]
  k, v = (
    jnp.repeat(jnp.einsum('btd,dhk->bthk', x, p[name]), 2, axis=2)
    for name in 'kv'
  )
  assert k.shape[2] == 2 * kv
  weights = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k))
  y = jnp.einsum('bhqk,bkhd->bqhd', weights, v)
  return jnp.einsum('bqhd,hdm->bqm', y, p['o'])


_GROUPED_QUERIES = {
  'q': (16, 8, 6),
  'k': (16, 4, 6),
  'v': (16, 4, 6),
  'o': (8, 6, 5),
}


def mixer(p, x):
  x = x @ p['stem']
  y = jax.nn.gelu(jnp.swapaxes(x, 1, 2) @ p['token1']) @ p['token2']
  x = x + jnp.swapaxes(y, 1, 2)
  x = x + jax.nn.gelu(x @ p['channel1']) @ p['channel2']
  return x.mean(1) @ p['head']


_MIXER = {
  'stem': (16, 12),
  'token1': (6, 20),
  'token2': (20, 6),
  'channel1': (12, 24),
  'channel2': (24, 12),
  'head': (12, 4),
}


def lstm(p, x):
  """Gates of one product of weights that are joined before it."""
  into = jnp.concatenate([p['xi'], p['xf'], p['xg'], p['xo']], -1)
  round_ = jnp.concatenate([p['hi'], p['hf'], p['hg'], p['ho']], -1)

  def step(carry, x):
    h, c = carry
    i, f, g, o = jnp.split(x @ into + h @ round_, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

  zero = jnp.zeros((x.shape[0], p['hi'].shape[0]))
  (h, _), _ = lax.scan(step, (zero, zero), jnp.swapaxes(x, 0, 1))
  return h @ p['head']


_LSTM = {
  **{f'x{gate}': (16, 12) for gate in 'ifgo'},
  **{f'h{gate}': (12, 12) for gate in 'ifgo'},
  'head': (12, 3),
}


def experts(p, x):
  x = x @ p['stem']
  top, which = lax.top_k(jax.nn.softmax(x @ p['router']), 2)
  chosen = jax.nn.one_hot(which, p['router'].shape[-1])
  weights = jnp.einsum('btk,btke->bte', top, chosen)
  h = jax.nn.relu(jnp.einsum('btd,edf->btef', x, p['up']))
  y = jnp.einsum('btef,efd->bted', h, p['down'])
  return (x + jnp.einsum('bted,bte->btd', y, weights)) @ p['head']


_EXPERTS = {
  'stem': (16, 12),
  'router': (12, 4),
  'up': (4, 12, 20),
  'down': (4, 20, 12),
  'head': (12, 3),
}


def shufflenet(p, x):
  """A unit of ShuffleNet: https://arxiv.org/abs/1707.01083, figure 2 (b)."""
  x = _conv(x, p['stem'])
  y = jax.nn.relu(_norm(_conv(x, p['narrow'], 2), p['norm']))
  y = jnp.swapaxes(y.reshape(*y.shape[:-1], 2, -1), -1, -2).reshape(y.shape)
  y = _conv(y, p['depthwise'], y.shape[-1])
  return jax.nn.relu(x + _conv(y, p['wide'], 2)).mean((1, 2)) @ p['head']


_SHUFFLENET = {
  'stem': (1, 1, 3, 8),
  'narrow': (1, 1, 4, 12),
  'norm': _norms(12),
  'depthwise': (3, 3, 1, 12),
  'wide': (1, 1, 6, 8),
  'head': (8, 5),
}


def wavenet(p, x):
  """Gated, dilated layers with skips: https://arxiv.org/abs/1609.03499, figure 4."""

  def conv(x, w, dilation=1):
    pad = [((w.shape[0] - 1) * dilation, 0)]
    numbers = ('NHC', 'HIO', 'NHC')
    return lax.conv_general_dilated(
      x, w, (1,), pad, rhs_dilation=(dilation,), dimension_numbers=numbers
    )

  x, skips = conv(x, p['stem']), 0.0
  for i, layer in enumerate(p['layers']):
    a, b = jnp.split(conv(x, layer['gated'], 2**i), 2, -1)
    y = jnp.tanh(a) * jax.nn.sigmoid(b)
    x, skips = x + conv(y, layer['residual']), skips + conv(y, layer['skip'])
  return conv(jax.nn.relu(skips), p['head'])


_WAVENET = {
  'stem': (1, 16, 6),
  'layers': [
    {'gated': (2, 6, 16), 'residual': (1, 8, 6), 'skip': (1, 8, 10)}
    for _ in range(2)
  ],
  'head': (1, 10, 4),
}


def mamba(p, x):
  """A block of Mamba: https://arxiv.org/abs/2312.00752, algorithm 2 and figure 3."""
  u, z = jnp.split(x @ p['in'], 2, -1)
  u = lax.conv_general_dilated(
    u,
    p['conv'],
    (1,),
    [(p['conv'].shape[0] - 1, 0)],
    feature_group_count=u.shape[-1],
    dimension_numbers=('NHC', 'HIO', 'NHC'),
  )
  u = jax.nn.silu(u)
  delta = jax.nn.softplus(u @ p['rank'] @ p['delta'])
  b, c = u @ p['b'], u @ p['c']

  def step(h, now):
    u, delta, b, c = now
    a = jnp.exp(-delta[..., None] * jnp.exp(p['a']))
    h = a * h + (delta * u)[..., None] * b[:, None]
    return h, jnp.einsum('bdn,bn->bd', h, c)

  start = jnp.zeros((x.shape[0], *p['a'].shape[1:]))
  turns = jax.tree.map(lambda y: jnp.swapaxes(y, 0, 1), (u, delta, b, c))
  y = jnp.swapaxes(lax.scan(step, start, turns)[1], 0, 1) + u * p['skip']
  return (y * jax.nn.silu(z)) @ p['out']


_MAMBA = {
  'in': (16, 24),
  'conv': (3, 1, 12),
  'rank': (12, 4),
  'delta': (4, 12),
  'b': (12, 6),
  'c': (12, 6),
  'a': (1, 12, 6),
  'skip': (1, 1, 12),
  'out': (12, 16),
}


_IMAGES, _SEQUENCES = (2, 4, 4, 3), (2, 6, 16)

NETWORKS = {
  'mlp': (mlp, {'a': (3, 8), 'b': (1, 8), 'c': (8, 2)}, (5, 3)),
  'resnet': (resnet, _RESNET, _IMAGES),
  'densenet': (densenet, _DENSENET, _IMAGES),
  'mobilenet': (mobilenet, _MOBILENET, _IMAGES),
  'unet': (unet, _UNET, _IMAGES),
  'fused': (fused, _FUSED, _SEQUENCES),
  'grouped_queries': (grouped_queries, _GROUPED_QUERIES, _SEQUENCES),
  'mixer': (mixer, _MIXER, _SEQUENCES),
  'lstm': (lstm, _LSTM, _SEQUENCES),
  'experts': (experts, _EXPERTS, _SEQUENCES),
  'shufflenet': (shufflenet, _SHUFFLENET, _IMAGES),
  'wavenet': (wavenet, _WAVENET, _SEQUENCES),
  'mamba': (mamba, _MAMBA, _SEQUENCES),
}


def made(name):
  """(fun, params, x) of a network, drawn."""
  fun, shapes, shape = NETWORKS[name]
  keys = iter(jax.random.split(jax.random.key(0), 100))

  def draw(path, shape):
    x = jax.random.normal(next(keys), shape)
    return jnp.abs(x) + 0.5 if path[-1].key == 'var' else x

  params = jax.tree_util.tree_map_with_path(
    draw, shapes, is_leaf=lambda x: isinstance(x, tuple)
  )
  return fun, params, jax.random.normal(next(keys), shape)


def free_of(fun, p):
  """What is free of the axes of the one parameter of `fun`, in sizes."""
  found = jc.structure(fun)(p)

  def said(layout):
    words = []
    for part in layout:
      if isinstance(part, str):
        group = found.groups[part]
        if group.locked:
          return ''
        words.append(f'{group.size}{"~" * bool(group.inexact)}')
      else:
        words.append(f'({"+".join(map(said, part))})')
    return '*'.join(words)

  ((_, layouts),) = found.axes.items()
  return ' '.join(filter(None, map(said, layouts)))
