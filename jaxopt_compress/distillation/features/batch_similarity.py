"""Which examples of a batch are alike: similarity-preserving distillation.

    G = X X^T, each row divided by its length         X [batch, everything of an example]
    L = 1 / batch^2 |G_teacher - G_student|_F^2

Tung and Mori 2019, https://arxiv.org/abs/1907.09682, eq. 1 to 4. Student and teacher
need nothing in common but the examples.
"""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.features import examples
from jaxopt_compress.distillation.features import hints


def similarity(
  student: jax.Array,
  teacher: jax.Array,
  *,
  mask: jax.Array | None = None,
  axis_name: examples.AxisName = None,
) -> positions.SumAndCount:
  """Mean over pairs of examples of the squared difference of their similarities.

  Args:
    student, teacher: [batch, ..., features].
    mask: [batch], which examples count; or of positions, where student and teacher have
      the same. It chooses, and does not weight.
    axis_name: mesh axes along which the batch is cut: see `examples`.

  Returns:
    (sum, count) over examples: sum / count is L.

  >>> x = jnp.eye(2)
  >>> loss, n = similarity(x, jnp.ones((2, 5)))
  >>> float(similarity(x, 3 * x)[0]), round(float(loss / n), 4)
  (0.0, 0.2929)
  """
  return examples.related(_loss, student, teacher, mask, axis_name)


def _loss(s, t, counts):
  difference = jnp.square(_similarities(s, counts) - _similarities(t, counts))
  n = jnp.sum(counts, dtype=s.dtype)
  return positions.mean(jnp.sum(difference), jnp.square(n))


def _similarities(x, counts):
  """Rows and columns of examples that do not count are zeros."""
  x = jnp.where(counts[:, None], x, 0.0)
  # One number for all changes no row, and keeps products of large features finite.
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
  x = x / jnp.where(largest == 0, 1.0, largest)
  return hints.unit(examples.gram(x))
