"""Counts beyond an int32, exact and without 64-bit integers.

    count = high 2^30 + low,   0 <= low < 2^30

A model of 2^31 weights is ranked as one, and JAX has no int64 unless all of a program
has. Two int32 words hold up to 2^60. They are added, compared and multiplied by a
fraction with no rounding. Where what is counted is known to be less than 2^31, an int32
array does in place of a `Count`: `count` returns one, and all functions take both.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp

_BASE = 30
_MASK = (1 << _BASE) - 1
_MOST = 2**31 - 1

# Digits of the product of a count and a fraction: 5 of 12 bits hold 60 bits, and sums
# of 5 products of two digits fit an int32.
_DIGIT = 12
_DIGITS = 5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Count:
  """Whole numbers, as two int32 arrays of one shape; see the top of the file."""

  high: jax.Array
  low: jax.Array

  shape = property(lambda self: self.low.shape)

  def __add__(self, other):
    other = of(other)
    low = self.low + other.low
    return Count(self.high + other.high + (low >> _BASE), low & _MASK)

  def __sub__(self, other):
    # The shift of a negative difference is -1: what is borrowed.
    other = of(other)
    low = self.low - other.low
    return Count(self.high - other.high + (low >> _BASE), low & _MASK)

  __radd__ = __add__

  def __rsub__(self, other):
    return of(other) - self

  def __ge__(self, other):
    other = of(other)
    same = self.high == other.high
    return (self.high > other.high) | (same & (self.low >= other.low))

  def __le__(self, other):
    return of(other) >= self

  def __getitem__(self, index):
    return Count(self.high[index], self.low[index])

  def __int__(self):
    return (int(self.high) << _BASE) + int(self.low)

  def reshape(self, *shape):
    return Count(self.high.reshape(*shape), self.low.reshape(*shape))


Number = int | jax.Array | Count


def of(n: Number) -> Count:
  """A number, or an array of int32, as a `Count`.

  >>> n = of(2**40 + 7)
  >>> int(n.high), int(n.low)
  (1024, 7)
  """
  if isinstance(n, Count):
    return n
  if isinstance(n, int):
    return Count(jnp.int32(n >> _BASE), jnp.int32(n & _MASK))
  n = jnp.asarray(n)
  if not jnp.issubdtype(n.dtype, jnp.integer):
    raise ValueError(f'{n.dtype} {n}; a count is a whole number.')
  n = n.astype(jnp.int32)
  return Count(n >> _BASE, n & _MASK)


def several(numbers: Sequence[int]) -> Count:
  """A vector of them.

  >>> int(several([1, 2**40])[1])
  1099511627776
  """
  words = [(n >> _BASE, n & _MASK) for n in numbers]
  high, low = jnp.array(words, jnp.int32).T
  return Count(high, low)


def narrow(n: Number) -> int | jax.Array:
  """A `Count` that is less than 2^31 as an int32; other numbers as they are.

  >>> int(narrow(of(2**31 - 1)))
  2147483647
  """
  return (n.high << _BASE) | n.low if isinstance(n, Count) else n


def where(condition: jax.Array, a: Number, b: Number) -> Number:
  """`jnp.where` of counts.

  >>> int(where(jnp.array(True), of(3), of(4)))
  3
  """
  if not isinstance(a, Count) and not isinstance(b, Count):
    return jnp.where(condition, a, b)
  a, b = of(a), of(b)
  return Count(
    jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low)
  )


def clip(n: Number, least: Number, most: Number) -> Number:
  """`n`, or the bound that it is beyond.

  >>> [int(clip(of(n), of(2), of(4))) for n in (1, 3, 2**40)]
  [2, 3, 4]
  """
  n = where(n >= least, n, least)
  return where(n >= most, most, n)


def total(n: Number, axes: tuple[int, ...] | None = None) -> Number:
  """The sum over some axes, which stay with size 1, or over all; of int32 an int32.

  Words are summed in parts of so few bits that no sum of parts leaves an int32.

  >>> int(total(of(jnp.full(3, 2**30))))
  3221225472
  """
  keep = axes is not None
  if not isinstance(n, Count):
    return jnp.sum(n, axis=axes, keepdims=keep, dtype=jnp.int32)
  over = range(len(n.shape)) if axes is None else axes
  terms = math.prod(n.shape[a] for a in over)
  if terms == 1:
    return n if keep else n.reshape(())
  bits = _BASE - max(terms - 1, 0).bit_length()
  if bits < 1:
    raise ValueError(
      f'{terms} counts in one sum; fewer than 2^29 are expected.'
    )
  out = of(0)
  for begin in range(0, _BASE, bits):
    part = (n.low >> begin) & ((1 << bits) - 1)
    summed = jnp.sum(part, axis=axes, keepdims=keep, dtype=jnp.int32)
    out += _shifted(summed, begin)
  high = jnp.sum(n.high, axis=axes, keepdims=keep, dtype=jnp.int32)
  return Count(out.high + high, out.low)


def count(
  mask: jax.Array, axes: tuple[int, ...] | None = None, *, most: int = _MOST
) -> Number:
  """How many are True, over some axes (which stay, with size 1) or all.

  Args:
    mask: boolean array.
    axes: counted over; None is all, and leaves a scalar.
    most: what a plain sum may hold. Above, trailing axes are summed first.

  Returns:
    An int32 array, or a `Count` where that many entries may be more.

  >>> int(count(jnp.ones((4, 8), bool), most=10))
  32
  """
  over = tuple(range(mask.ndim)) if axes is None else axes
  over = sorted(a % mask.ndim for a in over)
  inner, outer = split(mask.shape, tuple(over), most)
  found = jnp.sum(_by_bytes(mask, inner), inner, jnp.int32, keepdims=True)
  if outer:
    found = total(of(found), outer)
  return found if axes is not None else found.reshape(())


def _by_bytes(mask, axes):
  """The mask, or how many are True of each 128 neighbours of the last axis.

  XLA's CPU compiler makes vector code of sums of few bytes, and scalar code of a
  comparison that is summed at once, which takes eight times as long. With several
  devices a last axis that is cut might have to be gathered for it.
  """
  whole = mask.ndim - 1 in axes and mask.shape[-1] % 128 == 0
  if jax.device_count() > 1 or not whole:
    return mask
  runs = mask.reshape(*mask.shape[:-1], mask.shape[-1] // 128, 128)
  return jnp.sum(runs, axis=-1, dtype=jnp.uint8)


def split(
  shape: tuple[int, ...], axes: tuple[int, ...], most: int = _MOST
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The last of the axes whose entries an int32 counts, and those before.

  >>> split((70000, 4, 80000), (0, 1, 2))
  ((1, 2), (0,))
  """
  size, inner = 1, []
  for axis in reversed(axes):
    if size * shape[axis] > most:
      break
    size *= shape[axis]
    inner.insert(0, axis)
  return tuple(inner), axes[: len(axes) - len(inner)]


def portion(n: int | Count, fraction: float | jax.Array) -> int | Count:
  """round(fraction * n), halves to even, with no rounding but that.

  Args:
    n: how many.
    fraction: in [0, 1]. A float32, where it is traced.

  Returns:
    An int for plain Python numbers, else a `Count`.

  >>> portion(10, 0.29), portion(10, 1.)
  (3, 10)
  >>> int(portion(2**40 + 2, jnp.float32(0.5)))
  549755813889
  """
  if isinstance(n, int) and isinstance(fraction, (int, float)):
    return round(fraction * n)
  n, f = of(n), jnp.clip(jnp.asarray(fraction, jnp.float32), 0.0, 1.0)
  digits = _product(_digits_of(n), _digits_behind(f))
  behind, whole = digits[:_DIGITS], digits[_DIGITS:]
  rest = sum((d > 0).astype(jnp.int32) for d in behind[:-1])
  half = 1 << (_DIGIT - 1)
  above = (rest > 0) | (
    (whole[0] & 1) == 1
  )  # an odd number goes up to an even one
  up = (behind[-1] > half) | ((behind[-1] == half) & above)
  low = whole[0] | (whole[1] << 12) | ((whole[2] & 63) << 24)
  high = (whole[2] >> 6) | (whole[3] << 6) | (whole[4] << 18)
  return Count(high, low) + up.astype(jnp.int32)


def ramped(
  n: int | Count,
  fraction: float | jax.Array,
  ramp: float | jax.Array,
  end: Count | None = None,
) -> int | Count:
  """round(n * fraction * ramp), rounded once; at ramp 1 what `portion` gives.

  Args:
    n, fraction: as for `portion`.
    ramp: in [0, 1]. A float32, where it is traced.
    end: portion(n, fraction), if it is known more exactly than from a float32.

  >>> ramped(10, 0.5, 0.3), int(ramped(10, 0.5, jnp.float32(0.3)))
  (2, 2)
  """
  if isinstance(ramp, (int, float)):
    return portion(n, fraction * ramp)
  end = portion(n, fraction) if end is None else end
  now = portion(n, fraction * ramp)
  # In float32 a fraction may be more than it is.
  return where((now >= end) | (ramp >= 1), end, now)


def _digits_of(n):
  """Digits of 12 bits, the least first."""
  low, high, last = n.low, n.high, (1 << _DIGIT) - 1
  middle = (low >> 24) | ((high & 63) << 6)
  return [
    low & last,
    (low >> 12) & last,
    middle,
    (high >> 6) & last,
    high >> 18,
  ]


def _digits_behind(f):
  """The whole part of a fraction and its digits behind the point, all exact."""
  digits = [jnp.floor(f)]
  for _ in range(_DIGITS):
    f = (f - jnp.floor(f)) * (1 << _DIGIT)
    digits.append(jnp.floor(f))
  return [d.astype(jnp.int32) for d in digits]


def _product(ours, theirs):
  """Digits of the product, the least first: 5 behind the point, 5 before it."""
  digits, carry = [], 0
  # Digit i of the count times digit j behind the point weighs 2^(12 (i - j)).
  for weight in range(-_DIGITS, _DIGITS):
    pairs = [(i, i - weight) for i in range(_DIGITS) if 0 <= i - weight <= 5]
    column = carry + sum(ours[i] * theirs[j] for i, j in pairs)
    digits.append(column & ((1 << _DIGIT) - 1))
    carry = column >> _DIGIT
  return digits


def _shifted(n, bits):
  """n 2^bits, for 0 <= n < 2^30 and bits < 30."""
  if not bits:
    return of(n)
  return Count(n >> (_BASE - bits), (n << bits) & _MASK)
