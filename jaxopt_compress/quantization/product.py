"""The product of two operands, each codes with a scale and a zero point.

    sum_k (a_k - z_a) s_a (b_k - z_b) s_b
      = s_a s_b (sum a b - z_b sum a - z_a sum b + K z_a z_b)

where scale and zero point do not change along k. Where they do, group by group,
and the groups are summed in float32. The first sum is one `dot_general` of the
codes: int8 x int8 -> int32, float8 x float8 -> float32, or float x codes.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

# Up to so many products of two int8 numbers, less zero points, an int32 holds.
MOST_PRODUCTS = (2**31 - 1) // (256 * 256)
# Up to so many partial sums are made at once; more are made group after group.
_MOST_PARTIALS = 2**24


class Operand(NamedTuple):
  """`(numbers - zero) * scale`.

  Attributes:
    numbers: int8, float8 or float.
    scale: float32 of the same rank, or None for one: on a contracted axis 1, or
      one for each group.
    zero: like scale, int8 or float32; None for zero.
  """

  numbers: jax.Array
  scale: jax.Array | None = None
  zero: jax.Array | None = None


class Product(NamedTuple):
  """What training needs to know of a product.

  Attributes:
    bind: (*operands, **params) -> the dense product.
    at: position of the operand that meets the weight; None where it is the other
      one of two.
    rounded: (operands, side, leaf, params) -> that operand as it is rounded.
    summed: (side, params) -> the axes of the operand at `side` that are summed
      over.
  """

  bind: Callable
  at: int | None
  rounded: Callable
  summed: Callable

  def round_other(self, operands, side, leaf, params) -> list:
    """The operands, the one that the weight at `side` meets rounded."""
    values = list(operands)
    at = 1 - side if self.at is None else self.at
    values[at] = self.rounded(operands, side, leaf, params)
    return values


class Dims(NamedTuple):
  """Which axes meet, as in `lax.dot_general`."""

  contracting: tuple[tuple[int, ...], tuple[int, ...]]
  batch: tuple[tuple[int, ...], tuple[int, ...]]


def dims(dimension_numbers) -> Dims:
  return Dims(*(tuple(tuple(a) for a in p) for p in dimension_numbers))


def multiply(a: Operand, b: Operand, d: Dims, precision=None) -> jax.Array:
  """The product where no scale changes along a contracted axis: float32.

  Args:
    a, b: operands; scales and zero points are 1 on contracted axes.
    d: which axes meet.
    precision: of a floating product.

  Returns:
    [batch..., free of a..., free of b...] float32.
  """
  integer = all(x.numbers.dtype == jnp.int8 for x in (a, b))
  sums = jnp.int32 if integer else jnp.float32
  y = lax.dot_general(
    a.numbers,
    b.numbers,
    d,
    precision=None if integer else precision,
    preferred_element_type=sums,
  )

  def at(x, side):
    return placed(x, side, d, y.ndim)

  def total(x, side):
    along = d.contracting[side]
    return at(jnp.sum(x.numbers.astype(sums), axis=along, keepdims=True), side)

  if b.zero is not None:
    y, zero = same_type(y, at(b.zero, 1))
    y = y - zero * total(a, 0).astype(y.dtype)
  if a.zero is not None:
    y, zero = same_type(y, at(a.zero, 0))
    y = y - zero * total(b, 1).astype(y.dtype)
  if a.zero is not None and b.zero is not None:
    n = math.prod(a.numbers.shape[i] for i in d.contracting[0])
    zeros = at(a.zero, 0).astype(y.dtype) * at(b.zero, 1).astype(y.dtype)
    y = y + n * zeros
  return rescale(
    y,
    *(
      at(x.scale, side) for side, x in enumerate((a, b)) if x.scale is not None
    ),
  )


def rescale(y: jax.Array, *scales: jax.Array) -> jax.Array:
  """Sums of numbers times the scales of both operands, the smaller one first.

  Not finite only where the result is not: the smaller scale makes the sum larger
  only if the larger one does so, too.

  Args:
    y: [...] integers or float32.
    *scales: one or two, broadcastable to it.

  Returns:
    [...] float32.
  """
  scales = [lax.convert_element_type(s, jnp.float32) for s in scales]
  if len(scales) == 2:
    scales = [jnp.minimum(*scales), jnp.maximum(*scales)]
  y = lax.convert_element_type(y, jnp.float32)
  for scale in scales:
    y = lax.mul(y, scale)
  return y


def same_type(y, zero):
  """Sums and zero points in one type: int32 while both are integers."""
  if all(jnp.issubdtype(x.dtype, jnp.integer) for x in (y, zero)):
    return y, zero.astype(y.dtype)
  return y.astype(jnp.float32), zero.astype(jnp.float32)


def placed(x, side: int, d: Dims, rank: int) -> jax.Array:
  """Moves the axes of one operand to where the result of rank `rank` has them.

  Args:
    x: of the operand's rank, 1 on contracted axes.
    side: 0 or 1, whose it is.
    d: which axes meet.
    rank: of the result.

  Returns:
    Rank `rank`, broadcastable to the result.
  """
  held = d.contracting[side] + d.batch[side]
  free = [i for i in range(x.ndim) if i not in held]
  first = rank - len(free) if side else len(d.batch[side])
  places = [*range(len(d.batch[side])), *range(first, first + len(free))]
  # The result has batch axes, free axes of the left, free axes of the right. What
  # is contracted has size one here and is left over at the end.
  x = lax.transpose(x, (*d.batch[side], *free, *d.contracting[side]))
  shape = [1] * rank
  for place, n in zip(places, x.shape, strict=False):
    shape[place] = n
  return lax.reshape(x, shape)


# --------------------------------------------------------------------- groups


def multiply_groups(
  a: Operand, b: Operand, d: Dims, pair: int, size: int, precision=None
) -> jax.Array:
  """The product where scales may change every `size` entries of one axis.

  Args:
    a, b: operands; scales and zero points are 1 on contracted axes but for those
      of pair `pair`, where they may have ceil(n / size) entries.
    d: which axes meet.
    pair: which of the contracted pairs is grouped.
    size: entries of a group; the last may be shorter.
    precision: of a floating product.

  Returns:
    [batch..., free of a..., free of b...] float32.
  """
  axes = (d.contracting[0][pair], d.contracting[1][pair])
  n = a.numbers.shape[axes[0]]
  whole = n // size
  first = [
    _groups(_head(x, axis, whole, size), axis, whole, size)
    for x, axis in zip((a, b), axes, strict=True)
  ]
  y = None
  if whole:
    y = _sum_of_groups(*first, d, axes, precision)
  if n % size:
    rest = [_tail(x, i, whole, size) for x, i in zip((a, b), axes, strict=True)]
    short = multiply(*rest, d, precision)
    y = short if y is None else y + short
  return y


def _parts(x: Operand, axis, of_numbers, of_scales):
  """Applies one function to the numbers, another to what is per group."""

  def grouped(p):
    return p if p is None or p.shape[axis] == 1 else of_scales(p)

  return Operand(of_numbers(x.numbers), grouped(x.scale), grouped(x.zero))


def _head(x, axis, whole, size):
  """The first `whole` groups."""

  def first(n):
    return lambda p: lax.slice_in_dim(p, 0, n, axis=axis)

  return _parts(x, axis, first(whole * size), first(whole))


def _tail(x, axis, whole, size):
  """The entries after them, less than a group."""

  def after(n):
    return lambda p: lax.slice_in_dim(p, n, None, axis=axis)

  return _parts(x, axis, after(whole * size), after(whole))


def _groups(x, axis, whole, size):
  """[..., n, ...] to [..., n / size, size, ...]; scales [..., n / size, 1, ...]."""

  def numbers(p):
    shape = p.shape
    return p.reshape(*shape[:axis], whole, size, *shape[axis + 1 :])

  def beside_group(p):
    return None if p is None else jnp.expand_dims(p, axis + 1)

  return Operand(
    numbers(x.numbers), beside_group(x.scale), beside_group(x.zero)
  )


def _sum_of_groups(a, b, d, axes, precision):
  """Sums the products of all groups; the groups are one more batch axis."""
  # The grouped axis became two, (group, entry of it): what comes after it has
  # moved by one, and what was contracted there is now the second of the two.
  inner = [
    tuple(i + (i >= axis) for i in contracting)
    for axis, contracting in zip(axes, d.contracting, strict=True)
  ]
  outer = [
    (axis, *(i + (i > axis) for i in batch))
    for axis, batch in zip(axes, d.batch, strict=True)
  ]
  grouped = Dims(tuple(inner), tuple(outer))
  shape = jax.eval_shape(lambda a, b: multiply(a, b, grouped), a, b).shape
  # Of a size that an export leaves open, group after group.
  known = all(isinstance(n, int) for n in shape)
  if known and math.prod(shape) <= _MOST_PARTIALS or shape[0] == 1:
    return jnp.sum(multiply(a, b, grouped, precision), axis=0)

  def group(i):
    # A part that all groups share has size one along them.
    def at_group(p, axis):
      start = jnp.minimum(i, p.shape[axis] - 1)
      return lax.dynamic_slice_in_dim(p, start, 1, axis)

    operands = [
      jax.tree.map(functools.partial(at_group, axis=axis), x)
      for x, axis in zip((a, b), axes, strict=True)
    ]
    return multiply(*operands, grouped, precision)[0]

  return lax.fori_loop(1, shape[0], lambda i, y: y + group(i), group(0))


def most_products(d: Dims, shape, pair: int) -> int:
  """Entries along contracted pair `pair` whose products an int32 surely holds."""
  others = math.prod(
    shape[i] for j, i in enumerate(d.contracting[0]) if j != pair
  )
  return MOST_PRODUCTS // others
