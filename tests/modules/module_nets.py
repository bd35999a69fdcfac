"""Modules that do what modules of Flax NNX may do."""

from flax import nnx
import jax
import jax.numpy as jnp

import jaxopt_compress as jc

RULES = [(r'.*(kernel|embedding|table)', 'W8A16'), (r'.*', None)]
X = jax.random.normal(jax.random.key(0), (4, 8))


def call(model, x):
  return model(x)


class Net(nnx.Module):
  """Two layers, statistics, a mask drawn anew at each call, a bare weight."""

  def __init__(self, rngs):
    self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.table = nnx.Param(jax.random.normal(rngs(), (8, 6)))

  def encode(self, x, *, layers=2):
    """Features of `layers` layers."""
    for layer in self.layers[:layers]:
      x = nnx.relu(layer(x))
    return self.norm(x)

  def __call__(self, x):
    return self.dropout(self.encode(x)) @ self.table

  def untie(self, how):
    """The product with the bare weight, as models write it."""
    x = jnp.ones((2, 8))
    return {
      'index': lambda: x @ self.table[...],
      'operator': lambda: x @ self.table,
      'value': lambda: x @ self.table.get_value(),
      'function': lambda: jnp.dot(x, self.table),
      'turned': lambda: self.table.T @ x.T,
    }[how]()

  def until(self, x, limit):
    """A loop that Python decides."""
    steps = 0
    while float(jnp.abs(x).max()) > limit:
      x, steps = 0.1 * self.layers[0](x), steps + 1
    return x, steps

  def features(self, x):
    """One after the other."""
    for layer in self.layers:
      x = layer(x)
      yield x

  @property
  def width(self):
    return self.table.shape[0]

  @staticmethod
  def twice(x):
    return 2 * x

  @classmethod
  def make(cls):
    return cls(nnx.Rngs(0))


class Wide(Net):
  """A class that calls the methods of its base, and counts."""

  calls = 0

  def __call__(self, x):
    self.calls += 1
    return {'y': super().__call__(x), 'kind': 'wide', 'none': None}


def quantized(model, run=call):
  """The model with codes, and a dense one of the same numbers."""
  q = jc.quantize(model, RULES, jc.uses(run)(model, X))
  return q, jc.materialize(q)
