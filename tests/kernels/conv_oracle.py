"""Convolutions by loops in numpy."""

import kernel_oracle
import numpy as np

NONE = ((0, 0), (0, 0))


def convolve(
  x,
  w,
  *,
  strides=(1, 1),
  padding=NONE,
  lhs_dilation=(1, 1),
  rhs_dilation=(1, 1),
  feature_groups=1,
):
  """sum_{taps, c} w x, with zeros where there is no x: [images, y, x, features]."""
  images, *size, channels = x.shape
  taps, features = w.shape[:2], w.shape[3]
  inside = [max((n - 1) * d + 1, 0) for n, d in zip(size, lhs_dilation)]
  (top, bottom), (left, right) = padding
  wide = np.zeros(
    (images, top + inside[0] + bottom, left + inside[1] + right, channels),
    np.result_type(x, w),
  )
  wide[
    :,
    top : top + inside[0] : lhs_dilation[0],
    left : left + inside[1] : lhs_dilation[1],
  ] = x
  reach = [(n - 1) * d + 1 for n, d in zip(taps, rhs_dilation)]
  out = [(wide.shape[1 + i] - reach[i]) // strides[i] + 1 for i in range(2)]
  y = np.zeros((images, *out, features), wide.dtype)
  own, each = channels // feature_groups, features // feature_groups
  for i, j in np.ndindex(*out):
    for ki, kj in np.ndindex(*taps):
      at = wide[
        :,
        i * strides[0] + ki * rhs_dilation[0],
        j * strides[1] + kj * rhs_dilation[1],
      ]
      for g in range(feature_groups):
        of = slice(g * each, (g + 1) * each)
        y[:, i, j, of] += at[:, g * own : (g + 1) * own] @ w[ki, kj, :, of]
  return y


def rounded(x, symmetric):
  """What the codes of each image stand for."""
  rows = x.reshape(len(x), -1)
  round_rows = (
    kernel_oracle.dynamic if symmetric else kernel_oracle.dynamic_asymmetric
  )
  return round_rows(rows).reshape(x.shape)


def distance(y, expected):
  return np.abs(y - expected).max() / np.abs(expected).max()


def tie(x, w):
  """What a code that falls to the other side of a tie moves a result by."""
  return np.abs(w).max() * (x.max() - min(x.min(), 0)) / 127
