"""How a matrix without its zeros lies for the kernels of CPUs.

A matrix [k, n] is cut into panels of 32 columns, a panel into units of 4 rows: 128
entries. With s the bytes of an entry and r = 4 / s, so that r rows fill four bytes,
the entries of a unit are counted in the order

    entry[j][h][l][i] = w(r j + i, 16 h + l)    i < r, l < 16, h < 2, j < 4 / r

which for int8 is that of `layout`. A panel is a run of bytes that begins at a
multiple of 64:

    there    where units without entries are skipped: a bit for each unit, filled up
             to whole words of 64
    masks    16 bytes for each unit that is there, a bit for each entry
    values   of the entries whose bits are set, in their order; int8 as codes,
             which are 128 above their numbers

Bits are counted from the lowest of the first byte on. A stream is the runs of all
panels of a matrix, then fill; `offsets` says where each run begins and the last
one ends, in lines of 64 bytes. The fill is as long as the entries of a unit at
least: a kernel may read as far ahead.

N:M sparsity is the same with a constant number of values in each unit, some of them
zeros where a unit has fewer: the kernel then knows where they are without counting.

    bytes of a unit    int8 16 + 128 d,  bfloat16 16 + 256 d,  float32 16 + 512 d

at the density d. A group of rows that share scales begins with a unit of its own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import layout

_ROWS = 4  # of a unit
_ENTRIES = _ROWS * layout.COLUMNS
_MASK = _ENTRIES // 8  # bytes
_LINE = 64  # bytes; runs begin at multiples
_WORD = 64  # bits; where `there` ends


class Sparse(NamedTuple):
  """What is static of streams.

  Attributes:
    type: of entries: 'int8', 'bfloat16' or 'float32'.
    skips: whether units without entries are left out.
    constant: values of each unit that is there; 0 where their number varies.
  """

  type: str
  skips: bool
  constant: int

  @property
  def size(self) -> int:
    """Bytes of an entry."""
    return jnp.dtype(self.type).itemsize


def to_streams(
  w: np.ndarray | jax.Array,
  group: int,
  *,
  skips: bool | None = None,
  constant: bool | None = None,
) -> tuple[np.ndarray, np.ndarray, Sparse]:
  """Leaves the zeros out.

  Zero is what equals 0: the sign of a -0.0 is lost.

  Args:
    w: [..., k, n] int8, bfloat16 or float32, not traced: how long streams are
      depends on it. Leading axes are stacked matrices, whose streams are filled up
      to the longest.
    group: rows that share scales; k where all do.
    skips: whether units without entries are left out; what is smaller if None.
    constant: whether units are filled up to the same number of values; if None,
      where that takes no more than a hundredth more.

  Returns:
    Streams [..., bytes] uint8, offsets [..., panels + 1] int32, and what is static.

  >>> w = np.zeros((8, 32), np.int8)
  >>> w[5, 3] = -7
  >>> stream, offsets, how = to_streams(w, 8)
  >>> how
  Sparse(type='int8', skips=True, constant=1)
  >>> [int(at) for at in offsets], int(stream[0]), int(stream[24]) - 128
  ([0, 1], 2, -7)
  """
  if isinstance(w, jax.core.Tracer):
    raise ValueError(
      'The zeros of a traced array cannot be left out: how much memory the rest'
      ' takes depends on its values. Call this outside of jit, vmap and grad, and'
      ' pass what it returns to them.'
    )
  w = np.asarray(w)
  if w.dtype.name not in ('int8', 'bfloat16', 'float32') or w.ndim < 2:
    raise ValueError(
      f'A sparse weight is [..., k, n] of int8, bfloat16 or float32, not'
      f' {w.dtype.name}{list(w.shape)}.'
    )
  *lead, k, n = w.shape
  entries = _to_entries(w.reshape(-1, k, n), group)
  kept, there, how = _chosen(entries, skips, constant)
  # Codes of int8 are 128 above their numbers: the highest bit is flipped.
  values = (entries.view(np.uint8) ^ 128) if how.type == 'int8' else entries
  runs = [
    [_run(*panel, how) for panel in zip(*matrix)]
    for matrix in zip(values, kept, there)
  ]
  stream, offsets = _joined(runs, entries.shape[1], how)
  if stream is None:
    raise ValueError(
      f'A matrix {k} x {n} takes more than 2^31 bytes without its zeros, and a'
      ' stream has to stay below that. Split it.'
    )
  return (
    stream.reshape(*lead, stream.shape[-1]),
    offsets.reshape(*lead, offsets.shape[-1]),
    how,
  )


def _chosen(entries, skips, constant):
  """(which entries are kept, which units are there, what is static).

  Args:
    entries: [matrices, panels, units, 128].
    skips, constant: as for `to_streams`.
  """
  kept = entries != 0
  counts = kept.sum(-1)  # [matrices, panels, units]
  there = counts > 0
  if skips is None:
    # A unit that is left out saves its mask; all units then need a bit each.
    bits = counts[..., 0].size * _bits_bytes(counts.shape[-1])
    skips = bool((~there).sum() * _MASK > bits)
  if not skips:
    there = np.ones_like(there)
  most = int(counts.max(initial=0))
  total, filled = int(counts.sum()), int(there.sum()) * most
  if constant is None:
    constant = (filled - total) * 100 <= total
  if constant:
    kept = _filled(kept, there, most)
  how = Sparse(entries.dtype.name, skips, most if constant else 0)
  return kept, there, how


def _joined(runs, panels, how):
  """(streams [matrices, bytes], offsets [matrices, panels + 1]) of runs of bytes.

  (None, None) where a stream is too long.
  """
  lines = [[len(run) // _LINE for run in matrix] for matrix in runs]
  lines = np.asarray(lines, np.int64).reshape(len(runs), panels)
  ends = np.cumsum(lines, axis=1)
  longest = int(ends[:, -1].max(initial=0)) if panels else 0
  # Kernels may read as far ahead as the entries of a unit are long.
  length = longest * _LINE + _ENTRIES * how.size
  if length >= 2**31:
    return None, None
  stream = np.zeros((len(runs), length), np.uint8)
  for to, matrix in zip(stream, runs):
    run = np.concatenate(matrix) if matrix else np.zeros(0, np.uint8)
    to[: len(run)] = run
  offsets = np.concatenate([np.zeros_like(ends, shape=(len(ends), 1)), ends], 1)
  return stream, offsets.astype(np.int32)


def from_streams(
  stream: jax.Array,
  offsets: jax.Array,
  how: Sparse,
  group: int,
  k: int,
  n: int,
) -> jax.Array:
  """The inverse of `to_streams`: [..., k, n]. May be traced."""
  *lead, length = stream.shape
  panels = offsets.shape[-1] - 1
  units = layout.num_units(k, min(group, k), _ROWS)
  starts = offsets[..., :-1].reshape(-1, panels).astype(jnp.int32) * _LINE
  panel = functools.partial(_read_run, how=how, units=units)
  matrix = jax.vmap(jax.vmap(panel, (None, 0)))
  entries = matrix(jnp.asarray(stream).reshape(-1, length), starts)
  return _from_entries(entries, group, k, n).reshape(*lead, k, n)


def _bits_bytes(units: int) -> int:
  """Bytes of `there`."""
  return -(-units // _WORD) * _WORD // 8


def _run(values, kept, there, how):
  """A panel: [units, 128] values, which are kept, which units are there."""
  parts = []
  if how.skips:
    bits = np.packbits(there, bitorder='little')
    parts.append(np.pad(bits, (0, _bits_bytes(len(there)) - len(bits))))
  parts.append(np.packbits(kept[there], axis=-1, bitorder='little').ravel())
  parts.append(values[kept].view(np.uint8))
  run = np.concatenate(parts)
  return np.pad(run, (0, -len(run) % _LINE))


def _filled(kept, there, most):
  """Keeps the first zeros of each unit as well, until there are `most` values."""
  missing = most - kept.sum(-1, keepdims=True)
  zeros = np.cumsum(~kept, axis=-1)
  return kept | (~kept & (zeros <= missing) & there[..., None])


def _read_run(stream, start, how, units):
  """[units, 128] entries of the run at `start`."""

  def at(offset):
    return stream.at[offset].get(mode='fill', fill_value=0)

  # First the bits of the units that are there, then their masks, then the values.
  masks = start
  there = jnp.ones((units,), bool)
  if how.skips:
    masks += _bits_bytes(units)
    unit = jnp.arange(units)
    there = (at(start + unit // 8) >> (unit % 8).astype(jnp.uint8)) & 1 > 0
  # The mask of a unit comes after those of the units before it that are there; the
  # place of a value is the number of kept entries before it.
  order = _before(there)
  values = masks + jnp.sum(there) * _MASK
  byte = at((masks + order * _MASK)[:, None] + jnp.arange(_MASK)[None])
  kept = jnp.unpackbits(byte, axis=-1, bitorder='little') > 0
  kept &= there[:, None]
  flat = kept.reshape(-1)
  place = values + _before(flat) * how.size
  byte = at(place[:, None] + jnp.arange(how.size)[None])
  if how.type == 'int8':
    entries = jax.lax.bitcast_convert_type(byte[:, 0] ^ 128, jnp.int8)
  else:
    entries = jax.lax.bitcast_convert_type(byte, jnp.dtype(how.type))
  entries = jnp.where(flat, entries, jnp.zeros((), entries.dtype))
  return entries.reshape(units, _ENTRIES)


def _before(flags):
  """How many flags before each are set."""
  n = flags.astype(jnp.int32)
  return jnp.cumsum(n) - n


def _to_entries(w, group):
  """[matrices, k, n] to [matrices, panels, units, 128]."""
  m, k, n = w.shape
  w = np.pad(w, [(0, 0), (0, 0), (0, -n % layout.COLUMNS)])
  whole = k // group
  parts = [w[:, g * group : (g + 1) * group] for g in range(whole)]
  if whole * group < k:
    parts.append(w[:, whole * group :])
  # A group begins with a unit of its own: each is filled up to whole units.
  filled = [
    np.pad(a, [(0, 0), (0, -a.shape[1] % _ROWS), (0, 0)]) for a in parts
  ]
  w = np.concatenate(filled or [w], axis=1)
  r = _ROWS // w.dtype.itemsize
  # [m, units, j, i, panels, h, l] to [m, panels, units, j, h, l, i]
  w = w.reshape(m, w.shape[1] // _ROWS, _ROWS // r, r, -1, 2, 16)
  w = np.transpose(w, (0, 4, 1, 2, 5, 6, 3))
  return np.ascontiguousarray(w).reshape(*w.shape[:3], _ENTRIES)


def _from_entries(entries, group, k, n):
  """The inverse of `_to_entries`."""
  m, panels, units, _ = entries.shape
  r = _ROWS // entries.dtype.itemsize
  w = entries.reshape(m, panels, units, _ROWS // r, 2, 16, r)
  w = jnp.transpose(w, (0, 2, 3, 6, 1, 4, 5))
  w = w.reshape(m, units * _ROWS, panels * layout.COLUMNS)
  return layout.end_groups(w, group, _ROWS, k)[..., :n]
