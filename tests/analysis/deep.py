"""Networks of layers that have names of their own."""

from flax import linen
import jax
import jax.numpy as jnp


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
