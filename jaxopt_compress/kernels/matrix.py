"""An array seen as the matrices [k, n] that products contract over k."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import moved


class Matrix(NamedTuple):
  """How the axes of an array are those of a matrix.

  Attributes:
    rows: sizes of the axes that make up k, major first.
    columns: sizes of the axes that make up n, major first.
    order: which of `rows + columns` each axis of the array is.
  """

  rows: tuple[int, ...]
  columns: tuple[int, ...]
  order: tuple[int, ...]

  @property
  def sizes(self) -> tuple[int, ...]:
    return self.rows + self.columns

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array."""
    return tuple(self.sizes[i] for i in self.order)

  @property
  def k(self) -> int:
    return math.prod(self.rows)

  @property
  def n(self) -> int:
    return math.prod(self.columns)

  def to_matrix(self, x: jax.Array) -> jax.Array:
    """[stack..., *shape] to [stack..., k, n]; sizes may differ from those here."""
    lead = x.ndim - len(self.order)
    # Rows and columns first to last, wherever the array has them.
    axes = [lead + self.order.index(i) for i in range(len(self.order))]
    x = jnp.transpose(x, (*range(lead), *axes))
    split = lead + len(self.rows)
    k, n = math.prod(x.shape[lead:split]), math.prod(x.shape[split:])
    return x.reshape(*x.shape[:lead], k, n)

  def from_matrix(self, x: jax.Array, sizes=None) -> jax.Array:
    """The inverse; `sizes` are those of rows and columns in `x`."""
    lead = x.ndim - 2
    x = x.reshape(*x.shape[:-2], *(sizes or self.sizes))
    return jnp.transpose(x, (*range(lead), *(lead + i for i in self.order)))

  def transposed(self, permutation: tuple[int, ...]) -> 'Matrix':
    """The same matrix of an array whose axes were permuted."""
    return self._replace(order=tuple(self.order[i] for i in permutation))

  def reshaped(self, shape: tuple[int, ...]) -> 'Matrix | str':
    """The same matrix of an array that was reshaped, or why there is none.

    Axes of rows merge and split among themselves, and so do those of columns. Axes of
    size one come and go; new ones count as columns.

    >>> m = Matrix(rows=(4, 6), columns=(10,), order=(0, 1, 2))
    >>> def show(m, *shapes):
    ...   for shape in shapes:
    ...     print(shape, '->', m.reshaped(shape))
    >>> show(m, (24, 10), (2, 2, 6, 10), (4, 6, 5, 2), (24, 1, 10))
    (24, 10) -> Matrix(rows=(24,), columns=(10,), order=(0, 1))
    (2, 2, 6, 10) -> Matrix(rows=(2, 2, 6), columns=(10,), order=(0, 1, 2, 3))
    (4, 6, 5, 2) -> Matrix(rows=(4, 6), columns=(5, 2), order=(0, 1, 2, 3))
    (24, 1, 10) -> Matrix(rows=(24,), columns=(10, 1), order=(0, 2, 1))
    >>> show(m, (4, 60), (240,))
    (4, 60) -> a reshape that mixes what it is packed along
    (240,) -> a reshape that mixes what it is packed along

    Of a transposed array, axes that are neighbours need not be so in the matrix.

    >>> show(m.transposed((1, 0, 2)), (24, 10), (2, 3, 4, 10))
    (24, 10) -> a reshape that mixes what it is packed along
    (2, 3, 4, 10) -> Matrix(rows=(4, 2, 3), columns=(10,), order=(1, 2, 0, 3))
    >>> show(Matrix((1,), (10,), (0, 1)), (10,), (1, 10, 1))
    (10,) -> a reshape to a vector
    (1, 10, 1) -> Matrix(rows=(1,), columns=(10, 1), order=(0, 1, 2))
    """
    split, axes_of, added = len(self.rows), {}, []
    for before, after in moved.common_blocks(self.shape, shape):
      entries = [self.order[i] for i in before]
      if not entries:  # axes of size one that were not there
        added += after
        continue
      # What merges stays a run of rows, or of columns, only if it was one.
      first, last = entries[0], entries[-1]
      one_side = (first < split) == (last < split)
      if not one_side or entries != list(range(first, first + len(entries))):
        return 'a reshape that mixes what it is packed along'
      axes_of[first] = after
    rows = [j for e in range(split) for j in axes_of.get(e, ())]
    columns = [
      j for e in range(split, len(self.sizes)) for j in axes_of.get(e, ())
    ]
    columns += added
    if not rows or not columns:
      return 'a reshape to a vector'
    places = rows + columns
    return Matrix(
      tuple(shape[j] for j in rows),
      tuple(shape[j] for j in columns),
      tuple(places.index(j) for j in range(len(shape))),
    )


def by_row(part: jax.Array, group: int, k: int) -> jax.Array:
  """[..., groups, n] to what broadcasts to [..., k, n]."""
  if part.shape[-2] == 1:
    return part
  # The last group may have fewer rows than the others.
  return jnp.repeat(part, group, axis=-2)[..., :k, :]
