"""An array seen as the matrices [k, n] that products contract over k."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


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


def by_row(part: jax.Array, group: int, k: int) -> jax.Array:
  """[..., groups, n] to what broadcasts to [..., k, n]."""
  if part.shape[-2] == 1:
    return part
  return jnp.repeat(part, group, axis=-2)[..., :k, :]
