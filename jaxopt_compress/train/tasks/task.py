"""What a network is asked for, as a record."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

# `(answers [b, ...], targets [b, ...], mask) -> (sum, count)`; the mask has the shape of
# the targets, or is None, and what it leaves out has no part in either.
SumAndCount = Callable[[jax.Array, jax.Array, jax.Array | None], Any]


def ratio(total: np.ndarray, count: np.ndarray) -> float:
  """total / count."""
  return float(total / count)


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
  """

  sums: SumAndCount
  higher_is_better: bool = True
  finish: Callable[[Any, Any], float] = ratio
  spec: str = '.4f'


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
  """

  loss: SumAndCount
  loss_name: str
  metrics: Mapping[str, Metric]
  classes: bool = False
  soft: str = 'mse'
