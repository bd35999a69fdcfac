"""A value of the student that is like one of the teacher, position by position.

    hint         mean over features of (s - t)^2
    cosine       1 - s . t / (|s| |t|)
    normalized   `hint` of features with mean 0 and variance 1 at each position

A position is a token, or a place of an image. Widths are equal: where a student is
narrower, a connector (`connectors`) comes first. (sum, count) are over positions; a
position of weight 0 has no part in either or in a derivative, whatever it holds.
"""

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions


def hint(
  student: jax.Array, teacher: jax.Array, *, mask: jax.Array | None = None
) -> positions.SumAndCount:
  """Mean over features of (student - teacher)^2.

  Romero et al. 2014, https://arxiv.org/abs/1412.6550, eq. 3, which has half of the sum
  over features and positions.

  Args:
    student, teacher: [..., features].
    mask: [...], or its leading axes alone, such as [batch]: weights of positions; None:
      all count.

  Returns:
    (sum, count), at least float32 scalars.

  Raises:
    ValueError: shapes differ, or the mask has others.

  >>> [float(x) for x in hint(jnp.zeros((3, 2)), jnp.ones((3, 2)))]
  [3.0, 3.0]
  """
  s, t, mask = _prepared(student, teacher, mask)
  return positions.total(jnp.mean(jnp.square(s - t), -1), mask)


def cosine(
  student: jax.Array, teacher: jax.Array, *, mask: jax.Array | None = None
) -> positions.SumAndCount:
  """1 - cos(student, teacher): directions alone.

  Sanh et al. 2019 (DistilBERT), https://arxiv.org/abs/1910.01108, section 3. The cosine
  with a vector of zeros is 0, and has no derivative. Arguments, result and errors as
  for `hint`.

  >>> x = jnp.array([[1., 0.], [0., 2.]])
  >>> float(cosine(x, 3 * x)[0]), float(cosine(x, x[::-1])[0])
  (0.0, 2.0)
  """
  s, t, mask = _prepared(student, teacher, mask)
  return positions.total(1 - jnp.sum(unit(s) * unit(t), -1), mask)


def normalized(
  student: jax.Array, teacher: jax.Array, *, mask: jax.Array | None = None
) -> positions.SumAndCount:
  """`hint` of both sides after a layer norm without parameters.

  Baevski et al. 2022 (data2vec), https://arxiv.org/abs/2202.03555, section 3.3,
  normalise targets so. A few huge features of a teacher then do not make up the
  loss. Arguments, result and errors as for `hint`.

  >>> x = jnp.array([[1., 2.], [5., 3.]])
  >>> round(float(normalized(x, 10 * x + 7)[0]), 4)
  0.0
  """
  s, t, mask = _prepared(student, teacher, mask)
  difference = _standard(s) - _standard(t)
  return positions.total(jnp.mean(jnp.square(difference), -1), mask)


def unit(x: jax.Array) -> jax.Array:
  """x / |x| over the last axis; zeros stay zeros, with a derivative of 0."""
  # Divided by the largest entry first: squares of large entries would be inf.
  largest = lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True))
  zero = largest == 0
  x = jnp.where(zero, 0.0, x / jnp.where(zero, 1.0, largest))
  square = jnp.sum(jnp.square(x), -1, keepdims=True)
  return x * lax.rsqrt(jnp.where(zero, 1.0, square))


def _standard(x):
  # The mean goes first: E[x^2] - E[x]^2 has no digits left where it is large.
  x = x - jnp.mean(x, -1, keepdims=True)
  variance = jnp.mean(jnp.square(x), -1, keepdims=True)
  # 1e-5 as layer norms have it: features that are all alike stay 0.
  return x * lax.rsqrt(variance + 1e-5)


def _prepared(student, teacher, mask):
  """Both in float32 at least, zero where the mask is, and the mask of positions."""
  if student.shape != teacher.shape:
    raise ValueError(
      f'The student has values of shape {student.shape}, the teacher'
      f' {teacher.shape}. A connector makes them alike: distillation.features.'
      'connectors.'
    )
  mask = mask_of(student, mask)
  return (
    positions.prepared(student, mask),
    positions.prepared(teacher, mask),
    mask,
  )


def mask_of(x: jax.Array, mask: jax.Array | None) -> jax.Array | None:
  """The mask with a weight for each position of x [..., features].

  Raises:
    ValueError: there is nothing in x, the mask does not have its leading axes, or a
      weight is negative.
  """
  if x.ndim < 2 or not x.size:
    raise ValueError(
      f'Values have shape {x.shape}; [batch, ..., features], not empty, is expected.'
    )
  if mask is None:
    return None
  if not 1 <= mask.ndim < x.ndim or mask.shape != x.shape[: mask.ndim]:
    raise ValueError(
      f'The mask has shape {mask.shape}; {x.shape[:-1]}, or its first axes, is'
      f' expected: weights for the positions of values {x.shape}.'
    )
  positions.check_weights(mask)
  mask = mask.reshape(mask.shape + (1,) * (x.ndim - 1 - mask.ndim))
  return jnp.broadcast_to(mask, x.shape[:-1])
