"""What a stage may say depends on what networks are asked for."""

import jax

from jaxopt_compress.distillation import losses
from jaxopt_compress.train import fields
from jaxopt_compress.train import options
from jaxopt_compress.train import soft_loss
from jaxopt_compress.train.tasks import task as task_lib

# Of numbers that are no logits: the others are of distributions.
_OF_NUMBERS = ('mse', 'cosine')


def check(
  where: str, stage: options.Stage, data: options.Data, task: task_lib.Task
) -> None:
  """Raises a ValueError for what a stage says, and the task has no word for.

  Args:
    where: the path of the stage in the config.
    stage, data: of the config.
    task: of the run.
  """
  if task.loss is not losses.cross_entropy:
    need = f'cross entropy, and the loss is {task.loss_name}'
    fields.check_unread(where, stage, ['label_smoothing'], need)
  if task.classes:
    return
  for said, word in (
    (data.unlabelled, 'config.data.unlabelled'),
    (data.label_noise, 'config.data.label_noise'),
    (data.labels < 1, 'config.data.labels'),
    (stage.cache.asked, f'{where}.cache'),
    (stage.distil.ensemble, f'{where}.ensemble'),
    (stage.distil.standardize, f'{where}.standardize'),
    (stage.distil.on_policy, f'{where}.on_policy'),
  ):
    if said:
      raise ValueError(
        f'{word} is of classes, and the answers of this task are not (its loss is'
        f' {task.loss_name}). Leave it out.'
      )
  if stage.distil.teacher:
    soft = soft_loss.read(f'{where}.loss', stage.distil.loss)
    if soft.name in soft_loss.names() and soft.name not in _OF_NUMBERS:
      raise ValueError(
        f'{where}.loss is {soft.name!r}, which compares distributions over classes,'
        ' and the answers of this task are none (its loss is'
        f" {task.loss_name}). Choose one of {_OF_NUMBERS}, or leave it out: 'mse'."
      )


def check_answers(
  task: task_lib.Task,
  answers: jax.ShapeDtypeStruct,
  targets: jax.ShapeDtypeStruct,
  where: str,
) -> None:
  """Raises a ValueError where the loss or a metric cannot be had of a model's answers.

  Args:
    task: of the run.
    answers: of the model, abstract.
    targets: beside them, abstract.
    where: the path of the model in the config.
  """
  mask = jax.ShapeDtypeStruct(targets.shape, bool)
  sums = {f'the loss ({task.loss_name})': (task.loss, True)}
  for name, m in task.metrics.items():
    # What has a `finish` of its own may add up arrays.
    sums[f'the metric {name!r}'] = m.sums, m.finish is task_lib.ratio
  for what, (function, scalars) in sums.items():
    try:
      found = jax.eval_shape(function, answers, targets, mask)
    except Exception as e:  # A user's function may raise anything.
      kind = '' if isinstance(e, ValueError) else f'{type(e).__name__}: '
      raise ValueError(
        f'{where} answers {answers.dtype}{list(answers.shape)} where targets are'
        f' {targets.dtype}{list(targets.shape)}, and {what} is not to be had. {kind}{e}'
      ) from e
    pair = isinstance(found, tuple) and len(found) == 2
    if not pair or (scalars and (found[0].shape or found[1].shape)):
      raise ValueError(
        f'{what} is a function (answers, targets, mask) -> (sum, count), and gives'
        f' {found}. Return the sum over what the mask leaves, and how many that are:'
        ' both are scalars, but of a tasks.Metric with a finish of its own.'
      )
    if _pairs_by_accident(function, answers, targets):
      raise ValueError(
        f'{what} sets each answer beside each target: answers [n, 1] and targets [n]'
        ' are broadcast to [n, n]. Read answers[:, 0].'
      )


def _pairs_by_accident(function, answers, targets):
  """Whether something of [n, n] comes of answers [n, 1], and would not of [n]."""
  if targets.ndim != 1 or answers.shape[1:] != (1,):
    return False
  n = 97  # The length of nothing else.

  def pairs(shape):
    like = (shape, answers.dtype), ((n,), targets.dtype), ((n,), bool)
    like = [jax.ShapeDtypeStruct(*x) for x in like]
    return f'[{n},{n}]' in str(jax.make_jaxpr(function)(*like))

  try:
    return pairs((n, 1)) and not pairs((n,))
  except Exception:  # It reads the axis of 1.
    return False
