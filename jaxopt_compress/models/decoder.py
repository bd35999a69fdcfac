"""A decoder-only transformer: each position predicts the token after it.

    x = x + attention(norm(x))
    x = x + down(silu(gate(n)) * up(n)),   n = norm(x)

RMSNorm (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4) and
SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202, eq. 6); attention is in
`causal`. With `lookback`, a position starts as the sum of the embeddings of its token
and of the tokens before it, with one table for each distance, after the n-grams of
Pagnoni et al. 2024, https://arxiv.org/abs/2412.09871, section 3.2.1. Small models of
bytes learn far faster with it.

The blocks are one scanned block whose parameters have a leading layer axis, or a list
of blocks; `stack` and `unstack` convert the parameters.
"""

from functools import partial
from typing import Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.models import causal

Cache = dict[str, jax.Array]


class Decoder(nnx.Module):
  """Logits of the next token, at every position.

  Args:
    vocab: how many tokens there are; 256 for bytes.
    width: of the residual stream.
    depth: how many blocks.
    heads: query heads; the head size is width / heads.
    kv_heads: key and value heads, each shared by heads / kv_heads query heads;
      None for as many as heads.
    mlp_width: hidden features of the SwiGLU; None for 8/3 of width, rounded up
      to a multiple of 32.
    max_length: the longest input, and the size of a cache.
    lookback: how many tokens before each one are embedded with it; those before the
      first are token 0.
    tied: whether the head is the embedding's table, transposed.
    scan: whether the blocks are one stacked block under `lax.scan`, or a list.
    remat: whether the backward pass recomputes a block's activations.
    dropout: the rate on what attention and MLP add to the residual stream.
    dtype: of the computation; None takes that of the parameters.
    param_dtype: of the parameters.
    rngs: streams of keys, consumed for the initial weights.

  Raises:
    ValueError: sizes that do not divide.

  >>> model = Decoder(vocab=11, width=8, depth=2, heads=2, rngs=nnx.Rngs(0))
  >>> logits, out = model(jnp.zeros((3, 5), jnp.int32))
  >>> logits.shape, list(out)
  ((3, 5, 11), ['embed', 'block0', 'block1', 'features'])
  """

  def __init__(
    self,
    vocab: int = 256,
    width: int = 256,
    depth: int = 4,
    heads: int = 4,
    kv_heads: int | None = None,
    mlp_width: int | None = None,
    max_length: int = 256,
    *,
    lookback: int = 0,
    tied: bool = True,
    scan: bool = True,
    remat: bool = False,
    dropout: float = 0.0,
    dtype=None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    kv_heads = heads if kv_heads is None else kv_heads
    check_sizes(width, heads, kv_heads)
    mlp_width = swiglu_width(width) if mlp_width is None else mlp_width
    dtypes = dict(dtype=dtype, param_dtype=param_dtype)
    self.max_length, self.dropout = max_length, dropout
    self.scan, self.remat = scan, remat
    self.dtype = dtype or param_dtype

    def block(key):
      sizes = (width, heads, kv_heads, mlp_width)
      return Block(*sizes, depth, dropout, dtypes, rngs=nnx.Rngs(key))

    # One key a layer, so that both forms draw the same weights from the same seed.
    keys = jax.random.split(rngs.params(), depth)
    self.blocks = nnx.vmap(block)(keys) if scan else nnx.List(map(block, keys))
    self.embed = nnx.Embed(vocab, width, **dtypes, rngs=rngs)
    self.lookback = lookback
    if lookback:
      self.past = nnx.Embed(lookback * vocab, width, **dtypes, rngs=rngs)
    self.norm = nnx.RMSNorm(width, **dtypes, rngs=rngs)
    self.head = (
      None
      if tied
      else nnx.Linear(width, vocab, use_bias=False, **dtypes, rngs=rngs)
    )

  def __call__(
    self,
    x: jax.Array | tuple[jax.Array, Cache],
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Maps tokens to (logits, intermediates).

    Args:
      x: tokens [batch, time] int; or a pair of tokens and a cache, to continue the
        sequence in the cache. A token outside the vocabulary gives NaN.
      train: whether to use dropout.
      rngs: needed for dropout.

    Returns:
      logits [batch, time, vocab], and 'embed', 'block0', ..., 'features', each
      [batch, time, width]. With a cache also 'cache', updated by these tokens.
    """
    tokens, cache = x if isinstance(x, tuple) else (x, None)
    self._check_tokens(tokens)
    begin = 0 if cache is None else cache['length']
    position = begin + jnp.arange(tokens.shape[-1])
    x, recent = self._embed(tokens, cache)
    out = {'embed': x}
    x, blocks, kv = self._run(x, position, cache, self._keys(train, rngs))
    out |= {f'block{i}': blocks[i] for i in range(self.depth)}
    out['features'] = x = self.norm(x)
    logits = self.embed.attend(x) if self.head is None else self.head(x)
    out = {name: y.reshape(*tokens.shape, -1) for name, y in out.items()}
    logits = logits.reshape(*tokens.shape, -1)
    if cache is not None:
      # Past max_length the cache write is clamped and attention reads wrong keys, so
      # the logits say so.
      full = (position >= self.max_length)[None, :, None]
      logits = jnp.where(full, jnp.nan, logits)
      length = begin + tokens.shape[-1]
      out['cache'] = {'key': kv[0], 'value': kv[1], 'length': length} | recent
    return logits, out

  @property
  def depth(self) -> int:
    """How many blocks there are: from their parameters, as some may have gone."""
    if self.scan:
      return jax.tree.leaves(nnx.state(self.blocks))[0].shape[0]
    return len(self.blocks)

  def init_cache(self, batch: int) -> Cache:
    """An empty cache for `decode`.

    Returns:
      'key' and 'value' [depth, batch, kv_heads, max_length, head_dim], as large as
      the largest block needs; 'length', the number of tokens seen, int32, and with
      lookback the last of them, 'recent' [batch, lookback] int32.
    """
    blocks = [self.blocks] if self.scan else self.blocks
    sizes = [block.attn.cache_sizes() for block in blocks]
    heads, *features = np.max([(0, 0, 0), *sizes], axis=0).tolist()
    key, value = (
      jnp.zeros((self.depth, batch, heads, self.max_length, d), self.dtype)
      for d in features
    )
    return {
      'key': key,
      'value': value,
      'length': jnp.zeros((), jnp.int32),
    } | self._recent(batch)

  def decode(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Continues from a cache by one or more tokens.

    As a function of parameters this is `apply(params, variables, (tokens,
    cache))`, with the cache in the intermediates.

    Args:
      tokens: [batch, time] int.
      cache: from `init_cache`, or from the previous call.

    Returns:
      logits [batch, time, vocab], NaN where the cache was full, and the cache.
    """
    logits, out = self((tokens, cache))
    return logits, out['cache']

  def _recent(self, batch):
    if not self.lookback:
      return {}
    return {'recent': jnp.zeros((batch, self.lookback), jnp.int32)}

  def _embed(self, tokens, cache):
    """Embeds tokens [b, t]: x [b * t, width], and the last tokens for a cache."""
    # One row for each token: with [batch, time, width], XLA runs the gradients of
    # products 1.5 times slower on CPU. A tied head needs table entries of size
    # 1 / sqrt(width); the factor starts the stream at size one.
    x = self.embed(tokens.reshape(-1)) * self.embed.features**0.5
    n, (b, t) = self.lookback, tokens.shape
    if not n:
      return x, {}
    before = (cache or self._recent(b))['recent']
    seen = jnp.concatenate([before, tokens.astype(jnp.int32)], axis=-1)
    # The token k + 1 places back is looked up in rows [k * vocab, (k + 1) * vocab).
    # seen[:, n + i] is token i, so the slice starts at n - 1 - k.
    past = [
      seen[:, n - 1 - k : n - 1 - k + t] + k * self.embed.embedding.shape[0]
      for k in range(n)
    ]
    y = self.past(jnp.stack(past, -1).reshape(-1, n)).sum(-2)
    # A sum of n + 1 embeddings, brought back to the size of one.
    x = (x + y * self.embed.features**0.5) / (n + 1) ** 0.5
    return x, {'recent': seen[:, t:]}

  def _run(self, x, position, cache, keys):
    """The blocks, scanned or in a row, by the same body."""
    kv = None if cache is None else (cache['key'], cache['value'])

    def body(carry, inputs):
      (x, kv), (state, key, layer) = carry, inputs
      rngs = None if key is None else nnx.Rngs(key)
      # The whole cache is carried and written in place: taking a layer out and
      # putting it back would copy it.
      x, kv = nnx.merge(graphdef, state)(x, position, kv, rngs, layer)
      return (x, kv), x

    body = jax.checkpoint(body) if self.remat else body
    if self.scan:
      graphdef, states = nnx.split(self.blocks)
      # Only a cache is read by the number of the layer.
      layers = None if cache is None else jnp.arange(self.depth)
      (x, kv), blocks = lax.scan(body, (x, kv), (states, keys, layers))
      return x, blocks, kv
    blocks = []
    for i, block in enumerate(self.blocks):
      graphdef, state = nnx.split(block)
      (x, kv), _ = body((x, kv), (state, _layer(keys, i), i))
      blocks.append(x)
    return x, blocks, kv

  def _keys(self, train, rngs):
    if not train or self.dropout == 0:
      return None
    if rngs is None:
      raise ValueError(
        f'This Decoder has dropout={self.dropout}, and train=True came without'
        ' rngs. Pass rngs=jax.random.key(...) to apply, nnx.Rngs to a module.'
      )
    return jax.random.split(rngs.dropout(), self.depth)

  def _check_tokens(self, tokens):
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
      raise ValueError(
        f'Tokens are [batch, time] integers, not {tokens.dtype}'
        f'{list(tokens.shape)}. Add a batch axis with tokens[None].'
      )
    if tokens.shape[-1] > self.max_length:
      raise ValueError(
        f'{tokens.shape[-1]} tokens are more than max_length='
        f'{self.max_length}. Cut the input, or build the model with a larger'
        ' max_length; no parameter depends on it.'
      )


def _layer(tree, i):
  return jax.tree.map(lambda a: a[i], tree)


def _stacked(trees):
  return jax.tree.map(lambda *a: jnp.stack(a), *trees)


def swiglu_width(width: int) -> int:
  """8/3 of the width, rounded up to a multiple of 32.

  Three matrices then have the size of the usual two with 4 times the width.
  """
  return -(-8 * width // 96) * 32


def check_sizes(width: int, heads: int, kv_heads: int) -> None:
  """Raises unless heads divide the width evenly, and key heads the heads."""
  if width % heads or (width // heads) % 2:
    raise ValueError(
      f'width={width} over heads={heads} is no even head size, which rotary'
      ' positions need. Choose a width that is a multiple of 2 * heads.'
    )
  if heads % kv_heads:
    raise ValueError(
      f'heads={heads} is no multiple of kv_heads={kv_heads}: each key head is'
      ' shared by the same number of query heads.'
    )


class Block(nnx.Module):
  """Attention and MLP, each added to the residual stream."""

  def __init__(
    self, width, heads, kv_heads, mlp_width, depth, dropout, dtypes, *, rngs
  ):
    linear = partial(nnx.Linear, use_bias=False, **dtypes, rngs=rngs)
    # 2 * depth terms are added to the stream; this variance keeps their sum at size
    # one. Radford et al. 2019 (GPT-2), section 2.3.
    small = nnx.initializers.variance_scaling(0.5 / depth, 'fan_in', 'normal')
    projections = dict(
      linear=linear, linear_out=partial(linear, kernel_init=small)
    )
    self.attn_norm = nnx.RMSNorm(width, **dtypes, rngs=rngs)
    self.attn = causal.Attention(width, heads, kv_heads, **projections)
    self.mlp_norm = nnx.RMSNorm(width, **dtypes, rngs=rngs)
    self.mlp = SwiGLU(width, mlp_width, **projections)
    self.dropout = nnx.Dropout(dropout)

  def __call__(self, x, position, kv, rngs, layer):
    """Maps x [b * t, width], and the cache of its attention, to the same."""
    drop = partial(self.dropout, deterministic=rngs is None, rngs=rngs)
    y, kv = self.attn(self.attn_norm(x), position, kv, layer)
    x = x + drop(y)
    return x + drop(self.mlp(self.mlp_norm(x))), kv


class SwiGLU(nnx.Module):
  """down(silu(gate(x)) * up(x))."""

  def __init__(self, width, mlp_width, *, linear, linear_out):
    self.gate = linear(width, mlp_width)
    self.up = linear(width, mlp_width)
    self.down = linear_out(mlp_width, width)

  def __call__(self, x):
    return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def stack(params: dict[str, Any]) -> dict[str, Any]:
  """Parameters of an unrolled Decoder as those of a scanned one."""
  blocks = params['blocks']
  if set(blocks) != {str(i) for i in range(len(blocks))}:
    raise ValueError(
      f'blocks/ has {sorted(blocks)}, not 0, 1, ...: these parameters are'
      ' stacked already.'
    )
  in_order = [blocks[str(i)] for i in range(len(blocks))]
  return params | {'blocks': _stacked(in_order)}


def unstack(params: dict[str, Any]) -> dict[str, Any]:
  """Parameters of a scanned Decoder as those of an unrolled one."""
  blocks = params['blocks']
  if '0' in blocks:
    raise ValueError(
      f'blocks/ has {sorted(blocks)}: these parameters are unrolled already.'
    )
  depth = len(jax.tree.leaves(blocks)[0])
  unrolled = {str(i): _layer(blocks, i) for i in range(depth)}
  return params | {'blocks': unrolled}
