"""The models of the contract: `CASES[name]() -> Case(apply, params, x)`.

Small versions of what users have, in NNX, in Linen and as plain functions.
Leading axes of `x` are examples, four of them at least; widths divide by four, so
that everything can be cut over four devices.
"""

from typing import Any
from typing import NamedTuple

from flax import linen as nn
from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp


class Case(NamedTuple):
  apply: Any  # (params, x) -> [n, ...]
  params: Any
  x: jax.Array


def _images():
  return jax.random.normal(jax.random.key(7), (4, 6, 6, 4))


def _vectors():
  return jax.random.normal(jax.random.key(7), (4, 8))


def _sequences():
  return jax.random.normal(jax.random.key(7), (4, 5, 8))


def _tokens():
  return jax.random.randint(jax.random.key(7), (4, 5), 0, 12)


def _nnx(module, x, call=lambda m, x: m(x)):
  graphdef, params, rest = nnx.split(module, nnx.Param, ...)
  apply = lambda params, x: call(nnx.merge(graphdef, params, rest), x)
  return Case(apply, params, x)


def _linen(module, x, **kwargs):
  variables = module.init(jax.random.key(0), x, **kwargs)
  params = variables.pop('params')
  apply = lambda params, x: module.apply(
    {'params': params, **variables}, x, **kwargs
  )
  return Case(apply, params, x)


class NnxMlp(nnx.Module):
  def __init__(self, rngs):
    self.a = nnx.Linear(8, 16, rngs=rngs)
    self.b = nnx.Linear(16, 8, rngs=rngs)

  def __call__(self, x):
    return self.b(nnx.gelu(self.a(x)))


class LinenMlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(8)(nn.gelu(nn.Dense(16)(x)))


class NnxCnn(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(4, 8, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
    self.depthwise = nnx.Conv(
      8, 8, (3, 3), strides=2, feature_group_count=8, rngs=rngs
    )
    self.head = nnx.Linear(8, 8, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x)))
    return self.head(self.depthwise(x).mean((1, 2)))


class LinenCnn(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Conv(8, (3, 3))(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    x = nn.Conv(8, (3, 3), strides=2, feature_group_count=8)(x)
    return nn.Dense(8)(x.mean((1, 2)))


class NnxAttention(nnx.Module):
  def __init__(self, rngs):
    self.attend = nnx.MultiHeadAttention(
      num_heads=2, in_features=8, decode=False, rngs=rngs
    )

  def __call__(self, x):
    return x + self.attend(x)


class LinenAttention(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x + nn.MultiHeadDotProductAttention(num_heads=2)(x, x)


class NnxBlock(nnx.Module):
  def __init__(self, rngs):
    self.norm = nnx.LayerNorm(8, rngs=rngs)
    self.attend = nnx.MultiHeadAttention(
      num_heads=2, in_features=8, decode=False, rngs=rngs
    )
    self.up = nnx.Linear(8, 16, rngs=rngs)
    self.down = nnx.Linear(16, 8, rngs=rngs)

  def __call__(self, x):
    x = x + self.attend(self.norm(x))
    return x + self.down(nnx.gelu(self.up(self.norm(x))))


class NnxScanned(nnx.Module):
  """Two blocks, their parameters stacked, scanned and rematerialised."""

  def __init__(self, rngs):
    make = nnx.vmap(NnxBlock, in_axes=0, out_axes=0)
    self.blocks = make(rngs.split(2))

  def __call__(self, x):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, block):
      return nnx.remat(lambda block, x: block(x))(block, x)

    return run(x, self.blocks)


class LinenBlock(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    h = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
    x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
    return x, None


class LinenScanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    blocks = nn.scan(
      nn.remat(LinenBlock, prevent_cse=False),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=2,
    )
    return blocks()(x, None)[0]


class NnxTied(nnx.Module):
  def __init__(self, rngs):
    self.embed = nnx.Embed(12, 8, rngs=rngs)
    self.dense = nnx.Linear(8, 8, rngs=rngs)

  def __call__(self, tokens):
    return self.embed.attend(nnx.tanh(self.dense(self.embed(tokens))))


class LinenTied(nn.Module):
  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(12, 8)
    return embed.attend(nn.tanh(nn.Dense(8)(embed(tokens))))


class NnxLstm(nnx.Module):
  def __init__(self, rngs):
    self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(8, 8, rngs=rngs))

  def __call__(self, x):
    zeros = jnp.zeros((x.shape[0], 8), x.dtype)
    return self.rnn(x, initial_carry=(zeros, zeros))


class LinenLstm(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.RNN(nn.OptimizedLSTMCell(8))(x)


class NnxEinsum(nnx.Module):
  def __init__(self, rngs):
    self.split = nnx.Einsum('btd,dhk->hbkt', (8, 2, 4), rngs=rngs)
    self.merge = nnx.Einsum('hbkt,khd->tbd', (4, 2, 8), rngs=rngs)

  def __call__(self, x):
    return self.merge(self.split(x)).swapaxes(0, 1)


class LinenEinsum(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Einsum((8, 2, 4), 'btd,dhk->hbkt', use_bias=False)(x)
    return nn.Einsum((4, 2, 8), 'hbkt,khd->tbd', use_bias=False)(x).swapaxes(
      0, 1
    )


@jax.custom_vjp
def clipped_matmul(x, w):
  return x @ w


clipped_matmul.defvjp(
  lambda x, w: (x @ w, (x, w)),
  lambda saved, g: (
    jnp.clip(g @ saved[1].T, -0.1, 0.1),
    jnp.clip(jnp.einsum('...i,...j->ij', saved[0], g), -0.1, 0.1),
  ),
)


class NnxCustomVjp(nnx.Module):
  def __init__(self, rngs):
    self.a = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
    self.b = nnx.Linear(16, 8, rngs=rngs)

  def __call__(self, x):
    return self.b(nnx.silu(clipped_matmul(x, self.a.kernel[...])))


class LinenCustomVjp(nn.Module):
  @nn.compact
  def __call__(self, x):
    w = self.param('kernel', nn.initializers.lecun_normal(), (8, 16))
    return nn.Dense(8)(nn.silu(clipped_matmul(x, w)))


class NnxDropout(nnx.Module):
  def __init__(self, rngs):
    self.a = nnx.Linear(8, 16, rngs=rngs)
    self.drop = nnx.Dropout(0.5)
    self.b = nnx.Linear(16, 8, rngs=rngs)

  def __call__(self, x):
    rngs = nnx.Rngs(dropout=jax.random.key(3))
    return self.b(self.drop(nnx.relu(self.a(x)), rngs=rngs))


class LinenDropout(nn.Module):
  @nn.compact
  def __call__(self, x, train=True):
    x = nn.relu(nn.Dense(16)(x))
    return nn.Dense(8)(nn.Dropout(0.5, deterministic=not train)(x))


def _linen_dropout():
  module, x = LinenDropout(), _vectors()
  params = module.init(jax.random.key(0), x, train=False)['params']
  apply = lambda params, x: module.apply(
    {'params': params}, x, rngs={'dropout': jax.random.key(3)}
  )
  return Case(apply, params, x)


def _plain():
  """A function of a tuple of a dict and an array: cond, loop, w and w.T."""
  k1, k2 = jax.random.split(jax.random.key(0))
  params = (
    {'w': jax.random.normal(k1, (8, 8)) / 3},
    jax.random.normal(k2, (3, 8, 8)) / 3,
  )

  def apply(params, x):
    tied, stack = params
    x = lax.cond(x.sum() > 1e6, lambda x: x, lambda x: x @ tied['w'], x)
    x = lax.fori_loop(0, 2, lambda i, x: jnp.tanh(x @ stack[i]), x)
    return x @ stack[2].reshape(8, 2, 4).reshape(8, 8)

  return Case(apply, params, _vectors())


def _foreign():
  """What models from elsewhere do: names, layouts and loops that are not Flax's."""
  shapes = {
    'mix': {'kernel': (4, 1, 8)},
    'blocks': {  # two of them, stacked along axis 1
      'norm': {'w': (8, 2)},
      'q': (2, 2, 8, 4),  # N D H
      'kv': (2, 2, 1, 8, 4),  # C K D H
      'out': (2, 2, 4, 8),  # N H D
    },
    'gru': {'update': (8, 8), 'new': (8, 8), 'hidden': (16, 8)},  # [out, in]
  }
  leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: type(x) is tuple)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  params = tree.unflatten(
    [jax.random.normal(k, s) / 2 for k, s in zip(keys, leaves, strict=True)]
  )

  def mixed(x, layer):
    w = layer['norm']['w'].reshape(1, 1, -1)
    h = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * w
    q = jnp.einsum('btd,ndh->btnh', h, layer['q'])
    k, v = jnp.einsum('bsd,ckdh->cbskh', h, layer['kv'])
    y = jnp.einsum('btnh,nhd->btd', jnp.tanh(q * k) * v, layer['out'])
    return x + y, None

  def apply(p, x):
    # A causal convolution of each channel by itself, along the sequence.
    kernel = p['mix']['kernel'].astype(x.dtype)
    axes = ('NWC', 'WIO', 'NWC')
    x = lax.conv_general_dilated(
      x, kernel, (1,), [(3, 0)], None, None, axes, feature_group_count=8
    )
    layers = jax.tree.map(lambda w: jnp.moveaxis(w, 1, 0), p['blocks'])
    x = lax.scan(mixed, x, layers)[0]

    def gru(h, x):
      # One product for two weights, joined in each turn.
      joined = jnp.concatenate([p['gru']['update'], p['gru']['new']], 1)
      update, new = jnp.split(x @ joined + h @ p['gru']['hidden'].T, 2, 1)
      update = jax.nn.sigmoid(update)
      return update * h + (1 - update) * jnp.tanh(new), None

    return lax.scan(gru, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1))[0]

  return Case(apply, params, _sequences())


CASES = {
  'mlp nnx': lambda: _nnx(NnxMlp(nnx.Rngs(0)), _vectors()),
  'mlp linen': lambda: _linen(LinenMlp(), _vectors()),
  'cnn nnx': lambda: _nnx(NnxCnn(nnx.Rngs(0)), _images()),
  'cnn linen': lambda: _linen(LinenCnn(), _images()),
  'attention nnx': lambda: _nnx(NnxAttention(nnx.Rngs(0)), _sequences()),
  'attention linen': lambda: _linen(LinenAttention(), _sequences()),
  'scanned nnx': lambda: _nnx(NnxScanned(nnx.Rngs(0)), _sequences()),
  'scanned linen': lambda: _linen(LinenScanned(), _sequences()),
  'tied nnx': lambda: _nnx(NnxTied(nnx.Rngs(0)), _tokens()),
  'tied linen': lambda: _linen(LinenTied(), _tokens()),
  'lstm nnx': lambda: _nnx(NnxLstm(nnx.Rngs(0)), _sequences()),
  'lstm linen': lambda: _linen(LinenLstm(), _sequences()),
  'einsum nnx': lambda: _nnx(NnxEinsum(nnx.Rngs(0)), _sequences()),
  'einsum linen': lambda: _linen(LinenEinsum(), _sequences()),
  'custom_vjp nnx': lambda: _nnx(NnxCustomVjp(nnx.Rngs(0)), _vectors()),
  'custom_vjp linen': lambda: _linen(LinenCustomVjp(), _vectors()),
  'dropout nnx': lambda: _nnx(NnxDropout(nnx.Rngs(0)), _vectors()),
  'dropout linen': _linen_dropout,
  'plain': _plain,
  'foreign': _foreign,
}
