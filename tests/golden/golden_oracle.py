"""Quantisation in numpy, block by block, from the equations of the papers.

Written to be compared with: float64, loops, divisions, and nothing of the library.

    numbers       what a format can stand for
    scale, zero   of one block
    quantized     the numbers of a matrix, and what they stand for
"""

import statistics

import numpy as np


def e_m(exponent: int, mantissa: int, bias: int, last: int):
  """OCP 8-bit Floating Point v1.0, section 5, and Microscaling v1.0, 5.3.

  (-1)^s 2^(E - bias) (1 + m / 2^M), and 2^(1 - bias) m / 2^M for E = 0.
  """
  magnitudes = []
  for pattern in range(last + 1):
    e, m = pattern >> mantissa, (pattern % 2**mantissa) / 2**mantissa
    magnitudes.append(2.0 ** (e - bias) * (1 + m) if e else 2 ** (1 - bias) * m)
  return np.array([-x for x in magnitudes[:0:-1]] + magnitudes)


def nf4():
  """QLoRA, eq. 4 and appendix E: quantiles of a normal, 7 below zero, 8 above.

  The outermost probability is the mean of 1 - 1/32 and 1 - 1/30.
  """
  outermost = 1 - (1 / 32 + 1 / 30) / 2
  quantile = statistics.NormalDist().inv_cdf
  above = [quantile(p) for p in np.linspace(0.5, outermost, 9)[1:]]
  below = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
  return np.array([*below, 0, *above]) / above[-1]


NUMBERS = {
  'binary': np.array([-1.0, 1.0]),
  'ternary': np.array([-1.0, 0.0, 1.0]),
  **{
    f'int{b}': np.arange(-(2.0 ** (b - 1)), 2.0 ** (b - 1)) for b in range(2, 9)
  },
  'e4m3': e_m(4, 3, bias=7, last=0b1111_110),
  'e5m2': e_m(5, 2, bias=15, last=0b11110_11),
  'e3m2': e_m(3, 2, bias=3, last=0b111_11),
  'e2m3': e_m(2, 3, bias=1, last=0b11_111),
  'e2m1': e_m(2, 1, bias=1, last=0b11_1),
  'nf4': nf4(),
}
MANTISSA = {'e4m3': 3, 'e5m2': 2, 'e3m2': 2, 'e2m3': 3, 'e2m1': 1, 'int8': 6}


def nearest(x, grid):
  """The number of a rising grid nearest to each x: [...] -> [...]."""
  upper = np.clip(np.searchsorted(grid, x), 1, len(grid) - 1)
  low, high = grid[upper - 1], grid[upper]
  return np.where(x - low <= high - x, low, high)


def reach_and_center(block, format, symmetric):
  """What is taken to the ends of the format, and around which middle."""
  if format in ('binary', 'ternary'):
    center = 0 if symmetric else block.mean()
    size = np.abs(block - center)
    if format == 'binary':  # XNOR-Net, eq. 6
      return size.mean(), center
    large = size > 0.7 * size.mean()  # Ternary Weight Networks, eqs. 5, 6
    return (size[large].mean() if large.any() else 0.0), center
  if symmetric:
    return np.abs(block).max(), 0
  low, high = min(block.min(), 0), max(block.max(), 0)
  return (high - low) / 2, (high + low) / 2


def bound(format):
  """Half the span of the integers, or the largest number."""
  grid = NUMBERS[format]
  return (grid[-1] - grid[0]) / 2


def power_of_two(reach, format, rule):
  """Microscaling v1.0, section 6.3, and what others made of it."""
  largest = NUMBERS[format][-1]
  emax = np.floor(np.log2(largest))
  if rule == 'rceil':
    return 2.0 ** np.ceil(np.log2(reach / largest))
  bits = {
    'floor': None,
    'even': MANTISSA[format],
    # One bit for e2m1 and e4m3, three for e2m3; the others do not exist there.
    'compressed-tensors': 3 if format == 'e2m3' else 1,
  }[rule]
  if bits is not None:
    step = 2.0 ** (np.floor(np.log2(reach)) - bits)
    reach = np.floor(reach / step + 0.5) * step
  return 2.0 ** (np.floor(np.log2(reach)) - emax)


def blocks(shape, size):
  """Slices of the blocks of a matrix, the last ones shorter."""
  rows, columns = (n or whole for n, whole in zip(size, shape, strict=True))
  return [
    [
      (slice(i, i + rows), slice(j, j + columns))
      for j in range(0, shape[1], columns)
    ]
    for i in range(0, shape[0], rows)
  ]


def scales(w, format, size, symmetric=True, storage='float32', rule='floor'):
  """Scales and middles of the blocks of a matrix, in float64.

  Args:
    w: [k, n]
    format: of NUMBERS.
    size: entries of a block along k and n; 0 for all.
    symmetric: whether middles are zero.
    storage: 'float32' and 'bfloat16': not rounded; 'e8m0'; 'e4m3': in NVFP4's two
      levels; 'int8': QLoRA's double quantisation.
    rule: of e8m0.
  """
  where = blocks(w.shape, size)
  found = [
    [reach_and_center(w[at], format, symmetric) for at in row] for row in where
  ]
  reach, center = np.moveaxis(np.array(found, np.float64), -1, 0)
  if storage == 'e8m0':
    return power_of_two(reach, format, rule), center
  scale = reach / bound(format)
  if storage == 'e4m3':
    shared = scale.max() / 448
    positive = NUMBERS['e4m3'][NUMBERS['e4m3'] > 0]
    scale = nearest(scale / shared, positive) * shared
  if storage == 'int8':
    scale = double(scale)
  return scale, center


def double(scale):
  """QLoRA, section 3: 256 scales, less their mean, as int8 under one more.

  [k / 64, n]: those of one column come first, then those of the next.
  """
  mean = scale.mean()
  flat = (scale - mean).T.reshape(-1)
  out = np.zeros_like(flat)
  for i in range(0, flat.size, 256):
    part = flat[i : i + 256]
    step = np.abs(part).max() / 128
    out[i : i + 256] = np.clip(np.round(part / step), -128, 127) * step
  return out.reshape(scale.T.shape).T + mean


def spread(part, size, shape):
  """One entry a block to one an entry of the matrix."""
  out = np.zeros(shape)
  for i, row in enumerate(blocks(shape, size)):
    for j, at in enumerate(row):
      out[at] = part[i, j]
  return out


def zero_point(center, scale, format):
  """What zero becomes, before rounding."""
  grid = NUMBERS[format]
  return (grid[0] + grid[-1]) / 2 - center / scale


def whole_zero(format):
  """Whether zero points are integers: of integers, from three bits up."""
  return format.startswith('int') and format != 'int2'


def quantized(w, format, size, symmetric=True, storage='float32', rule='floor'):
  """What a matrix becomes: [k, n] -> [k, n]."""
  scale, center = scales(w, format, size, symmetric, storage, rule)
  zero = np.zeros_like(scale)
  if not symmetric:
    zero = zero_point(center, scale, format)
    if whole_zero(format):
      zero = np.clip(np.round(zero), NUMBERS[format][0], NUMBERS[format][-1])
  scale, zero = (spread(p, size, w.shape) for p in (scale, zero))
  return (nearest(w / scale + zero, NUMBERS[format]) - zero) * scale


def error(w, meaning):
  """Relative root mean square error."""
  return np.sqrt(((meaning - w) ** 2).sum() / (w**2).sum())
