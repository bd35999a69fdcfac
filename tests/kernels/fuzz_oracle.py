"""Layouts and products by their definitions in numpy, and how far float32 may be off.

    y = a (sum_g s_g sum_{k in g} (w - z_g) x - b t) + bias

with x the codes of a row, a its scale and b its zero point. Codes are computed in
float32, as the kernels do it, and so are equal to theirs; sums are of float64.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels.cpu import native

Act = native.Act
_EPS = 2.0**-23
_TINY = np.finfo(np.float32).tiny


def _sigmoid(y):
  return 1 / (1 + np.exp(-y))


def _softplus(y):
  return np.maximum(y, 0) + np.log1p(np.exp(-np.abs(y)))


# What the library has curves for, in float64.
CURVES = {
  'gelu': lambda y: y * _sigmoid(np.sqrt(8 / np.pi) * (y + 0.044715 * y**3)),
  'silu': lambda y: y * _sigmoid(y),
  'sigmoid': _sigmoid,
  'tanh': np.tanh,
  'exact_gelu': lambda y: y * special.ndtr(y),
  'relu6': lambda y: np.clip(y, 0, 6),
  'hard_sigmoid': lambda y: np.clip(y + 3, 0, 6) / 6,
  'hard_swish': lambda y: y * np.clip(y + 3, 0, 6) / 6,
  'leaky_relu': lambda y: np.maximum(y, 0.01 * y),
  'squared_relu': lambda y: np.maximum(y, 0) ** 2,
  'elu': lambda y: np.where(y > 0, y, np.expm1(np.minimum(y, 0))),
  'softplus': _softplus,
  'mish': lambda y: y * np.tanh(_softplus(y)),
}


class Rounding(NamedTuple):
  """How x becomes codes, and what results are at least."""

  act: Act
  symmetric: bool
  bound: float
  low: float
  high: float
  scale: float  # of Act.STATIC
  zero: float | None
  floor: float = -np.inf


class Finish(NamedTuple):
  """What results go through before they are at least the floor."""

  curve: str = ''
  other: np.ndarray | None = None
  times: bool = False
  after: np.ndarray | None = None  # [..., 2, n]
  inner: int = 2  # axes of results that are not a stack's

  def __call__(self, y, bound):
    """(results, bounds) from those of a product."""
    if self.curve:
      with np.errstate(over='ignore', invalid='ignore'):
        # Curves are at most as steep as that, but for the square.
        steep = 2 * np.abs(y) + bound if self.curve == 'squared_relu' else 1.2
        y = CURVES[self.curve](y)
        bound = steep * bound + 1e-5 * np.abs(y)
    if self.after is not None:
      after = np.float64(self.after)
      *some, _, n = after.shape
      ones = [1] * (self.inner - 1)
      gain, shift = (
        after[..., i, :].reshape(*some, *ones, n) for i in range(2)
      )
      with np.errstate(invalid='ignore'):
        y = y * gain
        bound = bound * np.abs(gain) + 2 * _EPS * (np.abs(y) + np.abs(shift))
        y = y + shift
    if self.other is None:
      return y, bound
    other = np.float64(self.other)
    with np.errstate(invalid='ignore'):
      if self.times:
        return y * other, bound * np.abs(other) + 2 * _EPS * np.abs(y * other)
      return y + other, bound + 2 * _EPS * (np.abs(y) + np.abs(other))


class Rows(NamedTuple):
  """Rows that stand for scale * (codes - zero), each code `off` by so much.

  A scale of NaN marks a row that has a NaN or an infinity, where all results are NaN.
  """

  codes: np.ndarray  # [rows, k]
  scale: np.ndarray  # [rows, 1]
  zero: np.ndarray  # [rows, 1]
  off: np.ndarray  # [rows, 1]


def panels(codes: np.ndarray, name: str, group: int) -> np.ndarray:
  """[k, n] uint8 codes as the kernels read them: [panels, units, bytes]."""
  how = layout.CODES[name]
  k, n = codes.shape

  def fill(x):
    return np.pad(x, [(0, -len(x) % how.rows), (0, -n % 32)])

  x = np.concatenate([fill(codes[g : g + group]) for g in range(0, k, group)])
  # [units, j, i, panels, h, l] to [j, panels, units, h, l, i]
  x = x.reshape(-1, how.rows // 4, 4, x.shape[1] // 32, 2, 16)
  x = x.transpose(1, 3, 0, 4, 5, 2).astype(np.int64)
  width = {8: 8, 4: 4, 3: 2, 2: 2}[how.bits]
  parts = range(len(x))
  low = sum((x[j] % 2**width) << (width * j) for j in parts)
  out = low.reshape(*low.shape[:2], 128)
  if how.bits == 3:
    high = x >> 2
    bits = sum(high[j, :, :, h] << (4 * h + j) for j in parts for h in range(2))
    out = np.concatenate([out, bits.reshape(*bits.shape[:2], 64)], axis=-1)
  return out.astype(np.uint8)


def quads(w: np.ndarray) -> np.ndarray:
  """[height, width, n] int8 taps as [quads, width, columns, 4]."""
  w = np.pad(w, [(0, -len(w) % 4), (0, 0), (0, -w.shape[2] % 16)])
  x = w.reshape(-1, 4, *w.shape[1:]).transpose(0, 2, 3, 1)
  return np.ascontiguousarray(x)


def rounded(x: np.ndarray, how: Rounding, fused: bool = False) -> Rows:
  """Rows, each with a range of its own.

  Args:
    x: [rows, k].
    how: they are rounded.
    fused: whether a zero point is rounded once, as where products and sums are one
      instruction: on a tie it may be the next.
  """
  f32 = np.float32

  def column(value):
    return np.full((len(x), 1), value, np.float64)

  wide = np.asarray(x, f32)
  if how.act is Act.CODES:
    return Rows(np.float64(x), column(1), column(0), column(0))
  with np.errstate(invalid='ignore', over='ignore', divide='ignore'):
    most = np.abs(wide).max(1, keepdims=True, initial=0)
    if how.act is Act.FLOAT:
      part = _EPS if x.dtype == f32 else 2.0**-15
      scale = np.where(np.isfinite(most), 1.0, np.nan)
      return Rows(np.float64(wide), scale, column(0), part * np.float64(most))
    if how.act is Act.STATIC:
      scale = np.full_like(most, how.scale)
      zero = np.full_like(most, how.zero or 0)
      bad = np.isnan(most)
    else:
      bad = ~np.isfinite(most)
      low = wide.min(1, keepdims=True, initial=0)
      high = wide.max(1, keepdims=True, initial=0)
      reach = most if how.symmetric else (high - low) * f32(0.5)
      scale = np.maximum(reach * (f32(1) / f32(how.bound)), _TINY)
      wider = np.float64 if fused else f32
      center = wider((high + low) * f32(0.5)) * wider(f32(1) / scale)
      zero = np.rint(wider((how.high + how.low) / 2) - center)
      zero = np.clip(zero, how.low, how.high) * (not how.symmetric)
    codes = np.rint(wide * (f32(1) / scale)) + f32(zero)
    codes = np.where(bad, 0, np.clip(codes, how.low, how.high))
  scale = np.where(bad, np.nan, np.float64(scale))
  return Rows(np.float64(codes), scale, np.float64(zero), column(0))


def windows(x, fill, window, strides, padding, lhs_dilation, rhs_dilation):
  """[images, y, x, channels] to [images, out y, out x, tap y, tap x, channels]."""
  images, height, width, channels = x.shape
  (top, bottom), (left, right) = padding
  inside = [max((n - 1) * d + 1, 0) for n, d in zip(x.shape[1:3], lhs_dilation)]
  shape = (images, top + inside[0] + bottom, left + inside[1] + right, channels)
  wide = np.broadcast_to(np.reshape(fill, (images, 1, 1, 1)), shape).copy()
  wide[
    :,
    top : top + inside[0] : lhs_dilation[0],
    left : left + inside[1] : lhs_dilation[1],
  ] = x
  at = []
  for axis in range(2):
    reach = (window[axis] - 1) * rhs_dilation[axis] + 1
    first = np.arange(0, wide.shape[1 + axis] - reach + 1, strides[axis])
    at.append(first[:, None] + np.arange(window[axis]) * rhs_dilation[axis])
  rows = wide[:, at[0]]  # [images, out y, tap y, wide, channels]
  return rows[:, :, :, at[1]].swapaxes(2, 3)


def product(
  rows: Rows,
  w: np.ndarray,
  *,
  scale: np.ndarray,
  zero: np.ndarray,
  group: int,
  totals: np.ndarray,
  bias: np.ndarray,
  in_floats: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Results, and by how much those of float32 may differ: [rows, n].

  Args:
    rows: [rows, k].
    w: [k, n] numbers of a weight.
    scale, zero: [groups, n].
    group: rows of w that share them.
    totals, bias: [1, n].
    in_floats: whether products are of float32.
  """
  k, n = w.shape
  x = rows.codes
  y, size, off = np.zeros((3, len(x), n))
  # Digits of a number may be larger than it: by a hundredth of the largest.
  more = 0 if in_floats else np.abs(x).max(1, keepdims=True, initial=0) / 100
  more = np.where(rows.off > 0, more, 0)
  with np.errstate(invalid='ignore'):
    for i, g in enumerate(range(0, k, group)):
      s, z, of = scale[i], zero[i], slice(g, g + group)
      y += s * (x[:, of] @ (w[of] - z))
      most = np.abs(w[of]) + np.abs(z)
      size += np.abs(s) * ((np.abs(x[:, of]) + more) @ most)
      if not in_floats:
        off += np.abs(s) * rows.off * most.sum(0)
    if in_floats:
      a = np.ones_like(rows.scale)
    else:
      a = rows.scale
    y = a * (y - rows.zero * totals) + bias
    size = a * (size + np.abs(rows.zero * totals)) + np.abs(bias)
    roundings = (k if in_floats else -(-k // group)) + 12
    return y, a * off + _EPS * roundings * size


def apart(rows: Rows, w, *, scale, zero, bias):
  """As `product`, channel by channel: rows [rows, taps, n], w [taps, n]."""
  x = rows.codes - rows.zero[..., None]
  with np.errstate(invalid='ignore'):
    y = np.einsum('rtn,tn->rn', x, w - zero)
    more = np.abs(x).max((1, 2), keepdims=True, initial=0) / 100
    most = np.abs(w) + np.abs(zero)
    size = np.einsum('rtn,tn->rn', np.abs(x) + more, most)
    off = rows.off * most.sum(0) * np.abs(scale)
    y = rows.scale * y * scale + bias
    size = rows.scale * size * np.abs(scale) + np.abs(bias)
    return y, rows.scale * off + 16 * _EPS * size
