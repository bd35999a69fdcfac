"""Convolutions on the library of C++ kernels.

    y[i, p, n] = a_i (sum_g s_gn sum_{k in g} (w_kn - z_gn) x_i[p, k] - b_i t_n) + bias_n

and what `native` has after it, with the windows of an image for rows: k runs over the
taps of a window and its channels, and the codes of an image share a scale a and a
zero point b. A padded position is a real zero.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.cpu import native

Pair = tuple[int, int]


def conv(
  x: jax.Array,
  w: jax.Array,
  scale: jax.Array | None,
  *,
  format: str,
  n: int,
  group: int,
  act: native.Act,
  window: Pair,
  strides: Pair = (1, 1),
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
  lhs_dilation: Pair = (1, 1),
  rhs_dilation: Pair = (1, 1),
  feature_groups: int = 1,
  zero: jax.Array | None = None,
  totals: jax.Array | None = None,
  bias: jax.Array | None = None,
  act_scale: jax.Array | None = None,
  act_zero: jax.Array | None = None,
  other: jax.Array | None = None,
  bound: float = 127.5,
  low: float = -128.0,
  high: float = 127.0,
  symmetric: bool = True,
  floor: float = -np.inf,
  curve: str = '',
  times: bool = False,
  out_dtype=jnp.float32,
  path: str = '',
) -> jax.Array:
  """A stack of convolutions; no derivative.

  Leading axes broadcast. `groups of features` below is an axis only where there are
  several.

  Args:
    x: [..., images, height, width, channels] float32 or bfloat16; int8 codes for
      Act.CODES.
    w: [..., groups of features, panels, units, bytes], `layout.to_panels` of the
      kernel seen as [height * width * channels, features] of each group.
    scale: [..., groups of features, groups, n] float32, bfloat16 or float8_e8m0fnu;
      None for codes.
    format: in `layout.CODES`.
    n: features of one of their groups.
    group: rows of the matrix of windows that share scales.
    act: how x is rounded. FLOAT keeps it to 2^-23 of the largest entry of its image,
      2^-15 where x is bfloat16. An image with a NaN or an infinity gives NaN; with
      weights in 'nf4', which meet x itself, only where windows see it.
    window: taps along height and width.
    strides, lhs_dilation, rhs_dilation: as for `lax.conv_general_dilated`.
    padding: below and above, along height and width; not negative.
    feature_groups: how many groups of features.
    zero: [..., groups of features, groups, n] float32 or int8, in numbers of the
      format; none for Act.CODES.
    totals: [..., groups of features, 1, n] float32 column sums, where codes of x
      have zero points.
    bias: [..., groups of features, 1, n] float32.
    act_scale, act_zero: [..., 1, 1] float32, of Act.STATIC; zero points are int8
      numbers.
    other: of the shape and dtype of the result, as for `native.matmul`.
    bound, low, high: of the codes of x.
    symmetric: whether codes of x have no zero point.
    floor, curve, times: what becomes of results, as for `native.matmul`.
    out_dtype: float32 or bfloat16; int32 for codes.
    path: an instruction path; the best if ''.

  Returns:
    [..., images, out height, out width, feature_groups * n].

  Raises:
    RuntimeError: the library was not built.
  """
  _check_zeros(act, symmetric, act_zero, totals)
  geometry, size = _geometry(
    x, window, strides, lhs_dilation, rhs_dilation, padding
  )
  operands = [(x, 4), (_grouped(w, feature_groups, 3), 4)]
  others = [
    (None if p is None else _grouped(p, feature_groups, 2), 3)
    for p in (scale, zero, totals, bias)
  ]
  return native.call(
    'conv',
    operands,
    [*others, (act_scale, 2), (act_zero, 2), (other, 4)],
    (x.shape[-4], *size, feature_groups * n),
    out_dtype,
    format=format,
    n=np.int64(n),
    group=np.int64(group),
    geometry=geometry,
    curve=curve,
    times=times,
    path=path,
    **_of_codes(act, bound, low, high, symmetric, floor),
  )


def depthwise(
  x: jax.Array,
  w: jax.Array,
  scale: jax.Array | None,
  *,
  n: int,
  act: native.Act,
  window: Pair,
  strides: Pair = (1, 1),
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
  lhs_dilation: Pair = (1, 1),
  rhs_dilation: Pair = (1, 1),
  zero: jax.Array | None = None,
  bias: jax.Array | None = None,
  act_scale: jax.Array | None = None,
  act_zero: jax.Array | None = None,
  bound: float = 127.5,
  low: float = -128.0,
  high: float = 127.0,
  symmetric: bool = True,
  floor: float = -np.inf,
  out_dtype=jnp.float32,
  path: str = '',
) -> jax.Array:
  """A stack of convolutions that keep channels apart; no derivative.

  Args:
    x: [..., images, height, width, channels] float32 or bfloat16; int8 codes for
      Act.CODES.
    w: [..., quads, width, columns, 4] int8, `layout.to_quads` of the kernel.
    scale: [..., 1, n] float32, bfloat16 or float8_e8m0fnu; None for codes.
    n: features, a multiple of the channels.
    act, window, strides, padding, lhs_dilation, rhs_dilation: as for `conv`.
    zero: [..., 1, n] float32 or int8; none for Act.CODES.
    bias: [..., 1, n] float32.
    act_scale, act_zero, bound, low, high, symmetric, floor, out_dtype, path: as for
      `conv`.

  Returns:
    [..., images, out height, out width, n].
  """
  geometry, size = _geometry(
    x, window, strides, lhs_dilation, rhs_dilation, padding
  )
  others = (scale, zero, bias, act_scale, act_zero)
  return native.call(
    'depthwise',
    [(x, 4), (w, 4)],
    [(p, 2) for p in others],
    (x.shape[-4], *size, n),
    out_dtype,
    geometry=geometry,
    path=path,
    **_of_codes(act, bound, low, high, symmetric, floor),
  )


def _of_codes(act, bound, low, high, symmetric, floor):
  return dict(
    act=np.int32(act),
    bound=np.float32(bound),
    low=np.float32(low),
    high=np.float32(high),
    symmetric=symmetric,
    floor=np.float32(floor),
  )


def _grouped(p, feature_groups, inner):
  """With an axis of groups of features, of which there may be one."""
  if feature_groups > 1:
    return p
  return p.reshape(*p.shape[:-inner], 1, *p.shape[-inner:])


def _check_zeros(act, symmetric, act_zero, totals):
  measured = act == native.Act.DYNAMIC and not symmetric
  given = act == native.Act.STATIC and act_zero is not None
  if (measured or given) and totals is None:
    raise ValueError(
      'Codes of x have zero points, and `totals`, the sums of the columns of the'
      ' weight that go with them, is None.'
    )


def _geometry(x, window, strides, lhs_dilation, rhs_dilation, padding):
  """What the library is told of windows, and how many there are on each axis."""
  low, high = zip(*padding, strict=True)
  if min(*low, *high) < 0:
    raise ValueError(
      f'padding is {padding}: the kernels cut nothing off an image. Slice it'
      ' before the convolution.'
    )
  numbers = (window, strides, lhs_dilation, rhs_dilation, low, high)
  size = []
  for axis in range(2):
    entries = x.shape[axis - 3]
    taps, stride, spread, dilation = (p[axis] for p in numbers[:4])
    if min(taps, stride, spread, dilation) < 1:
      raise ValueError(
        'Sizes of windows, strides and dilations are at least one, got'
        f' {numbers[:4]}.'
      )
    padded = low[axis] + max((entries - 1) * spread + 1, 0) + high[axis]
    reach = (taps - 1) * dilation + 1
    size.append(0 if padded < reach else (padded - reach) // stride + 1)
  return np.array(numbers, np.int64).reshape(-1), tuple(size)
