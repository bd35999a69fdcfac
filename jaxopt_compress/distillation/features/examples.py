"""Losses on a whole example, and on what the examples of a batch are to each other.

    one row for each example: x [batch, ..., features] -> [batch, n]

A relation of examples sees those that are there: under `shard_map`, the part of the
batch that is on one device. With `axis_name` it sees those of all devices along these
mesh axes, so that their number changes nothing. Each device then returns its share of
the sum, in proportion to the examples that it has. Sums and counts of devices are added,
and so are their gradients, as for any other loss.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.features import hints

AxisName = str | tuple[str, ...] | None


def rows(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """(one row for each example, whether it counts).

  Args:
    x: [batch, ..., features].
    mask: as for `hints.hint`: positions of weight 0 are zeros. An example counts if any
      of its positions does.

  Returns:
    [batch, n], at least float32, and bool [batch].
  """
  at = hints.mask_of(x, mask)
  counts = jnp.ones(len(x), bool)
  if at is not None:
    counts = at.astype(bool).reshape(len(x), -1).any(-1)
  return positions.prepared(x, at).reshape(len(x), -1), counts


def related(
  loss: Callable[..., jax.Array],
  student: jax.Array,
  teacher: jax.Array,
  mask: jax.Array | None,
  axis_name: AxisName,
) -> positions.SumAndCount:
  """(loss times examples, examples) of this device, for a loss of the whole batch.

  Args:
    loss: `(student rows, teacher rows, counts) -> scalar`, a mean.
    student, teacher: [batch, ..., features]; their other axes may differ.
    mask: of the positions of the two, or [batch].
    axis_name: mesh axes along which the batch is cut, or None.

  Raises:
    ValueError: there are not the same examples on both sides, or a mask of positions
      that are not those of both.
  """
  if len(student) != len(teacher):
    raise ValueError(
      f'The student has values of {len(student)} examples, the teacher of'
      f' {len(teacher)}. Give both the same examples.'
    )
  s, counts = rows(student, mask)
  t, _ = rows(teacher, mask)
  here = jnp.sum(counts, dtype=s.dtype)
  if axis_name is not None:
    s, t, counts = (
      lax.all_gather(x, axis_name, tiled=True) for x in (s, t, counts)
    )
  return loss(s, t, counts) * here, here


def mean_of_pairs(x: jax.Array, counts: jax.Array) -> jax.Array:
  """The mean of x [n, ..., n] over tuples of distinct examples that count.

  0 where there is no such tuple.
  """
  kept = distinct(counts, x.ndim)
  total = jnp.sum(jnp.where(kept, x, 0.0))
  return positions.mean(total, jnp.sum(kept, dtype=x.dtype))


def distinct(counts: jax.Array, size: int) -> jax.Array:
  """Which tuples (i, j, ...) of examples count and have no example twice."""
  n, kept = jnp.arange(len(counts)), jnp.bool_(True)

  def along(x, axis):
    return jnp.expand_dims(x, [a for a in range(size) if a != axis])

  for i in range(size):
    kept = kept & along(counts, i)
    for j in range(i):
      kept = kept & (along(n, i) != along(n, j))
  return kept


def gram(x: jax.Array) -> jax.Array:
  """x x^T [n, n], in full precision on every device."""
  return jnp.matmul(x, x.T, precision='highest')


def root(x: jax.Array) -> jax.Array:
  """sqrt(x), with a derivative of 0 at 0, where it would be inf."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
