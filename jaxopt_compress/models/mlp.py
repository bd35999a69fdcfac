"""A multilayer perceptron: h_i = act(W_i h_{i-1} + b_i), y = W h_n + b."""

from collections.abc import Sequence
import math

from flax import nnx
import jax
import jax.numpy as jnp


class MLP(nnx.Module):
  """Dense layers over the flattened input.

  Args:
    in_features: the inputs' size, all axes but the first together.
    widths: features of the hidden layers.
    classes: features of the output.
    activation: a function of `jax.nn`, by name.
    dropout: the rate after each hidden layer.
    dtype: of the computation; None takes that of inputs and parameters.
    param_dtype: of the parameters.
    rngs: streams of keys, consumed for the initial weights.
  """

  def __init__(
    self,
    in_features: int = 64,
    widths: Sequence[int] = (128, 128),
    classes: int = 10,
    *,
    activation: str = 'relu',
    dropout: float = 0.0,
    dtype=None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    dtypes = dict(dtype=dtype, param_dtype=param_dtype)
    sizes = [in_features, *widths]
    self.layers = nnx.List(
      [
        nnx.Linear(n, m, **dtypes, rngs=rngs)
        for n, m in zip(sizes[:-1], sizes[1:], strict=True)
      ]
    )
    self.dropout = nnx.Dropout(dropout)
    self.head = nnx.Linear(sizes[-1], classes, **dtypes, rngs=rngs)
    self.activation = activation

  def __call__(self, x, *, train: bool = False, rngs: nnx.Rngs | None = None):
    """Maps x [batch, ...] to (logits [batch, classes], intermediates)."""
    out = {}
    x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    for i, layer in enumerate(self.layers):
      x = getattr(jax.nn, self.activation)(layer(x))
      x = self.dropout(x, deterministic=not train, rngs=rngs)
      out[f'block{i}'] = x
    out['features'] = x
    return self.head(x), out
