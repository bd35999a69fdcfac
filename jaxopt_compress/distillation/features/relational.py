"""How examples lie to each other: relational distillation.

    distances   huber(d_ij / mean d - d'_ij / mean d')      d_ij = |x_i - x_j|
    angles      huber(cos(ijk) - cos'(ijk))                 the angle at x_j

Means over pairs, or triples, of distinct examples, as in Park et al. 2019,
https://arxiv.org/abs/1904.05068, eq. 4 to 9. The authors' code also averages over pairs
of an example with itself, which add 0: of n examples its distances are (n - 1) / n of
these, its angles (n - 1) (n - 2) / n^2.

Distances come from products x x^T. Two examples that are closer than the rounding of
these are at distance 0, where derivatives are 0. The rounding is relative to how far an
example is from the mean of all. Some that are 1e3 times farther off than the others
move the mean, and so take the others' digits: normalise such values first.
"""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.features import examples


def distances(
  student: jax.Array,
  teacher: jax.Array,
  *,
  mask: jax.Array | None = None,
  axis_name: examples.AxisName = None,
) -> positions.SumAndCount:
  """Of pairs: their distance over the mean distance in the batch; eq. 5 to 7.

  Args:
    student, teacher: [batch, ..., features]; an example is all of its features.
    mask: [batch], which examples count; or of positions, where student and teacher have
      the same. It chooses, and does not weight.
    axis_name: mesh axes along which the batch is cut: see `examples`.

  Returns:
    (sum, count) over examples: sum / count is the mean over pairs, 0 if there is none.

  >>> x = jnp.array([[0.], [1.], [3.]])
  >>> [round(float(a), 4) for a in distances(x, x**2)]
  [0.1111, 3.0]
  """
  return examples.related(_of_distances, student, teacher, mask, axis_name)


def angles(
  student: jax.Array,
  teacher: jax.Array,
  *,
  mask: jax.Array | None = None,
  axis_name: examples.AxisName = None,
) -> positions.SumAndCount:
  """Of triples: the cosine of the angle at the second; eq. 8 and 9.

  It holds arrays of [batch, batch, batch]: for batches of up to a few hundred. Of
  examples that are close beside their distance from the mean, angles are as inexact
  as distances are.
  Arguments and result as for `distances`.

  >>> x = jnp.array([[0., 0.], [1., 0.], [0., 1.]])
  >>> float(angles(x, 2 * x + 1)[0])
  0.0
  """
  return examples.related(_of_angles, student, teacher, mask, axis_name)


def _of_distances(s, t, counts):
  def relative(x):
    d = examples.root(_squares(_centred(x, counts)))
    # The mean is one of distinct pairs, and 0 only if all examples are the same.
    mean = examples.mean_of_pairs(d, counts)
    return d / jnp.where(mean == 0, 1.0, mean)

  return examples.mean_of_pairs(_huber(relative(s) - relative(t)), counts)


def _of_angles(s, t, counts):
  def cosines(x):
    x = _centred(x, counts)
    g, d = examples.gram(x), examples.root(_squares(x))
    # [i, j, k]: (x_i - x_j) . (x_k - x_j), without the differences themselves, which
    # would take [batch, batch, features].
    product = g[:, None] - g[:, :, None] - g[None] + jnp.diag(g)[None, :, None]
    lengths = d[:, :, None] * d[None]
    apart = lengths > 0
    return jnp.where(apart, product / jnp.where(apart, lengths, 1.0), 0.0)

  return examples.mean_of_pairs(_huber(cosines(s) - cosines(t)), counts)


def _centred(x, counts):
  """x less its mean, over its size: products are then rounded least."""
  kept = counts[:, None]
  x = jnp.where(kept, x, 0.0)
  n = jnp.sum(counts, dtype=x.dtype)
  # Distances and angles do not depend on either.
  x = jnp.where(kept, x - positions.mean(jnp.sum(x, 0, keepdims=True), n), 0.0)
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
  return x / jnp.where(largest == 0, 1.0, largest)


def _squares(x):
  """|x_i - x_j|^2, exactly 0 below the rounding of the products."""
  g = examples.gram(x)
  lengths = jnp.diag(g)
  both = lengths[:, None] + lengths[None]
  square = both - 2 * g
  return jnp.where(square > 8 * jnp.finfo(x.dtype).eps * both, square, 0.0)


def _huber(x):
  """x^2 / 2 up to 1, |x| - 1/2 above."""
  size = jnp.abs(x)
  return jnp.where(size <= 1, jnp.square(x) / 2, size - 0.5)
