"""Blocks: the entries of an array that share a scale.

`blocks` is a tuple of (axis from the end, size), size 0 for the whole axis; an
axis that is not named has blocks of one. The last block of an axis that its size
does not divide is shorter.
"""

import jax
from jax import lax
import jax.numpy as jnp

Blocks = tuple[tuple[int, int], ...]


def split(x: jax.Array, blocks: Blocks) -> tuple[jax.Array, tuple[int, ...]]:
  """Gives each blocked axis an axis of its own for the entries of a block.

  Args:
    x: [..., n, ...]
    blocks: what shares a scale.

  Returns:
    [..., ceil(n / size), size, ...], filled up with zeros, and the positions of
    the new axes.
  """
  # An axis of n entries becomes two, (block, entry of it). Filling is zeros: sums and
  # largest magnitudes do not see them, and `mean` counts them out.
  sizes = {x.ndim + a: min(n or x.shape[a], x.shape[a]) for a, n in blocks}
  padding = [
    (0, -n % sizes[i] if i in sizes else 0) for i, n in enumerate(x.shape)
  ]
  if any(after for _, after in padding):
    x = jnp.pad(x, padding)
  shape, inner = [], []
  for i, n in enumerate(x.shape):
    if i in sizes:
      shape += [n // sizes[i], sizes[i]]
      inner.append(len(shape) - 1)
    else:
      shape.append(n)
  return x.reshape(shape), tuple(inner)


def reduce(f, x: jax.Array, blocks: Blocks) -> jax.Array:
  """`f(x, axis=...)` of each block: the rank of `x`, one entry a block."""
  x, inner = split(x, blocks)
  return f(x, axis=inner)


def mean(x: jax.Array, blocks: Blocks) -> jax.Array:
  """The mean of each block, filling not counted."""
  total = reduce(jnp.sum, x, blocks)
  return total / reduce(jnp.sum, jnp.ones_like(x), blocks)


def expand(part: jax.Array, blocks: Blocks, shape) -> jax.Array:
  """Repeats an entry for each block to one for each entry of `shape`.

  An axis that is shared as a whole stays of size one, to broadcast.
  """
  for axis, size in blocks:
    if size and part.shape[axis] > 1:
      # The last block may be shorter, so what is repeated too often is cut off.
      part = jnp.repeat(part, size, axis=axis)
      part = lax.slice_in_dim(part, 0, shape[axis], axis=axis)
  return part


def inner_sizes(shape, blocks: Blocks) -> Blocks:
  """The blocks that remain blocks of an array: more than one, of more than one.

  >>> inner_sizes((64, 8), ((-2, 16), (-1, 0)))
  ((-2, 16),)
  """
  return tuple((a, s) for a, s in blocks if 1 < s < shape[a])
