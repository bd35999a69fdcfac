"""What a model is worth on held-out examples, and how far it is from another.

loss        the mean of the task's loss
metrics     those of the task: accuracy, bits per byte, rmse, a user's own
agreement   fraction with argmax = argmax of the reference    of classes
kl          mean of KL(reference || model)                    of classes, nats
difference  root of the mean of (model - reference)^2         of other answers

Answers to the same batches can be compared again, with those of another model.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.core import lift
from jaxopt_compress.distillation import losses
from jaxopt_compress.report import calibration
from jaxopt_compress.train.tasks import classification
from jaxopt_compress.train.tasks import task as task_lib


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The numbers above; what compares answers is None without a reference.

  `logits` holds the model's outputs, batch by batch as they were given, to be a
  reference for others or to be compared with a reloaded program's.
  """

  loss: float
  metrics: Mapping[str, float]
  count: int
  agreement: float | None = None
  kl: float | None = None
  difference: float | None = None
  logits: Sequence[jax.Array] = ()
  reliability: np.ndarray | None = None  # of classes; see `report.calibration`


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """How close answers are to those of another model.

  Attributes:
    agreement: of classes, `{k: how often the other's first choice is among the first
      k}`.
    kl: of classes, mean KL(other || model) at temperature 1, in nats.
    difference: of other answers, the root of their mean squared difference.
  """

  agreement: Mapping[int, float] = dataclasses.field(default_factory=dict)
  kl: float | None = None
  difference: float | None = None


def forward(apply: Callable) -> Callable[..., jax.Array]:
  """`(params, variables, *inputs) -> y`, jitted; leaves may be compressed.

  Make it once for each model: it compiles anew for each structure of params.
  """

  @jax.jit
  def forward_fn(*args, **kwargs):
    return lift.lift(apply)(*args, **kwargs)[0]

  return forward_fn


def evaluate(
  forward_fn: Callable[..., jax.Array],
  params: Any,
  variables: Any,
  batches: Sequence[dict[str, np.ndarray]],
  *,
  inputs: str,
  targets: str,
  reference: Sequence[jax.Array] | None = None,
  task: task_lib.Task = classification.classification,
) -> Evaluation:
  """Runs over padded batches once.

  Args:
    forward_fn: from `forward`.
    params, variables: of the model.
    batches: dicts with `inputs`, a tuple or dict of arguments or one of them;
      `targets` [b, ...] int; and `mask` bool, of one value for each example [b]
      or for each target [b, ...].
    inputs, targets: names in a batch.
    reference: logits for each batch, from the `logits` of another evaluation.
    task: what is asked for.

  Raises:
    ValueError: the masks leave no example.
  """
  numbers = {'loss of the task': task.loss}
  numbers |= {name: metric.sums for name, metric in task.metrics.items()}
  numbers = tuple(numbers.items())
  # Sums of a batch are float32; those of all batches are float64.
  sums, logits = [], []
  for i, batch in enumerate(batches):
    y = batches_lib.call(forward_fn, (params, variables), batch[inputs])
    # Without a reference the model is compared with itself.
    other = y if reference is None else reference[i]
    mask = batch['mask']
    found = _sums(y, batch[targets], mask, other, numbers, task.classes)
    sums.append(jax.tree.map(lambda x: np.asarray(x, float), found))
    logits.append(y)
  found, bins, close = jax.tree.map(lambda *xs: sum(xs), *sums)
  count = close.pop('count')
  if not count:
    raise ValueError(
      f'None of the examples of {len(batches)} batches counts: their masks are all'
      ' False. Give at least one example that is no padding.'
    )
  classes = logits[0].shape[-1] if task.classes else math.inf
  metrics = {
    name: metric.finish(*found[name])
    for name, metric in task.metrics.items()
    if classes > metric.beyond
  }
  return Evaluation(
    loss=task_lib.ratio(*found['loss of the task']),
    metrics=metrics,
    count=int(count),
    **({} if reference is None else _means(close, count)),
    logits=logits,
    reliability=bins if task.classes else None,
  )


def _means(sums, count):
  """Means of what adds up over examples; of squares, their roots."""
  means = {name: float(total / count) for name, total in sums.items()}
  if 'difference' in means:
    means['difference'] = math.sqrt(means['difference'])
  return means


def fidelity(
  answers: Sequence[jax.Array],
  others: Sequence[jax.Array],
  batches: Sequence[dict[str, np.ndarray]],
  *,
  targets: str,
  classes: bool = True,
) -> Fidelity:
  """How close answers are to others, over padded batches.

  Args:
    answers, others: logits for each batch, from the `logits` of evaluations.
    batches, targets: as for `evaluate`.
    classes: whether answers are those of classes.
  """
  if not classes:
    total, count = sum(
      np.asarray(_squares(y, other, batch['mask']), float)
      for y, other, batch in zip(answers, others, batches, strict=True)
    )
    return Fidelity(difference=math.sqrt(total / count))
  ks = top_ks(answers[0].shape[-1])
  sums = sum(
    np.asarray(_fidelity(y, other, batch[targets], batch['mask'], ks), float)
    for y, other, batch in zip(answers, others, batches, strict=True)
  )
  count, kl, *agreement = sums
  return Fidelity(
    {k: same / count for k, same in zip(ks, agreement, strict=True)}, kl / count
  )


def top_ks(classes: int) -> tuple[int, ...]:
  """The k of agreement: 1, and 5 or so many that it can fail."""
  return tuple(dict.fromkeys((1, max(min(5, classes - 1), 1))))


@functools.partial(jax.jit, static_argnums=4)
def _fidelity(y, other, labels, mask, ks):
  mask = _of_targets(mask, labels.shape)
  kl, count = losses.kl(y, other, mask=mask)
  same = [losses.agreement(y, other, k=k, mask=mask)[0] for k in ks]
  return jnp.stack([count, kl, *same])


@functools.partial(jax.jit, static_argnums=(4, 5))
def _sums(y, targets, mask, reference, numbers, classes):
  """Sums over the examples that count.

  Args:
    y, reference: answers [b, ...].
    targets: [b, ...].
    mask: [b] or [b, ...] bool.
    numbers: (name, `(answers, targets, mask) -> (sum, count)`) of each.
    classes: whether answers are [b, ..., classes].

  Returns:
    {name: (sum, count)}; of classes those by confidence; and of what compares answers,
    with the count of targets.
  """
  wide = _of_targets(mask, targets.shape)
  found = {name: f(y, targets, wide) for name, f in numbers}
  count = wide.astype(jnp.float32).sum()
  if not classes:
    # A target may have several answers.
    total, entries = _squares(y, reference, mask)
    off = total * count / jnp.maximum(entries, 1)
    return found, 0.0, {'count': count, 'difference': off}
  close = {
    'count': count,
    'agreement': losses.agreement(y, reference, mask=wide)[0],
    'kl': losses.kl(y, reference, mask=wide)[0],
  }
  return found, calibration.reliability(y, targets, wide), close


@jax.jit
def _squares(y, other, mask):
  """[sum of squared differences of answers [b, ...], how many there are]."""
  wide = _of_targets(mask, y.shape)
  square = jnp.square((y - other).astype(jnp.float32))
  return jnp.stack(
    [jnp.where(wide, square, 0).sum(), wide.astype(jnp.float32).sum()]
  )


def _of_targets(mask, shape):
  """A mask of examples gets an axis of one for each axis of targets [b, ...]."""
  mask = mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))
  return jnp.broadcast_to(mask, shape)
