"""The loss of a stage: its labels, its teachers, and how much each counts.

    L = alpha * sum_i w_i soft(student, teacher_i) + (1 - alpha) * hard(student, labels)

`hard` is the loss of the task; without a teacher it is all. Each part is a mean of its own, as not every
example has a label, and is told while the stage is trained. alpha, the temperature and
the numbers of the soft loss may change with the steps.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.core import choices
from jaxopt_compress.core import operators
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation import teachers as teachers_lib
from jaxopt_compress.train import answers
from jaxopt_compress.train import features
from jaxopt_compress.train import fields
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import schedules
from jaxopt_compress.train import soft_loss
from jaxopt_compress.train.step import loss as loss_lib
from jaxopt_compress.train.tasks import classification
from jaxopt_compress.train.tasks import task as task_lib

DTYPES = ('', 'float32', 'bfloat16', 'float16')


def loss_of(
  stage: options.Stage,
  data: options.Data,
  asked: features.Asked = features.Asked(),
  task: task_lib.Task = classification.classification,
) -> loss_lib.Loss:
  """The loss of the task, or distillation where there is a teacher.

  Its parts are 'hard' and 'soft', or 'soft_<teacher>' of each of several, and losses
  of features by their names.
  """
  distil = stage.distil
  names = [name for name, _ in distil.teachers]
  shares = [share for _, share in distil.teachers]

  def loss(seen):
    y, _ = seen.outputs
    labels = seen.batch[data.target]
    mask = of_targets(seen.batch.get('mask'), labels.shape)
    # Answers that are no classes count for one of each example.
    shape = labels.shape if task.classes else labels.shape[:1]
    if seen.share is not None and mask is not None:
      mask = mask * jnp.roll(mask, 1, axis=0)

    def hard(y):
      return _of_labels(y, labels, mask, seen.share, stage, data, task)

    if not names:
      return {'hard': loss_lib.Part(*hard(y))}
    alpha = schedules.at(distil.alpha, stage.steps)(seen.step)
    # Where labels are not read, missing or mixed, the teacher's first choice is one.
    told = distil.alpha != 1 and not data.unlabelled and seen.share is None
    soft, temperature = _soft(stage, seen, labels if told else None, mask, task)
    if stage.cache.asked:
      soft = answers.compared(soft, seen.batch, temperature, mask)
      return part('hard', 1 - alpha, hard, y) | part('soft', alpha, soft, y)
    said = [teacher_y for teacher_y, _ in seen.teachers]
    parts = part('hard', 1 - alpha, hard, y)
    # Features are of all tokens, where labels are asked for of some.
    there = of_targets(seen.batch.get('input_mask', mask), shape)
    for term in features.terms(asked, seen, shape, there, stage.steps):
      parts |= part(*term)
    if distil.ensemble:
      teacher_y = teachers_lib.ensemble(
        said, temperature=temperature, weights=shares
      )
      return parts | part('soft', alpha, soft, y, teacher_y)
    for name, share, teacher_y in zip(names, shares, said, strict=True):
      key = 'soft' if len(names) == 1 else f'soft_{name}'
      parts |= part(key, share * alpha, soft, y, teacher_y)
    return parts

  return loss


def part(name, weight, f, *inputs) -> dict[str, loss_lib.Part]:
  """{name: the part `weight * f(*inputs)`}; {} where it surely counts for nothing.

  Args:
    name: of the part.
    weight: a number, or a traced scalar, which may become 0.
    f: `(*inputs) -> (sum, count)`.
    *inputs: trees of what derivatives are taken of; `f` closes over no such thing.
  """
  if isinstance(weight, (int, float)) and not weight:
    return {}
  total, count = positions.gated(weight, f, *inputs)
  return {name: loss_lib.Part(total, count, weight)}


def of_targets(mask, shape):
  """A mask of examples gets an axis of one for each axis of targets [b, ...]."""
  if mask is None:
    return None
  mask = mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))
  return jnp.broadcast_to(mask, shape)


def _of_labels(y, labels, mask, share, stage, data, task):
  """(sum, count) of the loss of the task; of mixed inputs, with both labels."""

  def entropy(labels):
    known = mask
    if data.unlabelled:
      known = labels >= 0 if mask is None else (labels >= 0) * mask
    if stage.label_smoothing:
      return task.loss(y, labels, known, label_smoothing=stage.label_smoothing)
    return task.loss(y, labels, known)

  if share is None:
    return entropy(labels)
  both = entropy(labels), entropy(jnp.roll(labels, 1, axis=0))
  return tuple(share * a + (1 - share) * b for a, b in zip(*both, strict=True))


def _soft(stage, seen, labels, mask, task):
  """(`(y, teacher_y) -> (sum, count)` at a step, its temperature)."""
  distil = stage.distil
  soft = soft_loss.read('loss', distil.loss)
  given, temperature = soft.at(seen.step, stage.steps) | {'mask': mask}, 1.0
  if soft.takes('temperature'):
    temperature = schedules.at(distil.temperature, stage.steps)(seen.step)
    given['temperature'] = temperature
  if soft.takes('axis_name'):
    given['axis_name'] = seen.axis
  more = (labels,) if soft.takes('labels') else ()

  def function(y, teacher_y):
    if not task.classes:
      # As the loss of labels sees them; one answer an example has an axis of its own.
      y, teacher_y = (
        task.scaled(x).reshape(len(x), -1) for x in (y, teacher_y)
      )
    if distil.standardize:
      y, teacher_y = (losses.standardized(x, mask) for x in (y, teacher_y))
    return soft.function(y, teacher_y, *more, **given)

  return function, temperature


# -- Teachers -----------------------------------------------------------------


def frozen(distil: options.Distil, finished: Mapping[str, Any]) -> tuple:
  """((params, variables) of each stage that teaches, in its dtype).

  Args:
    distil: of the stage that is taught.
    finished: `{stage: {'params', 'variables'}}`, arrays or abstract.
  """
  found = [finished[name] for name in distil.stages]
  found = tuple((f['params'], f['variables']) for f in found)
  return _in_dtype(distil, found)


def for_step(
  stage: options.Stage,
  models: Sequence[model_lib.Model],
  asked: features.Asked = features.Asked(),
) -> dict[str, Any]:
  """What `state.train_step` is told of teachers, `models`, and of their inputs."""
  distil = stage.distil
  return {
    'teachers': [] if stage.cache.asked else applies(distil, models, asked),
    'ema_decay': distil.ema_decay if distil.follows else None,
    'mixup': stage.mixup,
  }


def applies(
  distil: options.Distil,
  models: Sequence[model_lib.Model],
  asked: features.Asked = features.Asked(),
) -> list[Callable[..., Any]]:
  """Those of teachers, whose inputs are in the dtype of their parameters."""

  def reads(apply):
    return lambda params, variables, x, **mode: apply(
      params, variables, _in_dtype(distil, x), **mode
    )

  return [
    reads(features.giving(model.apply, teaching=asked.teacher))
    for model in models
  ]


def _in_dtype(distil, tree):
  if not distil.teacher_dtype:
    return tree
  return operators.cast(tree, jnp.dtype(distil.teacher_dtype))


# -- Checks -------------------------------------------------------------------


def check(where: str, stage: options.Stage) -> None:
  """Raises a ValueError for words that mean nothing or have no effect.

  Args:
    where: the path of the stage in the config.
    stage: its options.
  """
  distil, known = stage.distil, fields.keys_of(options.Stage)
  if not distil.teacher:
    return
  _check_teachers(where, distil)
  features.check(where, stage)
  for key in ('alpha', 'temperature'):
    said = getattr(distil, key)
    schedules.check(f'{where}.{key}', said, known[key].within)
  soft = soft_loss.read(f'{where}.loss', distil.loss)
  unread = []
  if not soft.takes('temperature'):
    unread += [('temperature', 'a loss that takes it, such as kl')]
  if len(distil.teachers) < 2:
    unread += [('ensemble', 'several teachers')]
  if not distil.stages:
    unread += [('teacher_dtype', 'a stage as a teacher')]
  if not distil.follows:
    unread += [('ema_decay', f'the teacher {options.EMA!r}')]
  if schedules.stays(distil.alpha, 0) and not distil.features:
    raise ValueError(
      f'{where}.alpha is {distil.alpha!r}, so that the teacher'
      f' {distil.teacher!r} has no effect. Leave teacher out, or set another alpha,'
      ' or features.'
    )
  if schedules.stays(distil.alpha, 1):
    unread += [('label_smoothing', 'labels, and alpha=1 reads none')]
  for key, need in unread:
    fields.check_unread(where, stage, [key], need)
  choices.one_of(f'{where}.teacher_dtype', distil.teacher_dtype, DTYPES)


def _check_teachers(where, distil):
  """One name, or pairs of a name and its share."""
  said = distil.teacher
  if isinstance(said, str):
    return
  for pair in said:
    if not (isinstance(pair, tuple) and [type(x) for x in pair] in _PAIRS):
      raise ValueError(
        f"{where}.teacher has {pair!r}; a stage and its share, ('big', 0.5), is"
        ' expected.'
      )
  names = [name for name, _ in said]
  shares = [share for _, share in said]
  if len(set(names)) < len(names):
    raise ValueError(f'{where}.teacher names a stage twice: {names}.')
  if not all(0 < x <= 1 for x in shares) or abs(sum(shares) - 1) > 1e-6:
    raise ValueError(
      f'{where}.teacher has the shares {shares}; they are positive, and 1 together.'
    )


_PAIRS = ([str, float], [str, int])


def check_numbers(stage: options.Stage, answers: jax.ShapeDtypeStruct) -> None:
  """Raises a ValueError for a number that the soft loss does not take.

  Args:
    stage: its options.
    answers: of its model, [..., classes], abstract.
  """
  if not stage.distil.teacher:
    return
  soft = soft_loss.read('loss', stage.distil.loss)
  labels = jax.ShapeDtypeStruct(answers.shape[:-1], jnp.int32)
  more = (labels,) if soft.takes('labels') else ()
  # What is not known while a step is traced is checked here, at both ends.
  for step in (0, stage.steps - 1):
    numbers = {
      name: said if not isinstance(said, str) else float(value)
      for (name, said), value in zip(
        soft.numbers.items(), soft.at(step, stage.steps).values(), strict=True
      )
    }
    try:
      jax.eval_shape(
        lambda *args, n=numbers: soft.function(*args, **n),
        answers,
        answers,
        *more,
      )
    except ValueError as e:
      raise ValueError(f'loss={stage.distil.loss!r}: {e}') from e
