"""How k rows are cut into pieces that a kernel takes whole.

    a [k, n]  ->  [pieces, piece, n]    zeros where k or a group ends early

A kernel walks over the first axis, so that it slices no tile: a piece is a power of
two between 32 and 128 rows, which both Triton and Mosaic take as the inner size of
a product, and lies within one group of rows that share a scale. Columns are padded
to a multiple of 128, once, so that no load is ever out of bounds.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

_PIECES = (128, 64, 32)
_COLUMNS = 128


@dataclasses.dataclass(frozen=True)
class Cut:
  """How many pieces of how many rows.

  Attributes:
    k: rows there are.
    group: rows that share a scale; the last group may have fewer.
    piece: rows of a piece, a power of two.
    per_group: pieces of a group; its last one is filled with zeros.
  """

  k: int
  group: int
  piece: int
  per_group: int

  @property
  def groups(self) -> int:
    return -(-self.k // self.group)

  @property
  def count(self) -> int:
    return self.groups * self.per_group


def cut(k: int, group: int | None = None) -> Cut:
  """Cuts k rows into pieces.

  Args:
    k: how many rows.
    group: rows that share a scale; None for all of them.

  >>> cut(4096, 64)
  Cut(k=4096, group=64, piece=64, per_group=1)
  >>> cut(300, 150).per_group, cut(300, 150).count
  (5, 10)
  """
  if group is not None and group < 1:
    raise ValueError(
      f'A group has at least one row, not {group}. Pass group=None for one scale'
      ' a column.'
    )
  group = max(k, 1) if group is None else min(group, max(k, 1))
  least = -(-group // _PIECES[-1]) * _PIECES[-1]
  # The largest piece that adds at most an eighth of zeros.
  piece = next(p for p in _PIECES if -(-group // p) * p <= least * 9 / 8)
  return Cut(k, group, piece, -(-group // piece))


def rows(a: jax.Array, c: Cut) -> jax.Array:
  """Cuts the first axis.

  Args:
    a: [k, n].
    c: how.

  Returns:
    [c.count, c.piece, n].
  """
  n = a.shape[1]
  a = _padded(a, 0, c.groups * c.group).reshape(c.groups, c.group, n)
  a = _padded(a, 1, c.per_group * c.piece)
  return a.reshape(c.count, c.piece, n)


def whole(pieces: jax.Array, c: Cut) -> jax.Array:
  """The inverse of `rows`: [c.count, c.piece, n] to [k, n]."""
  n = pieces.shape[2]
  a = pieces.reshape(c.groups, c.per_group * c.piece, n)[:, : c.group]
  return a.reshape(c.groups * c.group, n)[: c.k]


def features(x: jax.Array, c: Cut, count: int, m: int) -> jax.Array:
  """Cuts the last axis of the other operand.

  Args:
    x: [rows, k].
    c: how.
    count: pieces wanted, at least c.count; the rest are zeros.
    m: rows wanted, the rest zeros.

  Returns:
    [count, m, c.piece].
  """
  pieces = rows(x.T, c).swapaxes(1, 2)
  return _padded(_padded(pieces, 0, count), 1, m)


def columns(a: jax.Array) -> jax.Array:
  """Zeros up to a multiple of 128 columns: [..., n] to [..., n']."""
  n = a.shape[-1]
  return _padded(a, a.ndim - 1, -(-n // _COLUMNS) * _COLUMNS)


def nibbles(pieces: jax.Array) -> jax.Array:
  """Two pieces of 4-bit codes in one: even ones low, odd ones high.

  Args:
    pieces: [count, piece, n] int8 in [-8, 7].

  Returns:
    [ceil(count / 2), piece, n] int8.
  """
  low_high = _padded(pieces, 0, pieces.shape[0] + pieces.shape[0] % 2)
  codes = lax.bitcast_convert_type(low_high, jnp.uint8) & 15
  byte = codes[0::2] | (codes[1::2] << 4)
  return lax.bitcast_convert_type(byte, jnp.int8)


def of_nibbles(byte: jax.Array, bits: int = 4) -> tuple[jax.Array, ...]:
  """int32 codes of the pieces in a byte; runs inside kernels.

  Args:
    byte: [piece, n] int8.
    bits: 4, or 8 for bytes that are codes.

  Returns:
    (low, high), or (byte,): [piece, n] int32 each.
  """
  wide = byte.astype(jnp.int32)
  if bits == 8:
    return (wide,)
  # Arithmetic shifts carry the sign of each code.
  return (wide << 28) >> 28, wide >> 4


def from_nibbles(packed: jax.Array, count: int) -> jax.Array:
  """The inverse of `nibbles`: [pairs, piece, n] to [count, piece, n]."""
  low, high = of_nibbles(packed)
  pairs, piece, n = packed.shape
  both = jnp.stack([low, high], axis=1).reshape(2 * pairs, piece, n)
  return both[:count].astype(jnp.int8)


def matrix(x: jax.Array) -> None:
  """Raises ValueError unless `x` is a matrix that kernels take."""
  if x.ndim != 2 or x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
    raise ValueError(
      f'x is {x.dtype}{list(x.shape)}; expected [m, k] of float32, bfloat16 or'
      ' float16. Put leading axes on with jax.vmap, or reshape them into m.'
    )


def _padded(a, axis, size):
  fill = size - a.shape[axis]
  if not fill:
    return a
  return jnp.pad(a, [(0, fill * (i == axis)) for i in range(a.ndim)])
