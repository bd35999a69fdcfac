"""The examples of a plan: batches to train on, padded batches to be judged by."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from jaxopt_compress import data as data_lib
from jaxopt_compress.core import choices
from jaxopt_compress.train import fields
from jaxopt_compress.train import options
from jaxopt_compress.train import plan as plan_lib
from jaxopt_compress.train import sources
from jaxopt_compress.train.tasks import classification
from jaxopt_compress.train.tasks import regression
from jaxopt_compress.train.tasks import task as task_lib

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Examples:
  """What a run reads; see `load`.

  Attributes:
    batches: `stage -> batches`, and `batches[step]` is a batch; each stage has an
      order of its own.
    test: batches of the held-out examples, with 'mask'.
    validation: such batches of those that stages are judged by while they are
      trained; empty where there are none.
    example: an abstract batch of inputs.
    classes: `stage -> n`; the labels that it meets are below n.
    description: of the sizes, for the reader.
    content: `stage -> tree of arrays`, what its batches are made of.
    facts: what is known of the held-out examples without a model.
    scale: of targets to train on that are no classes.
    served: what whoever serves an export has to know of inputs and classes, as JSON.
  """

  batches: Callable[[options.Stage], data_lib.Batches]
  test: Sequence[Batch]
  example: jax.ShapeDtypeStruct
  classes: Callable[[options.Stage], int]
  description: str
  content: Callable[[options.Stage], Any]
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  validation: Sequence[Batch] = ()
  scale: regression.Scale | None = None
  served: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load(
  data: options.Data,
  seed: int,
  task: task_lib.Task = classification.classification,
) -> Examples:
  """Reads the splits of a data set.

  Args:
    data: see `sources`. Where a module of jaxopt_compress.data gives a text (it has
      `windows`), examples are windows of `window` bytes; elsewhere there are named
      arrays.
    seed: of the order in which examples come.
    task: what is asked for.
  """
  module = sources.module_of(data)
  if hasattr(module, 'windows'):
    return _text(module, data, seed)
  return _arrays(sources.of_arrays(data), data, seed, task)


def classes_of(
  examples: Examples, stages: Sequence[options.Stage], model: str
) -> int:
  """How many classes the stages of a model tell apart."""
  return max(
    (examples.classes(s) for s in stages if s.model == model), default=0
  )


def check_answers(
  examples: Examples,
  stage: options.Stage,
  answers: jax.ShapeDtypeStruct,
  target: str,
) -> None:
  """Raises a ValueError where a label is none of a model's answers.

  Args:
    examples: labels [b, ...].
    stage: that trains the model.
    answers: of the model to `examples.example`; [b, ..., classes] is expected.
    target: the name of the labels.
  """
  found, where = examples.test[0][target], f'config.models.{stage.model}'
  labels = found.shape
  if answers.shape[:-1] != labels:
    raise ValueError(
      f'{where} answers {list(answers.shape)} where labels are {list(labels)};'
      ' for each of them, one number for each class is expected.'
    )
  classes = examples.classes(stage)
  if classes > answers.shape[-1]:
    raise ValueError(
      f'{where} tells {answers.shape[-1]} classes, and there is a label'
      f' {classes - 1}. Give it {classes} classes, or check the labels.'
      + (' Are they counted from 1? Subtract 1.' if found.min() else '')
    )


def _arrays(source, data, seed, task) -> Examples:
  fields.check_unread('config.data', data, ('window', 'files'), 'a text')
  train, test, validation = (
    x and _with_targets(data, x, task) for x in _of_each(source.load, data)
  )
  train, validation, more = _held_back(train, validation, data, seed)
  train = _harder(train, data, seed)
  _check_alike(data, train, test)
  names = _names_of_classes(source, data)
  said = more + _said_of_classes(source, data, names, train, test)
  if data.unlabelled:
    known = int((train[data.target] >= 0).sum())
    said += f'; {known:,} of those to train on have a label'
  if data.label_noise:
    said += f'; {data.label_noise:.0%} of the labels to train on are wrong'
  if validation:
    _check_alike(data, train, validation)
  classes, scale = 0, None
  if task.classes:
    every = [x[data.target] for x in (train, test, validation) if x]
    classes = 1 + max(int(x.max()) for x in every)
    if min(int(x.min()) for x in every) == 1:
      said += (
        '; no label is 0: where classes are counted from 1, one is never met'
      )
  else:
    scale = regression.scale_of(train[data.target])
  if data.limit:
    test, validation = (
      {name: x[: data.limit] for name, x in arrays.items()}
      for arrays in (test, validation)
    )

  # Without a teacher, nothing is learned from an example without a label.
  known = train[data.target] >= 0 if data.unlabelled else slice(None)
  labelled = {name: x[known] for name, x in train.items()}

  def batches(stage):
    _check_stage(stage, 'files', 'a text')
    return data_lib.batches(
      train if stage.distil.teacher else labelled,
      batch_size=stage.batch_size,
      seed=plan_lib.stage_seed(seed, stage.name),
      transform=_moved(source, data, stage),
    )

  held_out = data_lib.eval_batches(test, data.eval_batch_size)
  return Examples(
    batches=batches,
    test=held_out,
    example=_abstract(held_out[0][data.input]),
    classes=lambda stage: classes,
    description=f'{_length(train):,} to train, {_length(test):,} held out{said}',
    content=lambda stage: train if stage.distil.teacher else labelled,
    validation=validation
    and data_lib.eval_batches(validation, data.eval_batch_size),
    scale=scale,
    served=_served(source, names, train[data.input].shape),
  )


def _served(source, names, shape):
  if not source.form:
    return {}
  _, *size, channels = shape
  form = dict(source.form) | {'size': size, 'channels': channels}
  return {'input': form} | ({'classes': names} if names else {})


def _moved(source, data, stage):
  """What changes the batches of a stage."""
  if stage.augment and source.augment is None:
    raise ValueError(
      f'config.stage.{stage.name}.augment: no function augment(batch, rng) lies beside'
      f' that of {data.name!r}. Write one, which returns the batch changed.'
    )
  return source.augment if stage.augment else None


def _of_each(read, data):
  """What a function says of train, test and validation; {} of one that is no split.

  Names of classes are told beside those of the others.
  """
  splits = data.train, data.test, data.validation
  there = [s for s in splits if isinstance(s, str) and s]
  found = {}
  for split in dict.fromkeys(there):
    others = [s for s in there if s != split]
    found[split] = read(split, *others)
  return [found.get(s, {}) for s in splits]


def _held_back(train, validation, data, seed):
  """(train, validation, what is said of them)."""
  if not data.validation:
    return train, {}, ''
  if isinstance(data.validation, str):
    if not _length(validation):
      raise ValueError(
        f'config.data.validation is {data.validation!r}, which has no examples.'
      )
    return train, validation, f', {_length(validation):,} for validation'
  try:
    train, validation = data_lib.held_back.held_back(
      train,
      data.validation,
      target=data.target,
      seed=plan_lib.stage_seed(seed, 'validation'),
    )
  except ValueError as e:
    raise ValueError(f'config.data.validation: {e}') from e
  said = (
    f', {_length(validation):,} for validation ({data.validation:.0%} of the training'
    ' examples, held back)'
  )
  return train, validation, said


def _check_stage(stage, key, need):
  fields.check_unread(f'config.stage.{stage.name}', stage, [key], need)


def _check_names(data, there):
  for key in ('input', 'target'):
    choices.one_of(f'config.data.{key}', getattr(data, key), there)


def _with_targets(data, arrays, task):
  """Arrays whose targets are those of the task."""
  _check_names(data, arrays)
  targets = arrays[data.target]
  what = f'config.data.target is {data.target!r}, which are'
  if task.classes:
    targets = data_lib.own.check_classes(targets, what)
  elif targets.dtype.kind not in 'biuf':
    raise ValueError(f'{what} {targets.dtype}; numbers are expected.')
  elif not np.isfinite(targets).all():
    raise ValueError(
      f'{what} in places NaN or infinity. Leave those examples out.'
    )
  else:
    targets = targets.astype(np.float32)
  if data.input == data.target:
    raise ValueError(
      f'config.data.input and config.data.target are both {data.input!r}: the answer'
      ' would be known. Choose two.'
    )
  return dict(arrays) | {data.target: targets}


def _check_alike(data, train, test):
  for what, key in (('Examples', data.input), ('Targets', data.target)):
    ours, theirs = (list(x[key].shape[1:]) for x in (train, test))
    if ours != theirs:
      raise ValueError(
        f'{what} to train on are {ours}, and held-out ones are {theirs}. Bring them to'
        ' one shape.'
      )


def _names_of_classes(source, data):
  """The names of the classes; [] where they are numbers."""
  if source.classes is None:
    return []
  names, others, _ = _of_each(source.classes, data)
  if names and others and names != others:
    raise ValueError(
      f'config.data.train has the classes {names}, config.data.test {others}: one'
      ' number would be two classes. Make them splits of one folder.'
    )
  return names or others


def _said_of_classes(source, data, names, train, test):
  """The names of the classes, where they have no examples, and what is not read."""
  if source.classes is None:
    return ''
  said = f'; {len(names)} classes: {_listed(names)}' if names else ''
  for split, arrays in (('train on', train), ('be judged by', test)):
    there = set(arrays[data.target].tolist())
    if none := [x for i, x in enumerate(names) if i not in there]:
      said += f'; nothing to {split} of {_listed(none)}'
  if more := {x for s in (data.train, data.test) for x in source.left_out(s)}:
    said += f'; not read, as no images of a class: {_listed(sorted(more))}'
  return said


def _listed(names):
  more = f', ... ({len(names) - 20} more)' if len(names) > 20 else ''
  return ', '.join(names[:20]) + more


def _harder(train, data, seed):
  """Fewer examples or labels, and wrong labels, as the config says."""
  if data.unlabelled and data.labels == 1:
    raise ValueError(
      'config.data.unlabelled has no effect without labels below 1, as no label is'
      ' missing then.'
    )
  if data.unlabelled and data.label_noise:
    raise ValueError(
      'config.data has both unlabelled and label_noise. Leave one of them out.'
    )
  seed = plan_lib.stage_seed(seed, 'labels')
  options = dict(target=data.target, seed=seed)
  if data.unlabelled:
    return data_lib.labels.hidden(train, data.labels, **options)
  if data.labels < 1:
    train = data_lib.labels.few(train, data.labels, **options)
  if data.label_noise:
    train = data_lib.labels.noisy(train, data.label_noise, **options)
  return train


def _text(module, data, seed) -> Examples:
  unread = 'labels', 'label_noise', 'unlabelled'
  fields.check_unread('config.data', data, unread, 'one label an example')

  read = sources.texts(module, data)
  train, test = read(data.train, ''), read(data.test, '')
  whole, validation = test, _validation_text(read, data)
  if data.limit:
    test = module.excerpts(test, data.limit)
    validation = data.validation and module.excerpts(validation, data.limit)

  def batches(stage):
    _check_stage(stage, 'augment', 'images')
    return module.windows(
      read(data.train, stage.files),
      batch_size=stage.batch_size,
      length=data.window,
      seed=plan_lib.stage_seed(seed, stage.name),
    )

  def classes(stage):
    texts = read(data.train, stage.files), test, validation
    return max(module.vocabulary(x) for x in texts if len(x))

  def windows(text):
    return module.eval_windows(
      text, batch_size=data.eval_batch_size, length=data.window
    )

  held_out, said = windows(test), ''
  if data.validation:
    said = f', {len(validation):,} for validation'
  _check_names(data, [name for name in held_out[0] if name != 'mask'])
  return Examples(
    batches=batches,
    test=held_out,
    example=_abstract(held_out[0][data.input]),
    classes=classes,
    description=f'{len(train):,} bytes to train, {len(test):,} held out{said}',
    content=lambda stage: read(data.train, stage.files),
    facts={'held-out bytes': len(test)} | _rival(module, whole),
    validation=windows(validation) if data.validation else (),
  )


def _validation_text(read, data):
  if not isinstance(data.validation, str):
    raise ValueError(
      f'config.data.validation is {data.validation}, a share, and a text is split by'
      " its files. Set it to 'validation'."
    )
  return read(data.validation, '') if data.validation else ()


def _rival(module, whole):
  """What gzip needs, where every byte is predicted from those before it."""
  if not hasattr(module, 'gzip_bits_per_byte'):
    return {}
  # Of the whole: excerpts would cost gzip what it has learned before them.
  bits = round(module.gzip_bits_per_byte(whole), 4)
  return {'gzip -9 of all held-out files, bits per byte': bits}


def _length(arrays) -> int:
  return len(next(iter(arrays.values())))


def _abstract(x) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)
