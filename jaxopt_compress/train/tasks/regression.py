"""Numbers as answers.

    z = (t - mean) / std           of the targets to train on
    loss of (y - t) / std          where targets are standardised, else of y - t
    rmse, mae, r2                  in the units of the targets, in any case

    r2 = 1 - sum (y - t)^2 / sum (t - mean of held-out t)^2      the mean over outputs

A network whose targets are standardised computes z, and its answers are
`y = mean + std * z`: a part of the program, and so of exports, and of no weight.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.train.tasks import errors
from jaxopt_compress.train.tasks import task


@dataclasses.dataclass(frozen=True)
class Scale:
  """Mean and standard deviation of targets [n, ...] over the examples."""

  mean: np.ndarray
  std: np.ndarray

  def describe(self) -> str:
    mean, std = (_short(x) for x in (self.mean, self.std))
    return f'mean {mean}, standard deviation {std}'

  def advice(self, standardize: bool) -> str:
    """What that means for a network that is trained on such targets, or is not."""
    if standardize:
      return (
        ', which the network learns as 0 and 1; its answers, and exports, are in'
        ' the units of the targets, and its weights alone are not'
      )
    far = np.max(np.abs(self.mean) / np.maximum(self.std, 1)) > 3
    if far or np.max(self.std) > 10 or np.min(self.std) < 0.1:
      return (
        ', which is hard to learn from 0 and 1: set task.standardize=True, and the'
        ' network need not'
      )
    return ''


def scale_of(targets: np.ndarray) -> Scale:
  """That of the targets to train on; where all are one number, its deviation is 1."""
  wide = np.asarray(targets, np.float64)
  mean, std = wide.mean(0), wide.std(0)
  std = np.where(std > 0, std, 1.0)
  return Scale(mean.astype(np.float32), std.astype(np.float32))


def standardized(scale: Scale, apply: Callable[..., Any]) -> Callable[..., Any]:
  """A model's `apply` whose answers are in the units of the targets."""

  def in_units(*args, **kwargs):
    z, out, variables = apply(*args, **kwargs)
    mean, std = (_beside(x, z) for x in (scale.mean, scale.std))
    return mean + std * z, out, variables

  return in_units


def regression(
  loss: task.SumAndCount, name: str, scale: Scale, standardize: bool
) -> task.Task:
  """The task.

  Args:
    loss: of `errors`, or of the user's.
    name: of it.
    scale: of the targets to train on.
    standardize: whether the loss is of standardised targets.
  """

  def in_deviations(x):
    # Without the mean, which both sides of a difference have.
    return x / _beside(scale.std, x)

  def scaled_loss(answers, targets, mask):
    return loss(in_deviations(answers), in_deviations(targets), mask)

  def squares(answers, targets, mask):
    # About the mean of the targets to train on: their squares may be too large
    # for float32 to tell their differences.
    t = targets - _beside(scale.mean, targets)
    y = errors.aligned(answers, targets)
    kept = jnp.ones(t.shape, bool) if mask is None else mask != 0
    terms = jnp.stack([(y - targets) ** 2, t, t**2])
    sums = jnp.where(kept, terms, 0).astype(jnp.float32).sum(1)
    return sums, kept.sum(0)

  return task.Task(
    loss=scaled_loss if standardize else loss,
    loss_name=f'{name} of standardised targets' if standardize else name,
    scaled=in_deviations if standardize else task.as_they_are,
    wrap=functools.partial(standardized, scale) if standardize else None,
    metrics={
      'rmse': task.Metric(errors.mse, False, _root, '.4g'),
      'mae': task.Metric(errors.mae, False, task.ratio, '.4g'),
      'r2': task.Metric(squares, True, _explained),
    },
  )


def _root(total, count):
  return float(np.sqrt(total / count))


def _explained(sums, count):
  error, first, second = sums
  around = second - first**2 / count
  # Of targets that are all one number nothing is to be explained.
  with np.errstate(divide='ignore', invalid='ignore'):
    return float(np.mean(1 - error / around))


def _beside(x, answers):
  """[...] of one example, or of one without its axis of 1, beside answers [b, ...]."""
  x = jnp.asarray(x, jnp.promote_types(answers.dtype, jnp.float32))
  # Not in the type of the answers: bfloat16 has no 1002 beside 1000.
  return x.reshape((1,) + x.shape + (1,) * (answers.ndim - 1 - x.ndim))


def _short(x):
  flat = np.ravel(x)
  more = f', ... ({flat.size} in all)' if flat.size > 4 else ''
  return ', '.join(f'{v:.4g}' for v in flat[:4]) + more
