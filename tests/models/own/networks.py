"""Networks as users write them, each with a signature of its own."""

import dataclasses

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp


class Linen(nn.Module):
  width: int = 4
  num_classes: int = 3

  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Dense(self.width)(x.reshape(len(x), -1))
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    self.sow('intermediates', 'hidden', x)
    return nn.Dense(self.num_classes)(x)


class LinenPair(nn.Module):
  """Answers (y, out), has boxed parameters and a stream of its own."""

  @nn.compact
  def __call__(self, x, deterministic: bool = True):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ('in', 'out'))
    h = nn.Dense(4, kernel_init=init)(x.reshape(len(x), -1))
    if not deterministic:
      h += jax.random.normal(self.make_rng('noise'), h.shape)
    return nn.Dense(3)(h), {'hidden': h}


def linen_of_a_function(classes):
  flatten = lambda x: x.reshape(len(x), -1)
  return nn.Sequential([flatten, nn.Dense(4), nn.relu, nn.Dense(classes)])


class Nnx(nnx.Module):
  """No mode in its call: the layers keep it, and keys, too."""

  def __init__(self, in_features, num_classes, width=4, *, rngs: nnx.Rngs):
    self.first = nnx.Linear(in_features, width, rngs=rngs)
    self.norm = nnx.BatchNorm(width, momentum=0.5, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.head = nnx.Linear(width, num_classes, rngs=rngs)

  def __call__(self, x):
    x = self.norm(self.first(x.reshape(len(x), -1)))
    return self.head(self.dropout(x))


class NnxTold(nnx.Module):
  """Told all by its call, and by other names."""

  def __init__(self, rngs):
    self.first = nnx.Linear(4, 4, rngs=rngs)
    self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
    self.dropout = nnx.Dropout(0.5)

  def __call__(self, x, training=False, rngs=None):
    x = self.norm(self.first(x), use_running_average=not training)
    return self.dropout(x, deterministic=not training, rngs=rngs), {'x': x}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Tree:
  """A callable tree, of one example; its count is no parameter."""

  weight: jax.Array  # [out, in]
  count: jax.Array
  scale: float = 2.0

  def __call__(self, x, *, key=None):
    x = x if key is None else x + jax.random.normal(key, x.shape)
    return self.scale * (self.weight @ x)


def tree(classes, *, key):
  weight = jax.random.normal(key, (classes, 4))
  return Tree(weight, jnp.zeros((), jnp.int32))


class Logits(nn.Module):
  @nn.compact
  def __call__(self, x):
    return {'logits': nn.Dense(3)(x)}


class TwoInputs(nn.Module):
  @nn.compact
  def __call__(self, x, y):
    return x + y


def number():
  return 3
