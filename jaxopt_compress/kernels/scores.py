"""Attention in one call: scores of queries and keys, and means of values by them.

    out[t] = sum_s softmax_s(scale q[t] k[s] + bias[t, s]) v[s]

On CPUs the library computes it, block by block; elsewhere XLA does. Derivatives are
those of the program for XLA.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.cpu import attention as cpu
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.quantization import straight

_OURS = (jnp.float32, jnp.bfloat16)


def attend(p: cpu.Operands, form: cpu.Form, out_dtype=None) -> jax.Array:
  """Attention over heads that lie in any order, by the kernel of the platform.

  Args:
    p: what it reads.
    form: what is static.
    out_dtype: of the result; that of the query if it is None.

  Returns:
    [batch, T, heads, d of values], its axes in the order `form.out`.
  """
  out_dtype = jnp.dtype(p.query.dtype if out_dtype is None else out_dtype)
  whole = functools.partial(in_xla, form=form, out_dtype=out_dtype)
  if not native.available() or not _is_ours(p, out_dtype):
    return whole(p)
  ours = functools.partial(cpu.attention, form=form, out_dtype=out_dtype)
  fixed = jax.tree.map(lax.stop_gradient, p)
  out = lax.platform_dependent(fixed, cpu=ours, default=whole)
  return straight.as_if(whole, out, p)


def _is_ours(p, out_dtype):
  """Whether the library has these types, and there is something to do."""
  types = p.query.dtype, p.key.dtype, p.value.dtype, out_dtype
  known = all(t in (*_OURS, jnp.int8) for t in types)
  biased = p.bias is None or p.bias.dtype in _OURS
  filled = all(p.query.shape + p.key.shape + p.value.shape)
  return known and biased and filled


def in_xla(p: cpu.Operands, form: cpu.Form, out_dtype) -> jax.Array:
  """`attend`, as a program of other operations."""
  key = _numbers(p.key, p.key_scale, p.layer, p.query.dtype)
  value = _numbers(p.value, p.value_scale, p.layer, p.query.dtype)
  # Heads that share keys are an axis of their own: [batch, key heads, share, T, d].
  query = _ordered(p.query, form.query)
  key, value = _ordered(key, form.key), _ordered(value, form.value)
  b, h, t, d = query.shape
  heads, s = key.shape[1:3]
  # Head i of the queries reads head i // share of the keys.
  query = query.reshape(b, heads, h // heads, t, d)
  kind = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum(
    'bhgtd,bhsd->bhgts', query, key, preferred_element_type=kind
  ) * jnp.asarray(form.scale, kind)
  if p.bias is not None:
    scores += _by_share(p.bias, heads).astype(kind)
  allowed = _allowed(p, form, t, s)
  if allowed is not None:
    allowed = _by_share(allowed, heads)
    scores = jnp.where(allowed, scores, jnp.asarray(form.masked, kind))
  # As the kernel has them, whatever type the products are of.
  weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
  out = jnp.einsum('bhgts,bhsd->bhgtd', weights.astype(value.dtype), value)
  out = out.reshape(b, h, t, -1)
  if p.query_lengths is not None:
    there = jnp.arange(t)[None] < p.query_lengths[:, None]
    out *= there[:, None, :, None].astype(out.dtype)
  # The two orders that results have are their own inverses.
  return _ordered(out, form.out).astype(out_dtype)


def _numbers(x, scale, layer, dtype):
  """What a key or a value stands for, of one layer."""
  if layer is not None:
    x = lax.dynamic_index_in_dim(x, layer, keepdims=False)
  if scale is None:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(dtype)
  if layer is not None:
    scale = lax.dynamic_index_in_dim(scale, layer, keepdims=False)
  return (x.astype(jnp.float32) * scale).astype(dtype)


def _ordered(x, order):
  """[batch, head, place, feature] of axes in an order, or back in case of 'bthd'."""
  return x.transpose([order.index(axis) for axis in 'bhtd'])


def _by_share(x, heads):
  """[batch, key heads, share, T, S] of [batch, heads, T, S], sizes of one kept."""
  b, h, t, s = x.shape
  return x.reshape(b, *((1, 1) if h == 1 else (heads, h // heads)), t, s)


def _allowed(p, form, t, s):
  """Which keys queries attend to: [batch, heads, T, S], sizes of one broadcast."""
  query, key = np.arange(t)[:, None], np.arange(s)[None, :]
  fixed = np.ones((t, s), bool)
  if form.causal:
    fixed &= key <= query
  if form.window is not None:
    left, right = form.window
    # query - left <= key <= query + right.
    fixed &= (query <= key + left) & (query >= key - right)
  found = [] if fixed.all() else [jnp.asarray(fixed[None, None])]
  if p.mask is not None:
    found.append(p.mask)
  for lengths, places, shape in (
    (p.query_lengths, np.arange(t), (-1, 1, t, 1)),
    (p.key_lengths, np.arange(s), (-1, 1, 1, s)),
  ):
    if lengths is not None:
      found.append((places[None] < lengths[:, None]).reshape(shape))
  return functools.reduce(jnp.logical_and, found) if found else None


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
  *,
  scale: float | None = None,
  is_causal: bool = False,
  query_seq_lengths: jax.Array | None = None,
  key_value_seq_lengths: jax.Array | None = None,
  local_window_size: int | tuple[int, int] | None = None,
) -> jax.Array:
  """`jax.nn.dot_product_attention`, fast on CPUs.

  Differentiable; works under jit, grad, vmap, scan, remat and shard_map. On CPUs a key
  that a block of queries may not attend to is not read: nothing comes of a NaN there.

  Args:
    query: [batch, T, heads, d] floating, or without the batch.
    key, value: [batch, S, key heads, d] of the same dtype; heads are a multiple of key
      heads.
    bias: added to scores, broadcasts to [batch, heads, T, S].
    mask: bool, likewise; True where a query attends to a key.
    scale: of scores; 1 / sqrt(d) if it is None.
    is_causal: whether query t sees keys 0 to t only.
    query_seq_lengths: [batch] int32: results of queries from there on are 0.
    key_value_seq_lengths: [batch] int32: keys from there on are not seen.
    local_window_size: query t sees keys t - left to t + right only; one number is both.

  Returns:
    The shape and dtype of the query. A query that sees no key gets the mean of all
    values.

  Raises:
    ValueError: shapes or types that do not fit each other.

  >>> x = jnp.ones((2, 5, 4, 8))
  >>> attention(x, x, x, is_causal=True).shape
  (2, 5, 4, 8)
  """
  query, key, value = map(jnp.asarray, (query, key, value))
  single = query.ndim == 3
  if single:
    query, key, value = query[None], key[None], value[None]
  _check(query, key, value)
  shape = (*query.shape[:1], query.shape[2], query.shape[1], key.shape[1])
  mask = _full(mask, shape, 'mask')
  if mask is not None and mask.dtype != bool:
    raise ValueError(
      f'mask is of {mask.dtype}, and must be of bool. What is added to scores is a'
      ' `bias`.'
    )
  if isinstance(local_window_size, int):
    local_window_size = (local_window_size, local_window_size)
  out = attend(
    cpu.Operands(
      query,
      key,
      value,
      bias=_full(bias, shape, 'bias'),
      mask=mask,
      query_lengths=_lengths(query_seq_lengths, query, 'query_seq_lengths'),
      key_lengths=_lengths(
        key_value_seq_lengths, query, 'key_value_seq_lengths'
      ),
    ),
    cpu.Form(
      scale=float(1 / math.sqrt(query.shape[-1]) if scale is None else scale),
      causal=is_causal,
      window=local_window_size,
    ),
  )
  return out[0] if single else out


def _check(query, key, value):
  """Raises ValueError for operands that do not fit each other."""
  b, _, h, d = query.shape if query.ndim == 4 else (0,) * 4
  fits = (
    query.ndim == key.ndim == 4
    and key.shape == value.shape
    and (key.shape[0], key.shape[3]) == (b, d)
    and key.shape[2] > 0
    and h % key.shape[2] == 0
  )
  if not fits:
    raise ValueError(
      f'query {query.shape}, key {key.shape} and value {value.shape} do not fit each'
      ' other: expected [batch, T, heads, d] and twice [batch, S, key heads, d], with'
      ' heads a multiple of key heads.'
    )
  if not query.dtype == key.dtype == value.dtype:
    raise ValueError(
      f'query, key and value are of {query.dtype}, {key.dtype} and {value.dtype}.'
      ' Cast them to one dtype.'
    )
  if not jnp.issubdtype(query.dtype, jnp.floating):
    raise ValueError(f'query is of {query.dtype}, and must be floating.')


def _full(x, shape, name):
  """With four axes, of which each is one or has the size of scores."""
  if x is None:
    return None
  x = jnp.asarray(x)
  # Missing axes are the first ones, as in numpy.
  wide = x.reshape((1,) * (4 - x.ndim) + x.shape)
  if wide.ndim > 4 or any(n not in (1, m) for n, m in zip(wide.shape, shape)):
    raise ValueError(
      f'{name} {x.shape} does not broadcast to [batch, heads, T, S], which is {shape}'
      ' here.'
    )
  return wide


def _lengths(x, query, name):
  if x is None:
    return None
  x = jnp.asarray(x)
  if x.shape != query.shape[:1] or not jnp.issubdtype(x.dtype, jnp.integer):
    raise ValueError(
      f'{name} is {x.dtype}{list(x.shape)}, and must be a whole number for each of'
      f' {len(query)} sequences.'
    )
  return x.astype(jnp.int32)
