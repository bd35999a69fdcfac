"""Causal attention with rotary positions, heads grouped over shared keys.

    y_i = sum_{j <= i} softmax_j(R_i q_i . R_j k_j / sqrt(d)) v_j

R_i turns pairs of features by angles proportional to the position i, so that the
product depends only on i - j. Su et al. 2021, https://arxiv.org/abs/2104.09864,
section 3.4.2; grouped queries: Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245, figure 2.
"""

from collections.abc import Callable

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

KV = tuple[jax.Array, jax.Array]


class Attention(nnx.Module):
  """Causal attention; query head h reads key head h // (heads / kv_heads).

  How many heads there are follows from the kernels, so that some of them can go.

  Args:
    width: features of input and output; a head has width / heads.
    heads: query heads.
    kv_heads: key and value heads.
    linear: `(n, m) -> module`, a projection from n to m features.
    linear_out: the same for the projection that is added to the residual stream.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    kv_heads: int,
    *,
    linear: Callable[[int, int], nnx.Module],
    linear_out: Callable[[int, int], nnx.Module],
  ):
    self.head_dim = width // heads
    self.q = linear(width, width)
    self.k = linear(width, kv_heads * width // heads)
    self.v = linear(width, kv_heads * width // heads)
    self.o = linear_out(width, width)

  def __call__(
    self,
    x: jax.Array,
    position: jax.Array,
    kv: KV | None = None,
    layer: jax.Array | int = 0,
  ) -> tuple[jax.Array, KV | None]:
    """Attends to x itself, or to a cache into which x is written first.

    Args:
      x: [batch * time, width], a row for each token.
      position: [time] int; consecutive.
      kv: keys and values of all layers [depth, batch, kv_heads, max_length,
        width / heads], position p at index p; or None.
      layer: the index of this layer among them.

    Returns:
      [batch * time, width], and kv with x written in.
    """
    n, t, d = len(x), len(position), self.head_dim
    q, k, v = self.q(x), self.k(x), self.v(x)
    kv_heads = k.shape[-1] // d
    q = q.reshape(n // t, t, q.shape[-1] // d, d)
    k = k.reshape(n // t, t, kv_heads, d)
    v = v.reshape(n // t, t, kv_heads, -1)
    q, k = rotate(q, position), rotate(k, position)
    # Keys lie head by head, [batch, kv_heads, time, d]: each head is one matrix of
    # the batched products, in the cache too.
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    if kv is not None:
      at = (layer, 0, 0, position[0], 0)
      kv = tuple(
        lax.dynamic_update_slice(old, new[None], at)
        for old, new in zip(kv, (k, v), strict=True)
      )
      # All max_length keys are read; those after `position` are masked.
      k, v = (
        _part(whole[layer], new.shape)
        for whole, new in zip(kv, (k, v), strict=True)
      )
      y = attend(q, k, v, position)
    else:
      y = attend(q, k, v, jnp.arange(t))
    return self.o(y.reshape(n, -1)), kv

  def cache_sizes(self) -> tuple[int, int, int]:
    """(kv_heads, features of a key, features of a value)."""
    kv_heads = self.k.kernel.shape[-1] // self.head_dim
    return kv_heads, self.head_dim, self.v.kernel.shape[-1] // kv_heads


def _part(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """What this layer uses of a cache as large as the largest layer needs."""
  _, heads, _, d = shape
  # Not sliced in vain: a compressed cache is read as it is.
  return x if (x.shape[1], x.shape[3]) == (heads, d) else x[:, :heads, :, :d]


def rotate(x: jax.Array, position: jax.Array) -> jax.Array:
  """Turns the pair (x_i, x_{i + d/2}) by the angle position * 10000^(-2i / d).

  Args:
    x: [batch, time, heads, d].
    position: [time] int.

  Returns:
    As x.

  >>> rotate(jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2), jnp.array([0])).tolist()
  [[[[1.0, 0.0]]]]
  """
  half = x.shape[-1] // 2
  speed = 10000.0 ** (-jnp.arange(half) / half)
  angle = (position[:, None] * speed[None, :])[None, :, None, :]
  # Angles are float32 whatever x is: at position 1000 bfloat16 is off by 4.
  cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, position: jax.Array
) -> jax.Array:
  """softmax(q k^T / sqrt(d)) v over the keys at or before each position.

  Args:
    q: [batch, time, heads, d].
    k: [batch, kv_heads, keys, d]; key j is at position j.
    v: [batch, kv_heads, keys, m].
    position: [time] int, of the queries.

  Returns:
    [batch, time, heads, m]. The softmax is taken in float32. The products are in
    the scopes 'attention/scores' and 'attention/values'.
  """
  b, t, heads, d = q.shape
  kv_heads = k.shape[-3]
  # The queries of a group become further rows of one product with the keys they
  # share: a plain batched matmul, which CPUs run twice as fast as a grouped einsum.
  # [b, t, kv_heads, group, d] -> [b, kv_heads, group, t, d].
  q = (q / d**0.5).reshape(b, t, kv_heads, -1, d).transpose(0, 2, 3, 1, 4)
  queries = q.reshape(b, kv_heads, -1, d)  # [b, kv_heads, group * t, d]
  with jax.named_scope('attention/scores'):
    scores = jnp.einsum(
      'bkrd,bksd->bkrs', queries, k, preferred_element_type=jnp.float32
    )
  seen = jnp.arange(k.shape[-2])[None, :] <= position[:, None]
  # Rows are split into group and time again, as the mask depends on time.
  scores = scores.reshape(*q.shape[:-1], k.shape[-2])
  scores = jnp.where(seen[None, None, None], scores, -jnp.inf)
  weights = jax.nn.softmax(scores).astype(v.dtype)
  weights = weights.reshape(*queries.shape[:-1], -1)
  with jax.named_scope('attention/values'):
    y = jnp.einsum('bkrs,bksd->bkrd', weights, v)
  # The inverse of the first transpose: heads go back behind time.
  y = y.reshape(*q.shape[:-1], -1)
  return y.transpose(0, 3, 1, 2, 4).reshape(b, t, heads, -1)
