"""Numbers and products by the equations, in numpy and float64."""

import numpy as np

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
# Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, appendix E.
_NF4 = np.array(
  [-1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343]
  + [-0.09105004, 0, 0.0795803, 0.16093020, 0.24611230, 0.33791524]
  + [0.44070983, 0.5626170, 0.72295684, 1]
)
_OFFSET = {'int8': 128, 'int4': 8, 'int3': 4, 'int2': 2, 'ternary': 1}


def numbers(codes: np.ndarray, name: str) -> np.ndarray:
  """What codes stand for, as they are laid out."""
  if name == 'nf4':
    return _NF4[codes]
  if name == 'e2m1':
    return np.where(codes < 8, 1, -1) * _E2M1[codes % 8]
  return codes.astype(np.float64) - _OFFSET[name]


def draw_codes(rng, name: str, bits: int, shape) -> np.ndarray:
  return rng.integers(0, 3 if name == 'ternary' else 2**bits, shape, np.uint8)


def weight(codes, name, scale, zero, group) -> np.ndarray:
  """(number - zero) * scale: [k, n] from [k, n] and [groups, n]."""

  def rows(p):
    return np.repeat(np.float64(p), group, axis=0)[: len(codes)]

  w = numbers(codes, name)
  return (w if zero is None else w - rows(zero)) * rows(scale)


def dynamic(x, bound=127.5, low=-128, high=127) -> np.ndarray:
  """Rows rounded to codes in the range of their largest entry."""
  scale = np.maximum(np.abs(x).max(1, keepdims=True) / bound, 1e-37)
  return np.clip(np.round(x / scale), low, high) * scale


def dynamic_asymmetric(x) -> np.ndarray:
  """Rows rounded to codes between their smallest and largest entries."""
  low = np.minimum(x.min(1, keepdims=True), 0)
  high = np.maximum(x.max(1, keepdims=True), 0)
  scale = (high - low) / 255
  zero = np.clip(np.round(-0.5 - (high + low) / 2 / scale), -128, 127)
  codes = np.clip(np.round(x / scale) + zero, -128, 127)
  return (codes - zero) * scale
