"""Whether the parts of a plan fit together: known before anything is trained."""

from collections.abc import Sequence
import functools

import jax

from jaxopt_compress.train import answers
from jaxopt_compress.train import examples as examples_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import stages as stages_lib
from jaxopt_compress.train import words
from jaxopt_compress.train.tasks import check as check_lib


def check(
  built: Sequence[stages_lib.Built],
  data: options.Data,
  examples: examples_lib.Examples,
  devices: int,
) -> None:
  """Raises a ValueError for what a stage would meet at its first step, or before.

  Args:
    built: all stages, in order.
    data: options of the examples.
    examples: that they are trained on.
    devices: over which a batch is split.
  """
  by_name = {b.stage.name: b for b in built}
  for b in built:
    stage = b.stage
    if b.model.task.classes:
      examples_lib.check_answers(examples, stage, b.model.answers, data.target)
    check_lib.check_answers(
      b.model.task,
      b.model.answers,
      _abstract(examples.test[0][data.target]),
      f'config.models.{stage.model}',
    )
    if stage.steps or b.ranges or words.on_data(stage):
      examples.batches(stage)
    parts = devices * stage.accumulate
    if stage.steps and stage.batch_size % parts:
      more = f' in {stage.accumulate} parts' if stage.accumulate > 1 else ''
      raise ValueError(
        f'config.stage.{stage.name}.batch_size is {stage.batch_size}, which does'
        f' not divide over {devices} devices{more}. Use a multiple of {parts}, or set'
        f' config.run.devices{" or accumulate" if more else ""}.'
      )
    if stage.parent:
      source = by_name[stage.parent]
      start = functools.partial(stages_lib.start, b, source.model.name)
      own = b.source.params, b.source.variables
      jax.eval_shape(start, own, source.final)
    answers.check_classes(stage, b.model.answers)
    for name in stage.distil.stages:
      teacher = by_name[name].model
      if teacher.answers.shape != b.model.answers.shape:
        raise ValueError(
          f'config.stage.{stage.name}.teacher: {name} answers'
          f' {list(teacher.answers.shape)}, and the student'
          f' {list(b.model.answers.shape)}. Give both models the same classes.'
        )


def _abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)
