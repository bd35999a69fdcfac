"""Small networks, written as each framework's users write them.

apply, params, x = linen()          # apply(params, x) -> array
"""

import equinox as eqx
from flax import linen
from flax import nnx
import haiku as hk
import jax
import jax.numpy as jnp

KEY = jax.random.key(0)
VECTORS = jax.random.normal(jax.random.key(1), (3, 8, 16))
IMAGES = jax.random.normal(jax.random.key(2), (3, 8, 8, 4))
TOKENS = jax.random.randint(jax.random.key(3), (3, 8), 0, 24)


# ------------------------------------------------------------------------- NNX


class NnxBlock(nnx.Module):
  """Attention and an MLP, with dropout and a rng of its own."""

  def __init__(self, rngs):
    self.norm = nnx.LayerNorm(16, rngs=rngs)
    self.attend = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
    self.drop = nnx.Dropout(0.1, rngs=rngs)
    self.up = nnx.Linear(16, 32, rngs=rngs)
    self.down = nnx.Linear(32, 16, rngs=rngs)

  def __call__(self, x):
    x = x + self.drop(self.attend(self.norm(x)))
    return x + self.down(nnx.gelu(self.up(x)))


class NnxNet(nnx.Module):
  """Tokens in, logits out; the embedding is tied to the head."""

  def __init__(self, rngs):
    self.embed = nnx.Embed(24, 16, rngs=rngs)
    self.blocks = nnx.List([NnxBlock(rngs), NnxBlock(rngs)])
    self.norm = nnx.RMSNorm(16, rngs=rngs)

  def __call__(self, tokens):
    x = self.embed(tokens)
    for block in self.blocks:
      x = block(x)
    return self.embed.attend(self.norm(x))


def nnx_module():
  """The module itself stands where other zoos have parameters."""
  model = NnxNet(nnx.Rngs(0))
  model.eval()
  return lambda model, x: model(x), model, TOKENS


def nnx_state():
  """A module taken apart, as training loops do it."""
  model = NnxNet(nnx.Rngs(0))
  model.eval()
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  return (
    lambda params, x: nnx.merge(graphdef, params, rest)(x),
    params,
    TOKENS,
  )


# ----------------------------------------------------------------------- Linen


class LinenNet(linen.Module):
  """Convolutions, attention over places, a dense head."""

  @linen.compact
  def __call__(self, x):
    x = linen.relu(linen.Conv(16, (3, 3))(x))
    x = linen.Conv(16, (3, 3), feature_group_count=16)(x)
    x = linen.BatchNorm(use_running_average=True)(x)
    x = x.reshape(x.shape[0], -1, 16)
    x = x + linen.MultiHeadDotProductAttention(num_heads=4)(
      linen.LayerNorm()(x)
    )
    return linen.Dense(10)(x.mean(1))


def linen_model():
  model = LinenNet()
  variables = model.init(KEY, IMAGES)
  rest = {k: v for k, v in variables.items() if k != 'params'}
  apply = lambda params, x: model.apply({'params': params, **rest}, x)
  return apply, variables['params'], IMAGES


def linen_gru():
  """A recurrent cell, whose kernels a scan reads at each step."""
  model = linen.RNN(linen.GRUCell(16))
  params = model.init(KEY, VECTORS)['params']
  return lambda p, x: model.apply({'params': p}, x), params, VECTORS


def linen_scanned_on_axis_1():
  """Layers stacked on the second axis, as MaxText keeps them (param_scan_axis=1)."""

  class Layer(linen.Module):
    @linen.compact
    def __call__(self, x, none):
      h = linen.RMSNorm()(x)
      h = linen.DenseGeneral((4, 8), axis=-1, use_bias=False)(h)
      h = linen.DenseGeneral(16, axis=(-2, -1), use_bias=False)(linen.silu(h))
      return x + h, None

  class Decoder(linen.Module):
    @linen.compact
    def __call__(self, tokens):
      embed = linen.Embed(24, 16)
      layers = linen.scan(
        Layer, {'params': 1}, split_rngs={'params': True}, length=3
      )
      x, _ = layers()(embed(tokens), None)
      return linen.Dense(24, use_bias=False)(linen.RMSNorm()(x))

  model = Decoder()
  params = model.init(KEY, TOKENS)['params']
  return lambda p, x: model.apply({'params': p}, x), params, TOKENS


# --------------------------------------------------------------------- Equinox


class EquinoxNet(eqx.Module):
  """Weights are [out, in]; functions are leaves of the tree."""

  embed: eqx.nn.Embedding
  attend: eqx.nn.MultiheadAttention
  norm: eqx.nn.LayerNorm
  mlp: eqx.nn.MLP
  head: eqx.nn.Linear
  name: str = eqx.field(static=True, default='net')

  def __init__(self, key):
    keys = jax.random.split(key, 4)
    self.embed = eqx.nn.Embedding(24, 16, key=keys[0])
    self.attend = eqx.nn.MultiheadAttention(4, 16, key=keys[1])
    self.norm = eqx.nn.LayerNorm(16)
    self.mlp = eqx.nn.MLP(16, 16, 32, depth=1, activation=jnp.tanh, key=keys[2])
    self.head = eqx.nn.Linear(16, 10, key=keys[3])

  def __call__(self, tokens):
    x = jax.vmap(self.embed)(tokens)
    x = x + self.attend(x, x, x)
    x = x + jax.vmap(lambda x: self.mlp(self.norm(x)))(x)
    return jax.vmap(self.head)(x)


def equinox_module():
  apply = lambda model, x: jax.vmap(model)(x)
  return apply, EquinoxNet(KEY), TOKENS


def equinox_conv():
  """Convolutions with channels first, in groups too."""

  keys = jax.random.split(KEY, 3)
  model = eqx.nn.Sequential(
    [
      eqx.nn.Conv2d(4, 16, 3, padding=1, key=keys[0]),
      eqx.nn.Lambda(jax.nn.relu),
      eqx.nn.Conv2d(16, 16, 3, groups=4, key=keys[1]),
      eqx.nn.AvgPool2d(2, 2),
      eqx.nn.Lambda(jnp.ravel),
      eqx.nn.Linear(144, 10, key=keys[2]),
    ]
  )
  apply = lambda model, x: jax.vmap(model)(x.transpose(0, 3, 1, 2))
  return apply, model, IMAGES


# ----------------------------------------------------------------------- Haiku


def haiku_model():
  """Names of modules hold slashes: {'net/~/linear_0': {'w': ..., 'b': ...}}."""

  def net(x):
    x = hk.Conv2D(16, 3)(x)
    x = hk.LayerNorm(-1, True, True)(jax.nn.relu(x))
    x = x.reshape(x.shape[0], -1, 16)
    x = x + hk.MultiHeadAttention(
      4, 4, w_init=hk.initializers.VarianceScaling()
    )(x, x, x)
    return hk.nets.MLP([32, 10], name='mlp')(x.mean(1))

  model = hk.without_apply_rng(hk.transform(net))
  params = model.init(KEY, IMAGES)
  return model.apply, params, IMAGES
