"""A vision transformer.

    x = patches W + positions
    x = x + attention(norm(x));  x = x + mlp(norm(x))        `depth` times
    y = head(mean over patches of norm(x))

Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929, with the changes of
Beyer et al. 2022, https://arxiv.org/abs/2205.01580: fixed sine-cosine positions
and a mean over the patches in place of a class token.
"""

from functools import partial

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np


class ViT(nnx.Module):
  """Pre-norm blocks over the patches of an image.

  Args:
    in_features: channels of the images.
    patch: side of a patch; it divides the image's sides.
    width: features of a token, a multiple of 4 and of `heads`.
    depth: blocks.
    heads: of the attention.
    mlp_ratio: hidden features of the MLP, as a multiple of `width`.
    classes: features of the output.
    dropout: the rate after the positions and after each branch.
    dtype: of the computation; None takes that of inputs and parameters.
    param_dtype: of the parameters.
    rngs: streams of keys, consumed for the initial weights.
  """

  def __init__(
    self,
    in_features: int = 1,
    patch: int = 2,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: float = 2.0,
    classes: int = 10,
    *,
    dropout: float = 0.0,
    dtype=None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    if width % heads or width % 4:
      raise ValueError(
        f'width is {width}; it must be a multiple of 4 (two sines and two'
        f' cosines) and of heads, which is {heads}.'
      )
    dtypes = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    linear = partial(nnx.Linear, **dtypes)
    norm = partial(nnx.LayerNorm, width, **dtypes)
    self.patch = patch
    self.stem = nnx.Conv(
      in_features, width, (patch, patch), strides=patch, **dtypes
    )
    self.dropout = nnx.Dropout(dropout)
    hidden = int(width * mlp_ratio)
    self.blocks = nnx.List(
      [
        Block(width, heads, hidden, dropout, linear=linear, norm=norm)
        for _ in range(depth)
      ]
    )
    self.norm = norm()
    self.head = linear(width, classes)

  def __call__(self, x, *, train: bool = False, rngs: nnx.Rngs | None = None):
    """Maps x [batch, h, w, in] to (logits [batch, classes], intermediates).

    In `out`, 'stem' and the blocks are [batch, patches, width], 'features'
    is [batch, width], and 'attention0', ... are the attention probabilities,
    [batch, heads, patches, patches].
    """
    batch, height, width, _ = x.shape
    if height % self.patch or width % self.patch:
      raise ValueError(
        f'Images of {height}x{width} do not divide into patches of'
        f' {self.patch}x{self.patch}. Crop or pad them, or change `patch`.'
      )
    x = self.stem(x)
    # Positions depend on the image's size alone: no parameter, any resolution.
    table = positions(*x.shape[1:])
    x = x.reshape(batch, *table.shape) + table[None].astype(x.dtype)
    x = self.dropout(x, deterministic=not train, rngs=rngs)
    out = {'stem': x}
    for i, block in enumerate(self.blocks):
      x, out[f'attention{i}'] = block(x, train=train, rngs=rngs)
      out[f'block{i}'] = x
    out['features'] = x = self.norm(x).mean(-2)
    return self.head(x), out


class Block(nnx.Module):
  """Attention, then an MLP, each on a normalised input and added to it."""

  def __init__(self, width, heads, hidden, dropout, *, linear, norm):
    self.norm1 = norm()
    self.attn = Attention(width, heads, linear=linear)
    self.norm2 = norm()
    self.up = linear(width, hidden)
    self.down = linear(hidden, width)
    self.dropout = nnx.Dropout(dropout)

  def __call__(self, x, *, train: bool, rngs: nnx.Rngs | None):
    """Maps x [batch, n, width] to (the same, attention probabilities)."""
    drop = partial(self.dropout, deterministic=not train, rngs=rngs)
    y, probabilities = self.attn(self.norm1(x))
    x = x + drop(y)
    x = x + drop(self.down(drop(nnx.gelu(self.up(self.norm2(x))))))
    return x, probabilities


class Attention(nnx.Module):
  """softmax(q k^T / sqrt(d)) v for each head.

  Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1. How many heads there
  are follows from the kernels, so that some of them can go.
  """

  def __init__(self, width, heads, *, linear):
    self.head_dim = width // heads
    self.q = linear(width, width)
    self.k = linear(width, width)
    self.v = linear(width, width)
    self.out = linear(width, width)

  def __call__(self, x):
    """Maps x [batch, n, width] to (the same, probabilities [..., h, n, n])."""

    def by_head(y, heads, features):
      return y.reshape(*y.shape[:-1], heads, features)

    q = by_head(self.q(x), -1, self.head_dim)
    k = by_head(self.k(x), -1, self.head_dim)
    v = by_head(self.v(x), q.shape[-2], -1)
    with jax.named_scope('attention/scores'):
      scores = jnp.einsum('bqhd,bkhd->bhqk', q, k)
    scores = scores * self.head_dim**-0.5
    # In bfloat16 the sum of many exponentials loses its small terms.
    probabilities = jax.nn.softmax(scores.astype(jnp.float32))
    with jax.named_scope('attention/values'):
      y = jnp.einsum('bhqk,bkhd->bqhd', probabilities.astype(v.dtype), v)
    return self.out(y.reshape(*x.shape[:-1], -1)), probabilities


def positions(height: int, width: int, features: int) -> jax.Array:
  """Sines and cosines of the rows and columns: [height * width, features].

  Frequencies fall from 1 to 1 / 10000. Beyer et al. 2022, section 2.

  >>> positions(1, 2, 4).round().tolist()
  [[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]]
  """
  # A quarter each for the sine and cosine of the column and of the row.
  quarter = features // 4
  omega = 1e4 ** -(np.arange(quarter) / max(quarter - 1, 1))
  row, column = np.indices((height, width)).reshape(2, -1, 1) * omega
  parts = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
  return jnp.asarray(np.concatenate(parts, -1), jnp.float32)
