"""What a stage learns from whose teacher was asked before it began.

    batch['answer/ids'], ['answer/log_probs'] [b, ..., k], ['answer/log_tail'] [b, ...]

A divergence is then one over k + 1 classes, the last being all others: see
`losses.tail`. Of entries that were drawn there is no last one.
"""

from collections.abc import Callable
from collections.abc import Mapping
import inspect
from typing import Any

import jax
import numpy as np

from jaxopt_compress.distillation.losses import divergences
from jaxopt_compress.distillation.losses import tail
from jaxopt_compress.train import options

_PREFIX = 'answer/'
_NAMES = 'ids', 'log_probs', 'log_tail'


def named(answers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Answers as `Cache.take` gives them, by their names in a batch."""
  return {_PREFIX + name: answers[name] for name in _NAMES}


def blank(stage: options.Stage, labels: np.ndarray) -> dict[str, np.ndarray]:
  """Answers of the shapes that a batch with these labels [b, ...] will have."""
  entries = (*labels.shape, stage.cache.entries)
  return named(
    {
      'ids': np.zeros(entries, np.int32),
      'log_probs': np.zeros(entries, np.float32),
      'log_tail': np.zeros(labels.shape, np.float32),
    }
  )


def compared(
  soft: Callable[..., Any],
  batch: Mapping[str, jax.Array],
  temperature: float | jax.Array,
  mask: jax.Array | None,
) -> Callable[[jax.Array], Any]:
  """A divergence from the answers in a batch: `student_logits -> (sum, count)`.

  Args:
    soft: `(student_logits, teacher_logits) -> (sum, count)`, at this temperature.
    batch: with answers at this temperature.
    temperature: T.
    mask: [b, ...], weights of positions.
  """
  answers = [batch[_PREFIX + name] for name in _NAMES]

  def function(y):
    log_q, log_p = tail.buckets(y / temperature, *answers, mask=mask)
    # `soft` divides by T once more, and both are log-probabilities already.
    return soft(temperature * log_q, temperature * log_p)

  return function


def check(where: str, stage: options.Stage) -> None:
  """Raises a ValueError where answers that were kept could not be what is asked for.

  Args:
    where: the path of the stage in the config.
    stage: its options.
  """
  if not stage.cache.asked:
    return
  for wrong, said in (*_of_teachers(stage), *_of_losses(stage)):
    if wrong:
      raise ValueError(f'{where}.cache {said}')


def _of_teachers(stage):
  """Pairs of (whether, why) who is asked, and of what, would be another one."""
  cache, distil = stage.cache, stage.distil
  one = ' Leave one of them out.'
  return (
    (
      cache.k and cache.draws,
      f'has both k={cache.k} and draws={cache.draws}. Keep one: the likeliest'
      ' entries, or entries that are drawn.',
    ),
    (
      not distil.stages,
      'has no effect without a stage as a teacher. Set teacher.',
    ),
    (
      distil.follows,
      f'keeps what was said once, and the teacher {options.EMA!r} changes with its'
      f' student.{one}',
    ),
    (
      len(distil.stages) > 1 and not distil.ensemble,
      'keeps one answer to each example, and there are several teachers. Set'
      ' ensemble, which makes them one.',
    ),
    (
      stage.mixup,
      'holds answers to the examples, and mixup trains on mixtures that are drawn in'
      f' each step.{one}',
    ),
    (
      distil.on_policy,
      'holds answers to the data, and with on_policy the student continues it anew.'
      + one,
    ),
  )


def _of_losses(stage):
  """Pairs of (whether, why) a loss needs what is not kept."""
  distil, one = stage.distil, ' Leave one of them out.'
  name = (distil.loss or 'kl').partition(',')[0].strip()
  return (
    (
      isinstance(distil.temperature, str),
      f'is made at one temperature, and there is a schedule, {distil.temperature!r}.'
      ' Set a number.',
    ),
    (
      name not in _divergences(),
      f'keeps probabilities of some classes, and {name} needs the logits of all.'
      f' Choose one of {_divergences()}.',
    ),
    (
      stage.cache.draws and name != 'kl',
      f'has draws, of which only kl is right on average. Set loss to kl, not {name},'
      ' or k in place of draws.',
    ),
    (
      distil.standardize,
      'keeps probabilities of some classes, and standardize is of the logits of all.'
      + one,
    ),
    (
      distil.features,
      'keeps what the teacher answers, and features are what it computes on the way.'
      + one,
    ),
  )


def check_classes(stage: options.Stage, answers: jax.ShapeDtypeStruct) -> None:
  """Raises a ValueError for more entries than a model [..., classes] answers."""
  classes = answers.shape[-1]
  if stage.cache.k > classes:
    raise ValueError(
      f'config.stage.{stage.name}.cache.k is {stage.cache.k}, and there are'
      f' {classes} classes. Keep fewer.'
    )


def _divergences():
  """The losses of distributions, which sums of classes have as well."""
  return [
    name
    for name, f in vars(divergences).items()
    if inspect.isfunction(f)
    and f.__module__ == divergences.__name__
    and not name.startswith('_')
  ]
