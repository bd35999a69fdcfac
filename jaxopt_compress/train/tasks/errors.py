"""Losses of numbers: how far answers are from targets.

    mse      mean of e^2
    mae      mean of |e|
    huber    mean of e^2 / 2 up to |e| = delta, of delta (|e| - delta / 2) beyond it

Huber 1964, https://doi.org/10.1214/aoms/1177703732: the last has the gradient of the first
near the target, and is moved by outliers no more than the second.
"""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions


def mse(
  answers: jax.Array, targets: jax.Array, mask: jax.Array | None = None
) -> positions.SumAndCount:
  """(sum, count) of squared errors.

  Args:
    answers: [b, ...] as the targets, or with an axis of 1 more.
    targets: [b, ...], numbers.
    mask: of the shape of the targets, or None.

  >>> [float(x) for x in mse(jnp.array([[1.0], [5.0]]), jnp.array([2.0, 3.0]))]
  [5.0, 2.0]
  """
  return _total(jnp.square, answers, targets, mask)


def mae(
  answers: jax.Array, targets: jax.Array, mask: jax.Array | None = None
) -> positions.SumAndCount:
  """(sum, count) of absolute errors; arguments as for `mse`."""
  return _total(jnp.abs, answers, targets, mask)


def huber(
  answers: jax.Array,
  targets: jax.Array,
  mask: jax.Array | None = None,
  *,
  delta: float = 1.0,
) -> positions.SumAndCount:
  """(sum, count) of Huber's errors; arguments as for `mse`, and

  Args:
    delta: the error from which on it is linear, above 0.

  Raises:
    ValueError: delta is not positive.
  """
  if not delta > 0:
    raise ValueError(f'delta={delta}; a positive number is expected.')

  def of(error):
    size = jnp.abs(error)
    inner = jnp.minimum(size, delta)
    return inner * (size - inner / 2)

  return _total(of, answers, targets, mask)


def aligned(answers: jax.Array, targets: jax.Array) -> jax.Array:
  """Answers in the shape of the targets; without this, [b, 1] - [b] would be [b, b].

  Raises:
    ValueError: they have other shapes.
  """
  if answers.shape == (*targets.shape, 1):
    return answers[..., 0]
  if answers.shape != targets.shape:
    raise ValueError(
      f'Answers are {list(answers.shape)} and targets {list(targets.shape)}; one'
      ' number for each target is expected.'
    )
  return answers


def _total(of, answers, targets, mask):
  answers, targets = (
    x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for x in (aligned(answers, targets), targets)
  )
  error = answers - targets
  if mask is not None:
    # Before it is squared: what does not count may be infinite, and so its gradient.
    error = jnp.where(mask != 0, error, 0)
  return positions.total(of(error), mask)
