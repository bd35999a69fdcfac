"""W8A8: every row of x becomes int8 codes on the way to the product.

    scale_x = (high - low) / 255           low <= 0 <= high, the ends of each row
    zero_x  = round(-1/2 - (high + low) / (2 scale_x))
    codes_x = clip(round(x / scale_x) + zero_x, -128, 127)
    totals  = sum_k codes_w
    y       = (codes_x @ codes_w - zero_x * totals) * scale_x * scale_w + bias

Symmetric codes have scale_x = max|x| / 127.5 and no zero_x. Scales and codes are
those of `quantization`: products with reciprocals, ties to even, and a row of zeros
has the smallest normal scale. A row with NaN or infinity has an infinite scale and
codes of zero, so that all its results are NaN. Needs integer products: TPU v4's
compiler refuses them, those of v5e and later do not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.pallas import contract as contract_lib
from jaxopt_compress.kernels.pallas import layout
from jaxopt_compress.kernels.pallas import tiles as tiles_lib

_TINY = np.float32(np.finfo(np.float32).tiny)
_PER_BOUND = np.float32(1 / 127.5)
# |codes_x @ codes_w| <= 2^14 k < 2^31; with zero points 255 * 128 k < 2^31.
_MOST_K = 2**17 - 1
_MOST_K_WITH_ZEROS = (2**31 - 1) // (255 * 128)
# Up to how many rows the product of a TPU rounds them itself. Each of its programs
# does that again for the rows it reads, where a pass of its own does it once; on GPUs
# the pass was faster for one row, too.
_FUSED_ROWS = 16


class Weight(NamedTuple):
  """A weight as the kernel reads it; n' is n up to a multiple of 128.

  Attributes:
    codes: [pieces, piece, n'] int8, see `layout`.
    scale: [1, n'] float32 or bfloat16.
    totals: [1, n'] int32, for codes of x with zero points; None for symmetric ones.
  """

  codes: jax.Array
  scale: jax.Array
  totals: jax.Array | None = None


class Rows(NamedTuple):
  """Rows of x as codes.

  Attributes:
    codes: [m, k] int8.
    scale: [m, 1] float32.
    zero: [m, 1] int32, or None.
  """

  codes: jax.Array
  scale: jax.Array
  zero: jax.Array | None = None


def most_k(symmetric: bool) -> int:
  """Rows of a weight whose products with codes of x an int32 surely sums."""
  return _MOST_K if symmetric else _MOST_K_WITH_ZEROS


def totals(codes: jax.Array) -> jax.Array:
  """Sums of the columns of codes [k, n]: [1, n] int32."""
  return jnp.sum(codes.astype(jnp.int32), axis=0, keepdims=True)


def lay_out(
  codes: jax.Array, scale: jax.Array, *, symmetric: bool = True
) -> Weight:
  """The layout of a weight codes * scale.

  Args:
    codes: [k, n] int8.
    scale: [1, n] floating.
    symmetric: whether rows of x are rounded without zero points.
  """
  k, n = codes.shape
  if scale.shape != (1, n):
    raise ValueError(
      f'scale is {list(scale.shape)}; codes {[k, n]} have one a column, {[1, n]}.'
      ' Products of codes cannot have a scale a group: see weight_only.'
    )
  pieces = layout.rows(codes, layout.cut(k))
  return Weight(
    layout.columns(pieces),
    layout.columns(scale),
    None if symmetric else layout.columns(totals(codes)),
  )


def restore(weight: Weight, *, k: int, n: int) -> tuple[jax.Array, jax.Array]:
  """The inverse of `lay_out`: codes [k, n], scale [1, n]."""
  codes = layout.whole(weight.codes, layout.cut(k))
  return codes[:, :n], weight.scale[:, :n]


def quantize(x: jax.Array, *, symmetric: bool = True) -> Rows:
  """Codes and scales of rows.

  Args:
    x: [m, k] floating.
    symmetric: whether codes have no zero points.

  >>> codes, scale, _ = quantize(jnp.array([[255., 1., -3.], [0., 0., 0.]]))
  >>> codes.tolist(), scale[:, 0].tolist()
  ([[127, 0, -2], [0, 0, 0]], [2.0, 1.1754943508222875e-38])
  >>> codes, scale, zero = quantize(jnp.array([[254., 1., -1.]]), symmetric=False)
  >>> codes.tolist(), scale.tolist(), zero.tolist()
  ([[127, -126, -128]], [[1.0]], [[-127]])
  """
  scale, zero = _range(x, symmetric)
  return Rows(_codes(x, 1 / scale, zero), scale, zero)


def matmul(
  x: jax.Array,
  weight: Weight,
  bias: jax.Array | None = None,
  *,
  n: int,
  platform: str | None = None,
  interpret: bool = False,
  fused: bool | None = None,
  tiles: tiles_lib.Tiles | None = None,
) -> jax.Array:
  """quantize(x) @ weight + bias. No derivatives.

  Args:
    x: [m, k] float32, bfloat16 or float16; k up to `most_k`, so that sums fit in
      int32.
    weight: made by `lay_out`; its `totals` say whether codes of x have zero points.
    bias: [n], or None.
    n: columns of the weight.
    platform: 'gpu' or 'tpu'; None for where it runs.
    interpret: run it in plain JAX, on any device, slowly; or parameters of
      Pallas's interpreter for TPU.
    fused: whether the product rounds x itself, or XLA does in a pass before; None
      to choose by shape. Scales, which need all of a row, come before either way.
    tiles: blocks; None to choose them by shape.

  Returns:
    [m, n] of the dtype of `x`, the same to the bit both ways.
  """
  layout.matrix(x)
  platform = tiles_lib.on(platform, interpret)
  (m, k), dtype = x.shape, x.dtype
  c = layout.cut(k)
  _check(x, weight, bias, c, n)
  shift = jnp.zeros((1, n)) if bias is None else bias.reshape(1, n)
  if 0 in (m, k, n):
    return jnp.broadcast_to(shift.astype(dtype), (m, n))
  if platform == 'tpu' and dtype == jnp.float16:
    x = x.astype(jnp.float32)  # Mosaic has no float16.
  # int8 has tiles of 32 rows on a TPU.
  least = 32 if platform == 'tpu' else 16
  rows = tiles.rows if tiles else tiles_lib.rows_of(m, platform, smallest=least)
  scale, zero = _range(x, weight.totals is None)
  if fused is None:
    fused = platform == 'tpu' and m <= _FUSED_ROWS
  of_x = x if fused else _codes(x, 1 / scale, zero)
  operands = [
    contract_lib.rows(of_x, c, c.count, 1, rows, platform),
    contract_lib.Operand(weight.codes, False, 1),
  ]
  of_zero = [] if zero is None else [_of_rows(zero, rows)]
  operands += [_of_rows(1 / scale, rows), *of_zero] if fused else []
  fixed = [_of_rows(scale, rows), contract_lib.Operand(weight.scale, False)]
  if zero is not None:
    fixed += [*of_zero, contract_lib.Operand(weight.totals, False)]
  if bias is not None:
    fixed.append(contract_lib.Operand(layout.columns(shift), False))

  def term(b, x_ref, codes_ref, *how):
    codes = _codes(x_ref[b], *(r[...] for r in how)) if how else x_ref[b]
    return contract_lib.dot(codes, codes_ref[b])

  y = contract_lib.contract(
    term,
    _scaled if zero is None else _scaled_with_zeros,
    operands,
    fixed,
    bundles=c.count,
    acc=jnp.int32,
    out=x.dtype,
    tiles=tiles,
    platform=platform,
    interpret=interpret,
    name='w8a8',
  )
  return y[:m, :n].astype(dtype)


def _check(x, weight, bias, c, n):
  """Raises ValueError for operands that do not fit one another."""
  m, k = x.shape
  expected = (c.count, c.piece, -(-n // 128) * 128)
  if weight.codes.shape != expected:
    raise ValueError(
      f'codes are {list(weight.codes.shape)}; x {[m, k]} with {n} columns meets'
      f' {list(expected)}. Make them with dynamic.lay_out.'
    )
  if bias is not None and bias.shape != (n,):
    raise ValueError(f'bias is {list(bias.shape)}; expected {[n]}.')
  most = most_k(weight.totals is None)
  if k > most:
    raise ValueError(
      f'k = {k}: int32 sums of products of int8 hold up to k = {most}. Cut k in'
      ' parts and add their results.'
    )


def _of_rows(a, rows):
  """[m, 1] as an operand, filled up to whole blocks with ones: they may be divided by."""
  fill = -a.shape[0] % rows
  padded = jnp.pad(a, ((0, fill), (0, 0)), constant_values=1)
  return contract_lib.Operand(padded, True)


def _scaled(total, scale_x, scale_w, shift=None):
  """Sums of products of codes to results, float32."""
  y = total.astype(jnp.float32) * scale_x * scale_w.astype(jnp.float32)
  return y if shift is None else y + shift.astype(jnp.float32)


def _scaled_with_zeros(total, scale_x, scale_w, zero, totals, shift=None):
  """The same, of codes with zero points: integers until the scales."""
  return _scaled(total - zero * totals, scale_x, scale_w, shift)


# ------------------------------------------------------------------------- codes


def _range(x, symmetric):
  """(scale, zero) of each row: [m, 1] float32, and int32 or None."""
  if symmetric:
    return _scale(_largest(x)), None
  # Halves first: the difference of two large numbers is infinite.
  high, low = (
    jnp.maximum(_most(sign * x), 0) * np.float32(0.5) for sign in (1, -1)
  )
  scale = _scale(high + low)
  zero = np.float32(-0.5) - (high - low) * (1 / scale)
  # Of rows that have no range, whose codes are zero, zero is the zero point.
  zero = jnp.where(scale < jnp.inf, zero, 0.0)
  return scale, _in_range(zero).astype(jnp.int32)


def _largest(x):
  """max|x| of each row, [m, 1] float32; infinite where there is a NaN."""
  return _most(jnp.abs(x))


def _most(x):
  """max x of each row, [m, 1] float32; infinite where there is a NaN."""
  x = x.astype(jnp.float32)
  # The maximum of Triton passes NaN by.
  return jnp.max(jnp.where(x == x, x, jnp.inf), axis=1, keepdims=True)


def _scale(reach):
  return jnp.maximum(reach * _PER_BOUND, _TINY)


def _codes(x, inverse, zero=None):
  """[m, k] int8; runs inside and outside kernels."""
  scaled = x.astype(jnp.float32) * inverse
  scaled = jnp.where(scaled == scaled, scaled, 0.0)
  if zero is None:
    return _in_range(scaled).astype(jnp.int32).astype(jnp.int8)
  # Rounded before the zero point is added: a sum of floats would round again.
  codes = _round(scaled) + zero.astype(jnp.float32)
  return _clip(codes).astype(jnp.int32).astype(jnp.int8)


def _in_range(x):
  return _round(_clip(x))


def _clip(x):
  return jnp.minimum(jnp.maximum(x, -128.0), 127.0)


def _round(x):
  """Nearest integers, ties to even: Triton has no rounding of its own."""
  below = jnp.floor(x)
  over = x - below
  odd = below - 2 * jnp.floor(below * 0.5)
  up = (over > 0.5) | ((over == 0.5) & (odd == 1))
  return below + up.astype(jnp.float32)
