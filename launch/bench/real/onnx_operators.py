"""What operators of ONNX compute: `Name(xp, *inputs, **attributes)`.

`xp` is numpy where all inputs are known while a function is traced, else `jax.numpy`.
Their names are ONNX's. What a graph asks for beyond what is here is an error, as
Python raises it for an argument that is not there.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# ruff: noqa: N802  operators have ONNX's names

_TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}


def _ranked(xp, *inputs):
  """Of one rank: axes of size 1 in front, as broadcasting adds them.

  A constant of one entry is a number, beside an array that has the rank.
  """
  rank = max(np.ndim(x) for x in inputs)
  single = [isinstance(x, np.ndarray) and x.size == 1 for x in inputs]
  pairs = list(zip(inputs, single, strict=True))
  if any(np.ndim(x) == rank and not one for x, one in pairs):
    inputs = [x.reshape(()) if one else x for x, one in pairs]
  return [
    x if np.ndim(x) in (0, rank) else xp.expand_dims(x, _axes_in_front(x, rank))
    for x in inputs
  ]


def _axes_in_front(x, rank):
  return tuple(range(rank - np.ndim(x)))


def _ints(x):
  return None if x is None else [int(i) for i in np.ravel(x)]


# ------------------------------------------------------------------ entry by entry


def Add(xp, a, b):
  return xp.add(*_ranked(xp, a, b))


def Sub(xp, a, b):
  return xp.subtract(*_ranked(xp, a, b))


def Mul(xp, a, b):
  return xp.multiply(*_ranked(xp, a, b))


def Div(xp, a, b):
  a, b = _ranked(xp, a, b)
  if np.result_type(a).kind in 'iu':
    return xp.asarray(a) // b  # of positive numbers, as those of shapes are
  return xp.divide(a, b)


def Pow(xp, a, b):
  if isinstance(b, np.ndarray) and b.size == 1 and b.item() == 2:
    return a * a
  return xp.power(*_ranked(xp, a, b))


def Max(xp, *inputs):
  y, *rest = _ranked(xp, *inputs)
  for x in rest:
    y = xp.maximum(y, x)
  return y


def Equal(xp, a, b):
  return xp.equal(*_ranked(xp, a, b))


def Not(xp, x):
  return xp.logical_not(x)


def Sqrt(xp, x):
  return xp.sqrt(x)


def Reciprocal(xp, x):
  return 1 / x


def Exp(xp, x):
  return xp.exp(x)


def Tanh(xp, x):
  return xp.tanh(x)


def Erf(xp, x):
  return lax.erf(jnp.asarray(x))


def Sigmoid(xp, x):
  return jax.nn.sigmoid(jnp.asarray(x))


def Relu(xp, x):
  return xp.maximum(x, np.float32(0))


def HardSigmoid(xp, x, alpha=0.2, beta=0.5):
  return xp.clip(np.float32(alpha) * x + np.float32(beta), 0, 1)


def HardSwish(xp, x):
  return x * HardSigmoid(xp, x, 1 / 6, 0.5)


def Clip(xp, x, low=None, high=None, **attributes):
  low, high = attributes.get('min', low), attributes.get('max', high)
  low, high = (None if b is None else np.float32(b).item() for b in (low, high))
  return xp.clip(x, low, high)


def Cast(xp, x, to):
  return xp.asarray(x).astype(_TYPES[to])


def Identity(xp, x):
  return x


# ------------------------------------------------------------- shapes and places


def Constant(xp, value):
  return value


def Shape(xp, x):
  return np.array(np.shape(x), np.int64)


def Size(xp, x):
  return np.array(np.size(x), np.int64)


def ConstantOfShape(xp, shape, value=None):
  [value] = [0.0] if value is None else value
  kind = np.float32 if isinstance(value, float) else np.int64
  return np.full(_ints(shape), value, kind)


def Reshape(xp, x, shape, allowzero=0):
  shape = _ints(shape)
  if not allowzero:  # then 0 is what it was
    shape = [np.shape(x)[i] if n == 0 else n for i, n in enumerate(shape)]
  return xp.reshape(x, shape)


def Expand(xp, x, shape):
  shape = np.broadcast_shapes(np.shape(x), tuple(_ints(shape)))
  return xp.broadcast_to(*_ranked(xp, x, np.empty(shape, bool))[:1], shape)


def Transpose(xp, x, perm=None):
  return xp.transpose(x, perm)


def Unsqueeze(xp, x, axes):
  return xp.expand_dims(x, tuple(_ints(axes)))


def Squeeze(xp, x, axes=None):
  return xp.squeeze(x, None if axes is None else tuple(_ints(axes)))


def Concat(xp, *inputs, axis):
  return xp.concatenate(inputs, axis)


def Split(xp, x, sizes=None, axis=0, split=None, num_outputs=None):
  sizes = _ints(sizes if sizes is not None else split)
  if sizes is None:
    # The last is what is left.
    part = -(-np.shape(x)[axis] // num_outputs)
    ends = [part * i for i in range(1, num_outputs)]
  else:
    ends = np.cumsum(sizes)[:-1].tolist()
  return tuple(xp.split(x, ends, axis))


def Slice(xp, x, starts, ends, axes=None, steps=None):
  starts, ends = _ints(starts), _ints(ends)
  axes = _ints(axes) or range(len(starts))
  steps = _ints(steps) or [1] * len(starts)
  places = [slice(None)] * np.ndim(x)
  for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
    # Far below zero, backwards, is as far as there is: Python's None.
    end = None if step < 0 and end < -np.shape(x)[axis] else end
    places[axis] = slice(start, end, step)
  return x[tuple(places)]


def Gather(xp, x, indices, axis=0):
  if isinstance(indices, np.ndarray) and indices.ndim == 0:
    return x[(slice(None),) * (axis % np.ndim(x)) + (int(indices),)]
  return xp.take(x, indices, axis)


def Pad(xp, x, pads, value=None, axes=None, mode='constant'):
  rank = np.ndim(x)
  axes, pads = _ints(axes) or range(rank), _ints(pads)
  width = [(0, 0)] * rank
  for axis, both in zip(axes, zip(*np.split(np.array(pads), 2)), strict=True):
    width[axis] = both
  if mode == 'constant':
    return xp.pad(x, width, constant_values=0 if value is None else value)
  return xp.pad(x, width, mode=mode)


def Resize(xp, x, roi=None, scales=None, sizes=None, mode='nearest', **how):
  """Of whole factors, to the nearest: each entry several times."""
  shape = np.shape(x)
  if sizes is not None and np.size(sizes):
    factors = [n / old for n, old in zip(_ints(sizes), shape, strict=True)]
  else:
    factors = np.ravel(scales).tolist()
  rounding = how.pop('nearest_mode', 'round_prefer_floor')
  places = how.pop('coordinate_transformation_mode', 'half_pixel')
  whole = all(f == round(f) >= 1 for f in factors)
  known = (places, rounding) in (
    ('asymmetric', 'floor'),
    ('half_pixel', 'round_prefer_floor'),
  )
  if mode != 'nearest' or not whole or not known:
    raise ValueError(
      f'Resize is known of whole factors to the nearest, here {mode} by'
      f' {factors}, {places}, {rounding}.'
    )
  for axis, factor in enumerate(factors):
    if factor > 1:
      x = _repeated(xp, x, round(factor), axis)
  return x


def _repeated(xp, x, times, axis):
  shape = list(np.shape(x))
  wide = [*shape[: axis + 1], times, *shape[axis + 1 :]]
  x = xp.broadcast_to(xp.expand_dims(x, axis + 1), wide)
  shape[axis] *= times
  return xp.reshape(x, shape)


# --------------------------------------------------------------------- reductions


def _reduced(reduce, x, axes, keepdims):
  axes = None if axes is None else tuple(_ints(axes))
  return reduce(x, axis=axes, keepdims=bool(keepdims))


def ReduceMean(xp, x, axes=None, keepdims=1):
  return _reduced(xp.mean, x, axes, keepdims)


def ReduceSum(xp, x, axes=None, keepdims=1, noop_with_empty_axes=0):
  if noop_with_empty_axes and axes is None:
    return x
  return _reduced(xp.sum, x, axes, keepdims)


def ReduceMax(xp, x, axes=None, keepdims=1):
  return _reduced(xp.max, x, axes, keepdims)


def ReduceProd(xp, x, axes=None, keepdims=1):
  return _reduced(xp.prod, x, axes, keepdims)


def Softmax(xp, x, axis=-1):
  return jax.nn.softmax(jnp.asarray(x), axis)


def _channels_last(x):
  """Convolutions leave channels last: XLA copies what is to be added up otherwise."""
  return jnp.moveaxis(x, 1, -1)


def _over_space(reduce, x):
  rank = np.ndim(x)
  y = reduce(_channels_last(x), axis=tuple(range(1, rank - 1)))
  return jnp.expand_dims(y, tuple(range(2, rank)))


def GlobalAveragePool(xp, x):
  return _over_space(jnp.mean, x)


def GlobalMaxPool(xp, x):
  return _over_space(jnp.max, x)


def MaxPool(xp, x, kernel_shape, strides=None, pads=None, **how):
  return _pooled(x, -np.inf, lax.max, kernel_shape, strides, pads, **how)


def AveragePool(xp, x, kernel_shape, strides=None, pads=None, **how):
  counted = how.pop('count_include_pad', 0)
  total = _pooled(x, 0.0, lax.add, kernel_shape, strides, pads, **how)
  if counted or not any(pads or ()):
    return total / np.float32(math.prod(kernel_shape))
  ones = jnp.ones_like(x)
  return total / _pooled(ones, 0.0, lax.add, kernel_shape, strides, pads, **how)


def _pooled(x, start, combine, window, strides, pads, ceil_mode=0):
  if ceil_mode:
    raise ValueError('Pooling with ceil_mode=1 is not known.')
  padding = _padding(pads, len(window))
  y = lax.reduce_window(
    _channels_last(x),
    np.float32(start),
    combine,
    (1, *window, 1),
    (1, *(strides or [1] * len(window)), 1),
    [(0, 0), *padding, (0, 0)],
  )
  return jnp.moveaxis(y, -1, 1)


# ----------------------------------------------------------------------- products


def MatMul(xp, a, b):
  return xp.matmul(a, b)


def Gemm(xp, a, b, c=None, alpha=1.0, beta=1.0, transA=0, transB=0):
  y = xp.matmul(a.T if transA else a, b.T if transB else b)
  y = y if alpha == 1.0 else np.float32(alpha) * y
  if c is None:
    return y
  return Add(xp, y, c if beta == 1.0 else np.float32(beta) * c)


def _padding(pads, rank, auto_pad='NOTSET'):
  """[(before, after)] of each axis of space, or the word for JAX."""
  if auto_pad in ('SAME_UPPER', 'SAME_LOWER'):
    return 'SAME' if auto_pad == 'SAME_UPPER' else auto_pad
  pads = pads or [0] * 2 * rank
  return list(zip(pads[:rank], pads[rank:], strict=True))


def _space(rank):
  """Dimension numbers: batch, channels, space; out, in, space."""
  axes = 'DHW'[-rank:]
  return f'NC{axes}', f'OI{axes}', f'NC{axes}'


def Conv(
  xp, x, w, bias=None, strides=None, pads=None, dilations=None, group=1, **how
):
  how.pop('kernel_shape', None)  # that of w
  rank = np.ndim(w) - 2
  y = lax.conv_general_dilated(
    x,
    w,
    strides or [1] * rank,
    _padding(pads, rank, **how),
    rhs_dilation=dilations,
    dimension_numbers=_space(rank),
    feature_group_count=group,
  )
  return y if bias is None else y + _by_channel(bias, rank)


def _by_channel(x, rank):
  return jnp.expand_dims(x, (0, *range(2, rank + 2)))


def ConvTranspose(
  xp, x, w, bias=None, strides=None, pads=None, dilations=None, **how
):
  """A convolution of x, zeros between its entries, with w turned round."""
  how.pop('kernel_shape', None)
  if how.pop('group', 1) != 1 or set(dilations or [1]) != {1}:
    raise ValueError('ConvTranspose with groups or dilations is not known.')
  rank = np.ndim(w) - 2
  extra = how.pop('output_padding', None) or [0] * rank
  if how.pop('auto_pad', 'NOTSET') != 'NOTSET' or how:
    raise ValueError(f'ConvTranspose with {how} or auto_pad is not known.')
  size = np.shape(w)[2:]
  padding = [
    (n - 1 - before, n - 1 - after + more)
    for n, (before, after), more in zip(size, _padding(pads, rank), extra)
  ]
  y = lax.conv_general_dilated(
    x,
    lax.rev(jnp.swapaxes(w, 0, 1), range(2, rank + 2)),
    [1] * rank,
    padding,
    lhs_dilation=strides,
    dimension_numbers=_space(rank),
  )
  return y if bias is None else y + _by_channel(bias, rank)


def BatchNormalization(xp, x, scale, bias, mean, var, epsilon=1e-5, **how):
  rank = np.ndim(x) - 2
  by = scale * lax.rsqrt(var + np.float32(epsilon))
  return x * _by_channel(by, rank) + _by_channel(bias - mean * by, rank)


def LSTM(xp, x, w, r, bias, lengths, h, c, hidden_size):
  """One direction over [time, batch, features]; gates i, o, f, c."""
  if lengths is not None or np.shape(w)[0] != 1:
    raise ValueError('LSTM is known of one direction and whole sequences.')
  w, r = w[0].T, r[0].T
  total = bias[0, : 4 * hidden_size] + bias[0, 4 * hidden_size :]
  ahead = jnp.matmul(x, w) + total[None, None]

  def step(state, ahead):
    h, c = state
    gates = ahead + jnp.matmul(h, r)
    i, o, f, g = jnp.split(gates, 4, -1)
    i, o, f = map(jax.nn.sigmoid, (i, o, f))
    c = f * c + i * jnp.tanh(g)
    h = o * jnp.tanh(c)
    return (h, c), h

  if len(x) == 1:
    (h, c), y = step((h[0], c[0]), ahead[0])
    y = y[None]
  else:
    (h, c), y = lax.scan(step, (h[0], c[0]), ahead)
  return y[:, None], h[None], c[None]
