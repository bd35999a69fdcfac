"""How the codes of a matrix lie for the kernels of CPUs.

A matrix [k, n] of codes is cut into panels of 32 columns, a panel into units of 4,
8 or 16 rows; in a unit, four rows of sixteen columns fill 64 bytes in the order
that four-way byte products want:

    8 bits   4 rows, 128 bytes   byte[h][l][i] = c(i, 16 h + l)
    4 bits   8 rows, 128 bytes   byte[h][l][i] = sum_j c(4 j + i, 16 h + l) << 4 j
    2 bits  16 rows, 128 bytes   byte[h][l][i] = sum_j c(4 j + i, 16 h + l) << 2 j
    3 bits  16 rows, 192 bytes   the two low bits as above, then 64 bytes
                                 byte[l][i] = sum_{h,j} high bit << (4 h + j)

A group of rows that share scales begins with a unit of its own. Rows and columns
past the end hold code zero. Codes are unsigned: a number is its code less the
format's offset, or an entry of its table (`cpu/source/codes.h`).

A kernel of a convolution is a matrix of windows, [tap y, tap x, channel] by
features, and a stack of them where features are in groups. Where each channel is a
group, taps are laid out themselves, four of a column side by side:

    [quads, taps x, columns, 4]   number[q][x][n][i] = w(4 q + i, x, n)

with int8 numbers, a multiple of 16 columns, and zeros past the end.

Floats lie in panels of 16 columns, row after row, [panels, k, 16]; where each channel is
a group, tap after tap, [taps, columns]. Zeros fill columns up.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

COLUMNS = 32  # of a panel
_FLOATS = 16  # columns of a panel of floats
_STEPS = 4  # rows that are multiplied at once


class Codes(NamedTuple):
  """A way to write codes down.

  Attributes:
    bits: of a code.
    rows: of a unit.
    bytes: of a unit.
    offset: what codes are above their numbers, where numbers are integers.
  """

  bits: int
  rows: int
  bytes: int
  offset: int = 0


# By the name that the kernels know.
CODES = {
  'int8': Codes(8, 4, 128, 128),
  'int4': Codes(4, 8, 128, 8),
  'int3': Codes(3, 16, 192, 4),
  'int2': Codes(2, 16, 128, 2),
  'ternary': Codes(2, 16, 128, 1),
  'e2m1': Codes(4, 8, 128),
  'nf4': Codes(4, 8, 128),
}


def num_units(k: int, group: int, rows: int) -> int:
  """Units of `rows` rows that `k` rows in groups take.

  >>> num_units(20, 20, 8), num_units(20, 10, 8)
  (3, 4)
  """
  whole, rest = divmod(k, group)
  return whole * -(-group // rows) + -(-rest // rows)


def to_panels(codes: jax.Array, name: str, group: int) -> jax.Array:
  """Lays codes out.

  Args:
    codes: [..., k, n] uint8, below 2^bits.
    name: of the format, in `CODES`.
    group: rows that share scales.

  Returns:
    [..., panels, units, bytes] uint8.
  """
  how = CODES[name]
  *lead, k, n = codes.shape
  fill = -n % COLUMNS
  codes = jnp.pad(codes, [(0, 0)] * (len(lead) + 1) + [(0, fill)])
  codes = _begin_groups(codes, group, how.rows)
  units = codes.shape[-2] // how.rows
  panels = codes.shape[-1] // COLUMNS
  # [..., units, j, i, panels, h, l] to [..., panels, units, j, h, l, i]
  steps = how.rows // _STEPS
  x = codes.reshape(*lead, units, steps, _STEPS, panels, 2, 16)
  axes = [3, 0, 1, 4, 5, 2]
  at = len(lead)
  x = jnp.transpose(x, (*range(at), *(at + a for a in axes)))
  width = 8 // steps if how.bits != 3 else 2
  low = x & (2**width - 1)
  byte = _joined([low[..., j, :, :, :] << (width * j) for j in range(steps)])
  out = byte.reshape(*lead, panels, units, 128)
  if how.bits == 3:
    high = x >> 2
    bits = [
      high[..., j, h, :, :] << (4 * h + j)
      for h in range(2)
      for j in range(steps)
    ]
    high = _joined(bits).reshape(*lead, panels, units, 64)
    out = jnp.concatenate([out, high], axis=-1)
  return out


def from_panels(
  payload: jax.Array, name: str, group: int, k: int, n: int
) -> jax.Array:
  """The inverse of `to_panels`: [..., k, n] uint8."""
  how = CODES[name]
  *lead, panels, units, _ = payload.shape
  steps = how.rows // _STEPS
  byte = payload[..., :128].reshape(*lead, panels, units, 2, 16, _STEPS)
  width = 8 // steps if how.bits != 3 else 2
  pieces = [(byte >> (width * j)) & (2**width - 1) for j in range(steps)]
  if how.bits == 3:
    high = payload[..., 128:].reshape(*lead, panels, units, 16, _STEPS)
    for j in range(steps):
      bits = [(high >> (4 * h + j)) & 1 for h in range(2)]
      pieces[j] |= jnp.stack(bits, axis=-3) << 2
  # [..., panels, units, j, h, l, i] to [..., units, j, i, panels, h, l]
  x = jnp.stack(pieces, axis=-4)
  at = len(lead)
  axes = [1, 2, 5, 0, 3, 4]
  x = jnp.transpose(x, (*range(at), *(at + a for a in axes)))
  x = x.reshape(*lead, units * how.rows, panels * COLUMNS)
  return end_groups(x, group, how.rows, k)[..., :n]


def columns(payload: jax.Array, name: str, group: int, k: int, at: jax.Array):
  """Some columns of a matrix, as rows.

  Args:
    payload: [panels, units, bytes].
    name, group, k: as for `from_panels`.
    at: [...] integers in [0, n).

  Returns:
    [..., k] uint8 codes.
  """
  how = CODES[name]
  panels, units, _ = payload.shape
  steps = how.rows // _STEPS
  panel, h, lane = at // COLUMNS, at % COLUMNS // 16, at % 16
  byte = payload[..., :128].reshape(panels, units, 2, 16, _STEPS)
  byte = byte[panel, :, h, lane]  # [..., units, i]
  width = 8 // steps if how.bits != 3 else 2
  pieces = [(byte >> (width * j)) & (2**width - 1) for j in range(steps)]
  if how.bits == 3:
    high = payload[..., 128:].reshape(panels, units, 16, _STEPS)
    high = high[panel, :, lane]
    shift = (4 * h).astype(jnp.uint8)[..., None, None]
    for j in range(steps):
      pieces[j] |= ((high >> (shift + jnp.uint8(j))) & 1) << 2
  x = jnp.stack(pieces, axis=-2)  # [..., units, j, i]
  x = x.reshape(*at.shape, units * how.rows, 1)
  return end_groups(x, group, how.rows, k)[..., 0]


def to_quads(numbers: jax.Array) -> jax.Array:
  """Lays the kernel of a convolution out that keeps channels apart.

  Args:
    numbers: [..., height, width, n] int8.

  Returns:
    [..., quads, width, columns, 4] int8.
  """
  *lead, height, width, n = numbers.shape
  fill = [(0, 0)] * len(lead) + [(0, -height % _STEPS), (0, 0), (0, -n % 16)]
  x = jnp.pad(numbers, fill)
  x = x.reshape(*lead, -1, _STEPS, width, x.shape[-1])
  return jnp.moveaxis(x, -3, -1)


def from_quads(quads: jax.Array, height: int, n: int) -> jax.Array:
  """The inverse of `to_quads`."""
  *lead, _, width, columns, _ = quads.shape
  x = jnp.moveaxis(quads, -1, -3).reshape(*lead, -1, width, columns)
  return x[..., :height, :, :n]


def to_float_panels(w: jax.Array) -> jax.Array:
  """[..., k, n] floats as [..., panels, k, 16]."""
  *lead, k, _ = w.shape
  x = to_float_taps(w)
  return jnp.swapaxes(x.reshape(*lead, k, -1, _FLOATS), -3, -2)


def from_float_panels(panels: jax.Array, n: int) -> jax.Array:
  """The inverse of `to_float_panels`."""
  *lead, _, k, _ = panels.shape
  return jnp.swapaxes(panels, -3, -2).reshape(*lead, k, -1)[..., :n]


def to_float_taps(w: jax.Array) -> jax.Array:
  """[..., taps, n] floats as [..., taps, columns]."""
  fill = [(0, 0)] * (w.ndim - 1) + [(0, -w.shape[-1] % _FLOATS)]
  return jnp.pad(w, fill)


def _joined(parts):
  out = parts[0]
  for part in parts[1:]:
    out |= part
  return out


def _begin_groups(x, group, rows):
  """Fills each group of rows up to whole units."""
  k = x.shape[-2]
  fill_group = -group % rows
  lead = [(0, 0)] * (x.ndim - 2)
  if group >= k or not fill_group:
    return jnp.pad(x, [*lead, (0, -k % rows), (0, 0)])
  whole = k // group * group
  head, tail = x[..., :whole, :], x[..., whole:, :]
  head = head.reshape(*x.shape[:-2], k // group, group, x.shape[-1])
  head = jnp.pad(head, [*lead, (0, 0), (0, fill_group), (0, 0)])
  head = head.reshape(*x.shape[:-2], -1, x.shape[-1])
  tail = jnp.pad(tail, [*lead, (0, -tail.shape[-2] % rows), (0, 0)])
  return jnp.concatenate([head, tail], axis=-2)


def end_groups(x, group, rows, k):
  """The inverse of `_begin_groups`."""
  fill_group = -group % rows
  if group >= k or not fill_group:
    return x[..., :k, :]
  whole, each = k // group, group + fill_group
  head = x[..., : whole * each, :]
  head = head.reshape(*x.shape[:-2], whole, each, x.shape[-1])
  head = head[..., :group, :].reshape(*x.shape[:-2], -1, x.shape[-1])
  tail = x[..., whole * each :, :][..., : k - whole * group, :]
  return jnp.concatenate([head, tail], axis=-2)
