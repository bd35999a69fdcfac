"""A plain convolutional network: stages of conv, batch norm, relu, max-pool."""

from collections.abc import Sequence
from functools import partial

from flax import nnx
import jax.numpy as jnp


class CNN(nnx.Module):
  """One 3x3 convolution a stage; each stage halves the image by pooling.

  Args:
    in_features: channels of the images.
    widths: channels of each stage.
    classes: features of the output.
    dropout: the rate before the head.
    momentum: the share of the running statistics that a step keeps.
    axis_name: a mapped axis over which batch norm takes its statistics, for
      `shard_map` and `pmap`.
    dtype: of the computation; None takes that of inputs and parameters.
    param_dtype: of the parameters.
    rngs: streams of keys, consumed for the initial weights.
  """

  def __init__(
    self,
    in_features: int = 1,
    widths: Sequence[int] = (16, 32),
    classes: int = 10,
    *,
    dropout: float = 0.0,
    momentum: float = 0.9,
    axis_name: str | None = None,
    dtype=None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    dtypes = dict(dtype=dtype, param_dtype=param_dtype)
    # A bias before a batch norm would be subtracted with the mean.
    conv = partial(nnx.Conv, use_bias=False, **dtypes, rngs=rngs)
    norm = partial(
      nnx.BatchNorm,
      momentum=momentum,
      axis_name=axis_name,
      **dtypes,
      rngs=rngs,
    )
    sizes = [in_features, *widths]
    self.convs = nnx.List(
      [conv(n, m, (3, 3)) for n, m in zip(sizes[:-1], sizes[1:], strict=True)]
    )
    self.norms = nnx.List([norm(m) for m in widths])
    self.dropout = nnx.Dropout(dropout)
    self.head = nnx.Linear(sizes[-1], classes, **dtypes, rngs=rngs)

  def __call__(self, x, *, train: bool = False, rngs: nnx.Rngs | None = None):
    """Maps x [batch, h, w, in] to (logits [batch, classes], intermediates)."""
    out = {}
    for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
      x = nnx.relu(norm(conv(x), use_running_average=not train))
      out[f'block{i}'] = x = nnx.max_pool(x, (2, 2), strides=(2, 2))
    out['features'] = x = x.mean((-3, -2))
    x = self.dropout(x, deterministic=not train, rngs=rngs)
    return self.head(x), out
