"""Programs that make their weights, and the leaves that `hoist` gives them."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

RNG = np.random.default_rng(0)
LOWER = np.tril(np.ones((4, 4), bool))


def normal(*shape):
  return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


X = normal(2, 4)


def weight_norm(p, x):
  v = p['v']
  return x @ (p['g'] * v / jnp.linalg.norm(v, axis=0, keepdims=True)) + p['b']


def standardised(p, x):
  w = p['conv']['kernel']
  mean, var = w.mean((0, 1, 2), keepdims=True), w.var((0, 1, 2), keepdims=True)
  w = p['conv']['gain'] * (w - mean) * lax.rsqrt(var + 1e-5)
  layout = 'NHWC', 'HWIO', 'NHWC'
  image = x.reshape(-1, 2, 2, 1)
  return lax.conv_general_dilated(
    image, w, (1, 1), 'SAME', dimension_numbers=layout
  )


def masked(p, x):
  return x @ (p['w'] * p['mask']) + x @ jnp.where(LOWER, p['v'], 0.0)


def merged(p, x):
  return x @ (p['w'] + 0.5 * p['a'] @ p['b'])


def one_plus(p, x):
  x = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True))
  return (x * (1 + p['norm']['scale'])) @ p['w']


def half(p, x):
  """The table is cast twice, and is one table."""
  rows = p['embed'].astype(jnp.bfloat16)[jnp.argsort(x[0])]
  return rows @ p['embed'].astype(jnp.bfloat16).T


def cell(p, x):
  kernels = [p[k]['kernel'] for k in ('hf', 'hg', 'hi', 'ho')]

  def turn(h, _):
    # In each turn, as in cells of Flax.
    f, g, i, o = jnp.split(h @ jnp.concatenate(kernels, 1), 4, -1)
    return jax.nn.sigmoid(f) * h + jax.nn.sigmoid(i) * jnp.tanh(g) * o, h.sum()

  return lax.scan(turn, x, None, length=3)


def block(h, p):
  w = p['v'] * (p['g'] / jnp.linalg.norm(p['v'], axis=0, keepdims=True))
  return jnp.tanh(h @ w) * (1 + p['scale']), None


def scanned(p, x):
  return lax.scan(block, x, p['layers'])[0]


def rematted(p, x):
  return lax.scan(jax.checkpoint(block), x, p['layers'], reverse=True)[0]


def twice_scanned(p, x):
  group = jax.jit(lambda h, q: lax.scan(block, h, q))
  return lax.scan(group, x, p['groups'])[0]


def branches(p, x):
  w = p['a'] / jnp.abs(p['a']).max()
  return lax.cond(x.sum() > 0, lambda: x @ w, lambda: x @ (2 * p['c']) + p['d'])


def looped(p, x):
  def turn(state):
    i, h = state
    return i + 1, jnp.tanh(h @ (p['w'] / 2))

  return lax.while_loop(lambda s: s[0] < 3 + (x[0, 0] > 9), turn, (0, x))[1]


def by_index(p, x):
  def turn(i, h):
    # As a loop over layers is written by hand.
    w = jax.tree.map(lambda a: a[i], p['layers'])
    return block(h, w)[0]

  return lax.fori_loop(0, 3, turn, x)


def carried(p, x):
  """What all turns leave as it is, and their number, counted backwards."""

  def turn(c, q):
    i, w, h = c
    return (i + 1, w, jnp.tanh(h @ (w + i * p['d']) * (2 * q))), h.sum() + i

  start = 2, p['w'] * 3, x
  (i, _, h), sums = lax.scan(turn, start, p['gains'], reverse=True)
  return i, h, sums


def chosen_by_turn(p, x):
  def turn(h, q):
    h = lax.cond(
      h.sum() > 0,
      lambda h: h @ (q['v'] * q['g']),
      lambda h: h * (1 + q['scale']),
      h,
    )
    return h, lax.cond(q['g'].sum() > 0, lambda: q['v'].sum(), lambda: 0.0)

  return lax.scan(turn, x, p['layers'])


def through_scan(p, x):
  """A loop over parameters alone."""
  product, _ = lax.scan(lambda a, b: (a @ b, None), jnp.eye(4), p['ws'])
  return x @ product


def hyper(p, x):
  h = jnp.tanh(p['z'] @ p['first'])
  return x @ (h @ p['second']).reshape(4, 4)


def diagonal(p, x):
  """Complex numbers of two real parameters, as in S4D."""
  a = -jnp.exp(p['log_re']) + 1j * p['im']
  return (x * jnp.exp(a)).real


def spectral(p, x):
  v = p['w'].T @ p['u']
  v = v / jnp.linalg.norm(v)
  return x @ (p['w'] / (p['u'] @ p['w'] @ v))


def batch_norm(p, x):
  mul = p['params']['scale'] * lax.rsqrt(p['stats']['var'] + 1e-5)
  return (x - p['stats']['mean']) * mul + p['params']['bias']


def jitted(p, x):
  norm = jax.jit(lambda v, g: g * v / jnp.linalg.norm(v, axis=0, keepdims=True))
  return jax.jit(lambda x, p: x @ norm(p['v'], p['g']))(x, p)


def with_own_derivative(p, x):
  """What only parameters reach is computed, a function of both stays."""
  w = jax.nn.softplus(p['w'])  # custom_jvp
  return _clipped(x @ w, p['limit'])


@jax.custom_vjp
def _clipped(x, limit):
  return jnp.clip(x, -jnp.exp(limit), jnp.exp(limit))


_clipped.defvjp(
  lambda x, limit: (_clipped(x, limit), None), lambda _, dy: (dy, 0.0)
)


# What has no leaf of its own: moved, larger than its parameters, or used as it is too.


def moved(p, x):
  return x @ p['w'].T.reshape(2, 2, 4).transpose(1, 0, 2).reshape(4, 4)


def widened(p, x):
  return x @ p['codes'].astype(jnp.float32) * p['scale']


def outer_product(p, x):
  return x @ (p['a'] * p['b'])


def both_ways(p, x):
  return x @ p['w'] + x @ (p['w'] / jnp.linalg.norm(p['w']))


def shared_over_layers(p, x):
  """One matrix, another gain for each layer: 3 leaves would be larger."""
  return lax.scan(lambda h, g: (h @ (g * p['w']), None), x, p['gains'])[0]


def shared_unrolled(p, x):
  for g in p['gains']:
    x = x @ (g * p['w'])
  return x


def looked_up(p, x):
  return x + p['positions'][jnp.arange(len(x))][:, :4] + p['positions'][:1, :4]


def noisy(p, x):
  """A key among the parameters."""
  noise = jax.random.normal(p['key'], (4, 4))
  return x @ (p['w'] + noise)


def layers(*first):
  v, g, scale = normal(*first, 4, 4), normal(*first, 1, 4), normal(*first, 1, 4)
  return {'v': v, 'g': g, 'scale': scale}


V_AND_G = {'v': normal(4, 3), 'g': normal(1, 3)}
LAYERS = {'layers/scale': (3, 1, 4), 'layers/v': (3, 4, 4)}
W = normal(4, 4)

# name: (program, parameters, {leaf: shape})
PROGRAMS = {
  'weight_norm': (
    weight_norm,
    V_AND_G | {'b': normal(1, 3), 'unread': normal(3)},
    {'v': (4, 3), 'b': (1, 3)},
  ),
  'standardised': (
    standardised,
    {'conv': {'kernel': normal(3, 3, 1, 2), 'gain': normal(1, 1, 1, 2)}},
    {'conv/kernel': (3, 3, 1, 2)},
  ),
  'masked': (
    masked,
    {'w': W, 'mask': LOWER, 'v': normal(4, 4)},
    {'w': (4, 4), 'v': (4, 4)},
  ),
  'merged': (
    merged,
    {'w': normal(4, 3), 'a': normal(4, 1), 'b': normal(1, 3)},
    {'w': (4, 3)},
  ),
  'one_plus': (
    one_plus,
    {'norm': {'scale': normal(1, 4)}, 'w': normal(4, 3)},
    {'norm/scale': (1, 4), 'w': (4, 3)},
  ),
  'half': (half, {'embed': normal(6, 4)}, {'embed': (6, 4)}),
  'cell': (
    cell,
    {k: {'kernel': normal(4, 4)} for k in ('hf', 'hg', 'hi', 'ho')},
    {'hf&hg&hi&ho/kernel': (4, 16)},
  ),
  'scanned': (scanned, {'layers': layers(3)}, LAYERS),
  'rematted': (rematted, {'layers': layers(3)}, LAYERS),
  'twice_scanned': (
    twice_scanned,
    {'groups': layers(2, 3)},
    {'groups/scale': (2, 3, 1, 4), 'groups/v': (2, 3, 4, 4)},
  ),
  'branches': (
    branches,
    {'a': normal(4, 3), 'c': normal(4, 3), 'd': normal(1, 3)},
    {'a': (4, 3), 'c': (4, 3), 'd': (1, 3)},
  ),
  'looped': (looped, {'w': W}, {'w': (4, 4)}),
  'by_index': (by_index, {'layers': layers(3)}, LAYERS),
  'carried': (
    carried,
    {'d': W, 'gains': normal(3, 1, 4), 'w': normal(4, 4)},
    {'d': (4, 4), 'gains': (3, 1, 4), 'w': (4, 4)},
  ),
  'chosen_by_turn': (
    chosen_by_turn,
    {'layers': layers(3)},
    {**LAYERS, 'layers/v_cond': (3,)},
  ),
  'through_scan': (through_scan, {'ws': normal(2, 4, 4)}, {'ws': (4, 4)}),
  'hyper': (
    hyper,
    {'z': normal(1, 2), 'first': normal(2, 3), 'second': normal(3, 16)},
    {'second': (4, 4)},  # behind the reshape
  ),
  'diagonal': (
    diagonal,
    {'log_re': normal(1, 4), 'im': normal(1, 4)},
    {'im&log_re': (1, 4)},
  ),
  'spectral': (spectral, {'w': W, 'u': normal(4)}, {'w': (4, 4)}),
  'batch_norm': (
    batch_norm,
    {
      'params': {'scale': normal(1, 4), 'bias': normal(1, 4)},
      'stats': {'mean': normal(1, 4), 'var': jnp.ones((1, 4))},
    },
    {
      'params/bias': (1, 4),
      'params.scale&stats.var': (1, 4),
      'stats/mean': (1, 4),
    },
  ),
  'jitted': (jitted, V_AND_G, {'v': (4, 3)}),
  'with_own_derivative': (
    with_own_derivative,
    {'w': W, 'limit': jnp.float32(0.5)},
    {'w': (4, 4), 'limit': ()},
  ),
  'moved': (moved, {'w': W}, {'w': (4, 4)}),
  'widened': (
    widened,
    {'codes': jnp.int8(W), 'scale': normal(1, 4)},
    {'codes': (4, 4), 'scale': (1, 4)},
  ),
  'outer_product': (
    outer_product,
    {'a': normal(4, 1), 'b': normal(1, 4)},
    {'a': (4, 1), 'b': (1, 4)},
  ),
  'both_ways': (both_ways, {'w': W}, {'w': (4, 4), 'w_sqrt': ()}),
  'shared_over_layers': (
    shared_over_layers,
    {'gains': normal(3, 1, 1), 'w': W},
    {'gains': (3, 1, 1), 'w': (4, 4)},
  ),
  'shared_unrolled': (
    shared_unrolled,
    {'gains': normal(3, 1, 1), 'w': W},
    {'gains': (3, 1, 1), 'w': (4, 4)},
  ),
  'looked_up': (looked_up, {'positions': normal(8, 6)}, {'positions': (8, 6)}),
  'noisy': (
    noisy,
    {'key': jax.random.key(1), 'w': W},
    {'key': (), 'w': (4, 4)},
  ),
}
