"""What a network is asked for, as a record."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax
import numpy as np

# `(answers [b, ...], targets [b, ...], mask) -> (sum, count)`; the mask has the shape of
# the targets, or is None, and what it leaves out has no part in either.
SumAndCount = Callable[[jax.Array, jax.Array, jax.Array | None], Any]


def ratio(total: np.ndarray, count: np.ndarray) -> float:
  """total / count; NaN where nothing counts."""
  return float(total / count) if count else math.nan


def as_they_are(answers: jax.Array) -> jax.Array:
  """The answers."""
  return answers


@dataclasses.dataclass(frozen=True, eq=False)
class Metric:
  """A number by which a network is judged on held-out examples.

  `finish(total, count)` of what `sums` gives, added up over all batches. So a mean is a
  sum of values and a count, F1 is `2 * hits` and `2 * hits + misses + false alarms`, and
  what needs several sums returns an array of them and has a `finish` of its own.

  Attributes:
    sums: `(answers, targets, mask) -> (sum, count)`, of one batch.
    higher_is_better: or lower.
    finish: `(total, count) -> float`, of float64.
    spec: how it is written, for `format`.
    beyond: told where answers are of more classes than this.
  """

  sums: SumAndCount
  higher_is_better: bool = True
  finish: Callable[[Any, Any], float] = ratio
  spec: str = '.4f'
  beyond: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """What a network is asked for.

  Attributes:
    loss: of labels, for training; on held-out examples its mean is told.
    loss_name: what it is called in reports.
    metrics: by name; the first is told first.
    classes: whether answers are [..., classes], one number for each class. Then they are
      compared by their first choices and by KL; else by how far they are apart.
    soft: the loss towards a teacher where a stage says none; see `train.soft_loss`.
    scaled: of answers, as a loss towards a teacher sees them.
    wrap: of a model's `apply`, where its answers are not yet in the units of the
      targets.
  """

  loss: SumAndCount
  loss_name: str
  metrics: Mapping[str, Metric]
  classes: bool = False
  soft: str = 'mse'
  scaled: Callable[[jax.Array], jax.Array] = as_they_are
  wrap: Callable[..., Any] | None = None

  def told(self, numbers: Mapping[str, float], first: str) -> str:
    """What was found on held-out examples, in words: a number, and the loss.

    >>> mae = Metric(None)
    >>> Task(None, 'mse', {'mae': mae}).told({'mae': 0.5, 'loss': 2.0}, 'mae')
    'mae 0.5000, loss 2.0000'
    """
    said = {first: self.metrics[first].spec, 'loss': '.4f'}
    return ', '.join(
      f'{name.rpartition(":")[2]} {numbers[name]:{spec}}'
      for name, spec in said.items()
      if name in numbers
    )
