"""The task that a config names.

task = 'regression'
task = dict(name='regression', loss='huber, delta 0.5', standardize=True)
task = dict(loss='my_pkg.losses:focal, gamma 2.0')         of classification
task = 'my_pkg.tasks:my_task'                              a `tasks.Task`
report = dict(metric='my_pkg.metrics:f1')                  a `tasks.Metric`, or a function
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import inspect
import types
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.core import choices
from jaxopt_compress.distillation import losses
from jaxopt_compress.train import metrics as metrics_lib
from jaxopt_compress.train import named
from jaxopt_compress.train import options
from jaxopt_compress.train import soft_loss
from jaxopt_compress.train.tasks import classification
from jaxopt_compress.train.tasks import errors
from jaxopt_compress.train.tasks import regression
from jaxopt_compress.train.tasks import task as task_lib

_OF_CLASSES = ('classification', 'next_byte', 'masked_byte')
NAMES = (*_OF_CLASSES, 'regression')
_OF_DATA = {'text': 'next_byte', 'masked_text': 'masked_byte'}
_ERRORS = ('mse', 'mae', 'huber')

# Of targets that nobody has seen.
_UNSEEN = regression.Scale(0.0, 1.0)


def read(
  said: options.Task,
  data: str,
  metrics: Mapping[str, str] = types.MappingProxyType({}),
  scale: regression.Scale = _UNSEEN,
) -> task_lib.Task:
  """The task.

  Args:
    said: what the config says of it.
    data: the name of the data, which has a task of its own.
    metrics: names of numbers that are asked for, of the task or of the user's, by their
      paths in the config.
    scale: of the targets to train on, for 'regression'.

  Raises:
    ValueError: no such task, loss or metric, or a word that has no effect.

  >>> list(read(options.Task(), 'digits').metrics)
  ['accuracy', 'top 5', 'loss']
  """
  task = _named(said, data, scale)
  found = dict(task.metrics)
  found['loss'] = task_lib.Metric(task.loss, False)
  for where, name in metrics.items():
    if named.is_own(name):
      found[name] = _metric(where, name)
    elif name:
      choices.one_of(where, name, found)
  return dataclasses.replace(task, metrics=found)


def _named(said, data, scale):
  where, name = 'config.task', said.name or _OF_DATA.get(data, 'classification')
  if said.standardize and name != 'regression':
    raise ValueError(
      f'{where}.standardize has no effect on {name!r}. Leave it out.'
    )
  if named.is_own(name):
    task = named.find(f'{where}.name', name)
    if not isinstance(task, task_lib.Task):
      raise ValueError(
        f'{where}.name is {name!r}, of type {type(task).__name__}; a'
        ' jaxopt_compress.train.tasks.Task is expected.'
      )
    if said.loss:
      raise ValueError(
        f'{where}.loss is {said.loss!r}, and {name!r} has its own.'
      )
    if task.loss is losses.cross_entropy:
      return task
    return dataclasses.replace(task, loss=_masked(task.loss))
  choices.one_of(f'{where}.name', name, NAMES)
  if (own := _OF_DATA.get(data)) and name not in ('classification', own):
    raise ValueError(
      f'{where}.name is {name!r}; of the data {data!r} it is {own!r}. Leave it out.'
    )
  if name == 'regression':
    loss, called = _loss(said.loss or 'mse', _ERRORS, errors)
    return regression.regression(loss, called, scale, said.standardize)
  task = getattr(classification, name)
  if said.loss:
    loss, called = _loss(said.loss, ('cross_entropy',), losses)
    task = dataclasses.replace(task, loss=loss, loss_name=called)
  return task


def _loss(said, known, room) -> tuple[Callable[..., Any], str]:
  """(`(answers, targets, mask) -> (sum, count)`, its name)."""
  read = soft_loss.read('config.task.loss', said, room=room, known=known)
  words = [n for n, x in read.numbers.items() if isinstance(x, str)]
  if words:
    raise ValueError(
      f'config.task.loss is {said!r}; a number of {words[0]} is expected, as what a'
      ' network is judged by does not change with the steps.'
    )
  function, called = read.function, read.name.rpartition(':')[2]
  if read.numbers:
    function = functools.partial(function, **read.numbers)
  if named.is_own(read.name):
    function = _masked(function)
  return function, called.replace('_', ' ')


def _masked(function):
  """A user's loss, which always has a mask, and may count with numbers of Python."""

  def loss(answers, targets, mask=None):
    mask = jnp.ones(targets.shape, bool) if mask is None else mask
    return jax.tree.map(jnp.asarray, function(answers, targets, mask))

  return loss


def _metric(where, name):
  found = named.find(where, name)
  if isinstance(found, task_lib.Metric):
    return found
  if not inspect.isroutine(found) and not callable(found):
    raise ValueError(
      f'{where} is {name!r}, of type {type(found).__name__}; a'
      ' function (answers, targets, mask) -> (sum, count), or a'
      ' jaxopt_compress.train.tasks.Metric, is expected.'
    )
  metrics_lib.log(
    f'{name}: more is better, as nothing else is said (if less is, make it a'
    ' tasks.Metric(f, higher_is_better=False)).'
  )
  return task_lib.Metric(found)
