"""Networks of layers that have names of their own."""

import functools

from flax import linen
from flax import nnx
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.models import decoder
from jaxopt_compress.models import vit


class Block(linen.Module):
  """Attention and an MLP on a residual stream, normed before or after."""

  post: bool = False

  @linen.compact
  def __call__(self, x):
    if self.post:
      y = linen.Dense(8)(linen.relu(linen.Dense(16)(x)))
      return linen.LayerNorm()(x + y)
    y = linen.LayerNorm()(x)
    x = x + linen.MultiHeadDotProductAttention(2)(y)
    y = linen.Dense(16)(linen.LayerNorm()(x))
    return x + linen.Dense(8)(linen.gelu(y))


class Transformer(linen.Module):
  depth: int = 3
  post: bool = False

  @linen.compact
  def __call__(self, x):
    x = linen.Dense(8)(x)
    for _ in range(self.depth):
      x = Block(self.post)(x)
    return linen.Dense(3)(linen.LayerNorm()(x))


class Residual(linen.Module):
  @linen.compact
  def __call__(self, x):
    y = x
    for _ in range(2):
      y = linen.Conv(x.shape[-1], (3, 3), use_bias=False)(linen.relu(y))
      y = linen.BatchNorm(use_running_average=True)(y)
    return linen.relu(x + y)


class ResNet(linen.Module):
  """Stages of blocks; what makes an image smaller is between them."""

  blocks: tuple[int, ...] = (3, 2)

  @linen.compact
  def __call__(self, x):
    x = linen.relu(linen.Conv(4, (3, 3))(x))
    for i, n in enumerate(self.blocks):
      if i:
        x = linen.relu(linen.Conv(4 + 2 * i, (1, 1), strides=2)(x))
      for _ in range(n):
        x = Residual()(x)
    return linen.Dense(3)(x.mean((1, 2)))


def mlp(p, x):
  for i in range(sum(name.startswith('w') for name in p)):
    x = jax.nn.relu(x @ p[f'w{i}'] + p[f'b{i}'][None])
  return x


MLP = {
  name: jnp.cos(jnp.arange(36.0 if i < 4 else 6.0).reshape(shape) + i)
  for i, (name, shape) in enumerate(
    [(f'w{i}', (6, 6)) for i in range(4)] + [(f'b{i}', (6,)) for i in range(4)]
  )
}


def drawn(model, x):
  """Variables of a model, not those at its start, which have zeros and ones."""
  variables = model.init(jax.random.key(0), x)
  key = jax.random.key(1)
  return jax.tree.map(
    lambda v: v + 0.1 + 0.1 * jax.random.uniform(key, v.shape), variables
  )


# (fun, params, x), made once.

TEXT = jnp.ones((2, 4, 5))
IMAGES = jax.random.normal(jax.random.key(2), (2, 4, 4, 3))
IDS = jnp.array([[3, 1, 7, 7], [0, 10, 3, 1]])


@functools.cache
def transformer(depth=3, post=False):
  model = Transformer(depth, post)
  return model.apply, drawn(model, TEXT), TEXT


@functools.cache
def resnet(blocks=(3, 2)):
  model = ResNet(blocks)
  return model.apply, drawn(model, IMAGES), IMAGES


@functools.cache
def gqa(depth=3, **options):
  model = decoder.Decoder(
    11, 8, depth, 2, 1, scan=False, **options, rngs=nnx.Rngs(0)
  )
  graphdef, params = nnx.split(model)
  return lambda p, x: nnx.merge(graphdef, p)(x)[0], params, IDS


@functools.cache
def vision(depth=3):
  model = vit.ViT(3, 2, 8, depth, 2, classes=3, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(model)
  return lambda p, x: nnx.merge(graphdef, p)(x)[0], params, IMAGES


@functools.cache
def structure(made):
  """The structure of what a function makes."""
  fun, params, x = made()
  return jc.structure(fun)(params, x)
