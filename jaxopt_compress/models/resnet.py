"""A residual network of basic blocks for small images.

    block(x) = relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))

He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2 and figure 5 left:
a 3x3 stem, stages of basic blocks that halve the image at each new stage, a mean
over the image, a dense head. Where the shape changes the shortcut is a strided
1x1 convolution (option B).
"""

from collections.abc import Sequence
from functools import partial

from flax import nnx
import jax.numpy as jnp


class ResNet(nnx.Module):
  """A ResNet of `sum(depths)` basic blocks.

  Args:
    in_features: channels of the images.
    widths: channels of each stage; the stem has those of the first.
    depths: blocks in each stage; a single int means the same for all.
    classes: features of the output.
    momentum: the share of the running statistics that a step keeps.
    axis_name: a mapped axis over which batch norm takes its statistics, for
      `shard_map` and `pmap`.
    dtype: of the computation; None takes that of inputs and parameters.
    param_dtype: of the parameters.
    rngs: streams of keys, consumed for the initial weights.

  Raises:
    ValueError: the numbers of depths and of widths differ.
  """

  def __init__(
    self,
    in_features: int = 1,
    widths: Sequence[int] = (16, 32),
    depths: int | Sequence[int] = 1,
    classes: int = 10,
    *,
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
    depths = [depths] * len(widths) if isinstance(depths, int) else depths
    if len(depths) != len(widths):
      raise ValueError(
        f'{len(widths)} widths {tuple(widths)} but {len(depths)} depths'
        f' {tuple(depths)}: each stage has one of both.'
      )
    self.stem = conv(in_features, widths[0], (3, 3))
    self.norm = norm(widths[0])
    blocks, n = [], widths[0]
    for stage, (m, depth) in enumerate(zip(widths, depths, strict=True)):
      for i in range(depth):
        # The stem keeps the image's size, so the first stage does too.
        stride = 2 if stage > 0 and i == 0 else 1
        blocks.append(Block(n, m, stride, conv=conv, norm=norm))
        n = m
    self.blocks = nnx.List(blocks)
    self.head = nnx.Linear(n, classes, **dtypes, rngs=rngs)

  def __call__(self, x, *, train: bool = False, rngs: nnx.Rngs | None = None):
    """Maps x [batch, h, w, in] to (logits [batch, classes], intermediates)."""
    del rngs  # Nothing is random.
    x = nnx.relu(self.norm(self.stem(x), use_running_average=not train))
    out = {'stem': x}
    for i, block in enumerate(self.blocks):
      out[f'block{i}'] = x = block(x, train=train)
    out['features'] = x = x.mean((-3, -2))
    return self.head(x), out


class Block(nnx.Module):
  """Two 3x3 convolutions and a shortcut."""

  def __init__(self, n: int, m: int, stride: int, *, conv, norm):
    self.conv1 = conv(n, m, (3, 3), strides=stride)
    self.norm1 = norm(m)
    self.conv2 = conv(m, m, (3, 3))
    self.norm2 = norm(m)
    # An identity cannot change the shape: a 1x1 convolution does.
    self.changes = stride != 1 or n != m
    if self.changes:
      self.shortcut = conv(n, m, (1, 1), strides=stride)
      self.shortcut_norm = norm(m)

  def __call__(self, x, *, train: bool):
    """Maps x [batch, h, w, n] to [batch, h / stride, w / stride, m]."""
    average = not train
    y = nnx.relu(self.norm1(self.conv1(x), use_running_average=average))
    y = self.norm2(self.conv2(y), use_running_average=average)
    if self.changes:
      x = self.shortcut_norm(self.shortcut(x), use_running_average=average)
    return nnx.relu(x + y)
