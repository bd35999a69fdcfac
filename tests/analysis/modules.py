"""Networks as users of Flax and Equinox write them: `{name: Case}`.

Sizes that the code has itself are arguments of the builders, so that what is shrunk is
built again where it must be.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

from flax import linen
from flax import nnx
import jax
import jax.numpy as jnp


class Case(NamedTuple):
  """A network, and how it is built again.

  Attributes:
    build: a function of sizes that returns (fun, params).
    sizes: how the network is built first.
    shape: of its input.
    groups: {regex over groups: name of the size that it is, or '' if it needs none};
      half of each goes.
  """

  build: Callable
  sizes: dict[str, int]
  shape: tuple[int, ...]
  groups: dict[str, str]


def _nnx(module):
  graphdef, params, rest = nnx.split(
    module, (nnx.Param, nnx.BatchStat), nnx.RngState
  )
  return lambda p, x: nnx.merge(graphdef, p, rest)(x), params


class _Residual(nnx.Module):
  def __init__(self, n, inner, rngs):
    self.conv1 = nnx.Conv(n, inner, (3, 3), use_bias=False, rngs=rngs)
    self.norm1 = nnx.BatchNorm(inner, use_running_average=True, rngs=rngs)
    self.conv2 = nnx.Conv(inner, n, (3, 3), use_bias=False, rngs=rngs)
    self.norm2 = nnx.BatchNorm(n, use_running_average=True, rngs=rngs)

  def __call__(self, x):
    y = nnx.relu(self.norm1(self.conv1(x)))
    return nnx.relu(x + self.norm2(self.conv2(y)))


class _ResNet(nnx.Module):
  def __init__(self, rngs):
    self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
    self.blocks = nnx.List([_Residual(8, 6, rngs) for _ in range(2)])
    self.head = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.stem(x))
    for block in self.blocks:
      x = block(x)
    return self.head(x.mean((1, 2)))


class _Decoder(nnx.Module):
  """A layer with two queries for each key; heads follow from the kernels."""

  def __init__(self, rngs):
    linear = lambda n, m: nnx.Linear(n, m, use_bias=False, rngs=rngs)
    self.q, self.k, self.v = linear(8, 16), linear(8, 8), linear(8, 8)
    self.o, self.up, self.down = linear(16, 8), linear(8, 12), linear(12, 8)
    self.norm = nnx.RMSNorm(8, rngs=rngs)

  def __call__(self, x):
    heads = lambda y: y.reshape(*y.shape[:-1], -1, 4)
    y = self.norm(x)
    q, k, v = heads(self.q(y)), heads(self.k(y)), heads(self.v(y))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    x = x + self.o(y.reshape(*y.shape[:-2], -1))
    return x + self.down(nnx.silu(self.up(x)))


class _Stack(nnx.Module):
  def __init__(self, scanned, rngs):
    if scanned:
      make = nnx.vmap(_Decoder, in_axes=0, out_axes=0)
      self.layers = nnx.split_rngs(splits=2)(make)(rngs)
    else:
      self.layers = nnx.List([_Decoder(rngs) for _ in range(2)])
    self.scanned = scanned

  def __call__(self, x):
    if not self.scanned:
      for layer in self.layers:
        x = layer(x)
      return x
    axes = dict(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    return nnx.scan(lambda x, layer: layer(x), **axes)(x, self.layers)


class _Transformer(linen.Module):
  """A vision transformer."""

  heads: int
  features: int
  mlp: int

  @linen.compact
  def __call__(self, x):
    x = linen.Conv(8, (2, 2), strides=(2, 2), padding='VALID')(x)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    y = linen.LayerNorm()(x)
    x = x + linen.MultiHeadDotProductAttention(
      self.heads, qkv_features=self.heads * self.features, out_features=8
    )(y, y)
    y = linen.gelu(linen.Dense(self.mlp)(linen.LayerNorm()(x)))
    x = x + linen.Dense(8)(y)
    return linen.Dense(4)(x.mean(1))


class _Recurrent(linen.Module):
  hidden: int

  @linen.compact
  def __call__(self, x):
    x = linen.RNN(linen.OptimizedLSTMCell(self.hidden))(x)
    return linen.Dense(4)(x[:, -1])


class _Layer(linen.Module):
  mlp: int

  @linen.compact
  def __call__(self, x, _):
    y = linen.Dense(self.mlp)(linen.RMSNorm()(x))
    return x + linen.Dense(8)(linen.silu(y)), None


class _Scanned(linen.Module):
  mlp: int

  @linen.compact
  def __call__(self, x):
    layers = linen.scan(
      linen.remat(_Layer),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=2,
    )
    return layers(self.mlp)(x, None)[0]


def _linen(make, shape):
  def build(**sizes):
    module, x = make(**sizes), jnp.zeros(shape)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    return module.apply, params

  return build


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Linear:
  """As in Equinox: weight [out, in], for one example."""

  weight: jax.Array
  bias: jax.Array

  def __call__(self, x):
    return self.weight @ x + self.bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Perceptron:
  layers: list[_Linear]
  activation: Callable = dataclasses.field(metadata=dict(static=True))

  def __call__(self, x):
    *layers, last = self.layers
    for layer in layers:
      x = self.activation(layer(x))
    return last(x)


def _perceptron():
  widths = (3, 8, 6, 4)
  layers = [
    _Linear(jnp.ones((m, n)), jnp.ones(m)) for n, m in zip(widths, widths[1:])
  ]
  run = lambda p, x: jax.vmap(p)(x)
  return run, _Perceptron(layers, jax.nn.relu)


_IMAGES, _SEQUENCES = (2, 4, 4, 3), (2, 6, 8)

MODULES = {
  'nnx resnet': Case(
    lambda: _nnx(_ResNet(nnx.Rngs(0))),
    {},
    _IMAGES,
    {'blocks/./conv1/kernel:-.': ''},
  ),
  'nnx decoder': Case(
    lambda: _nnx(_Stack(False, nnx.Rngs(0))),
    {},
    _SEQUENCES,
    {'layers/./(k|o)/kernel:-[12]': '', 'layers/./down/kernel:-2': ''},
  ),
  'nnx decoder scanned': Case(
    lambda: _nnx(_Stack(True, nnx.Rngs(0))),
    {},
    _SEQUENCES,
    {'layers/(k|o)/kernel:-[12]': '', 'layers/down/kernel:-2': ''},
  ),
  'linen vit': Case(
    _linen(_Transformer, _IMAGES),
    dict(heads=2, features=3, mlp=10),
    _IMAGES,
    {'.*/Dense_0/kernel:-1': 'mlp', '.*/key/bias:-2': 'heads'},
  ),
  'linen lstm': Case(
    _linen(_Recurrent, _SEQUENCES),
    dict(hidden=6),
    _SEQUENCES,
    {'.*/Dense_0/kernel:-2': 'hidden'},
  ),
  'linen scanned': Case(
    _linen(_Scanned, _SEQUENCES),
    dict(mlp=10),
    _SEQUENCES,
    {'.*/Dense_0/bias:-1': 'mlp'},
  ),
  'equinox mlp': Case(_perceptron, {}, (5, 3), {'layers/./weight:-2': ''}),
}
