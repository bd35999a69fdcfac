"""An encoder-only transformer: each position sees all others.

    x = x + attention(norm(x))
    x = x + down(silu(gate(n)) * up(n)),   n = norm(x)
    y_i = sum_j softmax_j(R_i q_i . R_j k_j / sqrt(d)) v_j

It is trained to fill in what is hidden (`data.masked_text`): Devlin et al. 2018,
https://arxiv.org/abs/1810.04805, section 3.1. Norms, MLP and rotary positions are those
of `decoder` and `causal`. Padding is no key, and what it holds reaches no other token.
"""

from functools import partial

from flax import nnx
import jax
import jax.numpy as jnp

from jaxopt_compress.models import causal
from jaxopt_compress.models import decoder


class Encoder(nnx.Module):
  """Logits of the token at every position.

  Args:
    vocab: how many tokens there are; 256 for bytes.
    width: of the residual stream.
    depth: how many blocks.
    heads: of the attention; the head size is width / heads.
    mlp_width: hidden features of the SwiGLU; None for 8/3 of width, rounded up
      to a multiple of 32.
    dropout: the rate on what attention and MLP add to the residual stream.
    dtype: of the computation; None takes that of the parameters.
    param_dtype: of the parameters.
    rngs: streams of keys, consumed for the initial weights.

  Raises:
    ValueError: sizes that do not divide.

  >>> def run(tokens):
  ...   model = Encoder(vocab=11, width=8, depth=1, heads=2, rngs=nnx.Rngs(0))
  ...   return model(tokens)
  >>> logits, out = jax.eval_shape(run, jnp.zeros((3, 5), jnp.int32))
  >>> logits.shape, sorted(out)
  ((3, 5, 11), ['block0', 'embed', 'features', 'key0', 'query0', 'value0'])
  """

  def __init__(
    self,
    vocab: int = 256,
    width: int = 256,
    depth: int = 4,
    heads: int = 4,
    mlp_width: int | None = None,
    *,
    dropout: float = 0.0,
    dtype=None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    decoder.check_sizes(width, heads, heads)
    mlp_width = decoder.swiglu_width(width) if mlp_width is None else mlp_width
    dtypes = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    self.embed = nnx.Embed(vocab, width, **dtypes)
    self.blocks = nnx.List(
      [
        Block(width, heads, mlp_width, depth, dropout, dtypes)
        for _ in range(depth)
      ]
    )
    self.norm = nnx.RMSNorm(width, **dtypes)

  def __call__(
    self,
    x: jax.Array | tuple[jax.Array, jax.Array],
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Maps tokens to (logits, intermediates).

    Args:
      x: tokens [batch, time] int; or a pair of tokens and a mask [batch, time], 0 or
        False where there is padding. A token outside the vocabulary gives NaN.
      train: whether to use dropout.
      rngs: needed for dropout.

    Returns:
      logits [batch, time, vocab], by the table of the embedding, and 'embed',
      'block0', ..., 'features' [batch, time, width]; 'query0', 'key0', 'value0', ... as
      they meet in the attention, of the same shape, for `distillation.features.minilm`.
    """
    tokens, mask = x if isinstance(x, tuple) else (x, None)
    _check(tokens, mask)
    if mask is not None:
      # Padding may be -1, whose embedding is NaN, and 0 * NaN is NaN.
      tokens = jnp.where(mask.astype(bool), tokens, 0)
    # Table entries of size 1 / sqrt(width) make good logits; the factor starts the
    # stream at size one.
    x = self.embed(tokens) * self.embed.features**0.5
    out = {'embed': x}
    for i, block in enumerate(self.blocks):
      x, met = block(x, mask, train=train, rngs=rngs)
      names = f'query{i}', f'key{i}', f'value{i}'
      out |= dict(zip(names, met, strict=True))
      out[f'block{i}'] = x
    out['features'] = x = self.norm(x)
    return self.embed.attend(x), out


class Block(nnx.Module):
  """Attention and MLP, each added to the residual stream."""

  def __init__(self, width, heads, mlp_width, depth, dropout, dtypes):
    linear = partial(nnx.Linear, use_bias=False, **dtypes)
    # 2 * depth terms are added to the stream; this variance keeps their sum at size
    # one. Radford et al. 2019 (GPT-2), section 2.3.
    small = nnx.initializers.variance_scaling(0.5 / depth, 'fan_in', 'normal')
    projections = dict(
      linear=linear, linear_out=partial(linear, kernel_init=small)
    )
    self.attn_norm = nnx.RMSNorm(width, **dtypes)
    self.attn = Attention(width, heads, **projections)
    self.mlp_norm = nnx.RMSNorm(width, **dtypes)
    self.mlp = decoder.SwiGLU(width, mlp_width, **projections)
    self.dropout = nnx.Dropout(dropout)

  def __call__(self, x, mask, *, train, rngs):
    """Maps x [batch, time, width] to the same, and the attention's q, k and v."""
    drop = partial(self.dropout, deterministic=not train, rngs=rngs)
    y, met = self.attn(self.attn_norm(x), mask)
    x = x + drop(y)
    return x + drop(self.mlp(self.mlp_norm(x))), met


class Attention(nnx.Module):
  """Attention to all tokens; its heads follow from the kernels."""

  def __init__(self, width, heads, *, linear, linear_out):
    self.head_dim = width // heads
    self.q = linear(width, width)
    self.k = linear(width, width)
    self.v = linear(width, width)
    self.o = linear_out(width, width)

  def __call__(self, x, mask):
    """Maps x [batch, time, width] to the same, and (q, k, v) [batch, time, width]."""
    position = jnp.arange(x.shape[-2])

    def by_head(y, heads, features):
      return y.reshape(*y.shape[:-1], heads, features)

    q = causal.rotate(by_head(self.q(x), -1, self.head_dim), position)
    k = causal.rotate(by_head(self.k(x), -1, self.head_dim), position)
    v = by_head(self.v(x), q.shape[-2], -1)
    with jax.named_scope('attention/scores'):
      scores = jnp.einsum(
        'bqhd,bkhd->bhqk',
        q / self.head_dim**0.5,
        k,
        preferred_element_type=jnp.float32,
      )
    if mask is not None:
      # A finite number: a row of padding alone would be 0 / 0.
      seen = mask.astype(bool)[:, None, None, :]
      scores = jnp.where(seen, scores, -1e30)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    with jax.named_scope('attention/values'):
      y = jnp.einsum('bhqk,bkhd->bqhd', weights, v)
    flat = (z.reshape(*x.shape[:-1], -1) for z in (y, q, k, v))
    y, *met = flat
    return self.o(y), tuple(met)


def _check(tokens, mask):
  if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(
      f'Tokens are [batch, time] integers, not {tokens.dtype}{list(tokens.shape)}.'
      ' Add a batch axis with tokens[None].'
    )
  if mask is not None and mask.shape != tokens.shape:
    raise ValueError(
      f'The mask is {list(mask.shape)}; as tokens, {list(tokens.shape)}, is'
      ' expected: True for a token, False for padding.'
    )
