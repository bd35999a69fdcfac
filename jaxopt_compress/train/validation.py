"""What is seen of a stage while it is trained, and what that decides.

    eval_every=n    every n steps, and after the last, the metrics of the validation split
    keep='best'     the stage leaves the parameters of the step with the best metric
    patience=n      it ends after n evaluations in a row without an improvement

An improvement is more than `min_delta`. Steps at which masks still change are no
candidates: a network that is not yet as sparse as it shall be is often better, and is not
what was asked for. All decisions follow from the numbers seen so far, which are in every
checkpoint: a run that resumes decides as one without a break.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from jaxopt_compress.core import choices
from jaxopt_compress.data import slices
from jaxopt_compress.train import fields
from jaxopt_compress.train import optimizer
from jaxopt_compress.train import options
from jaxopt_compress.train.tasks import task as task_lib

KEEP = ('last', 'best')
Numbers = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class History:
  """The evaluations of a stage, and the rules by which they decide.

  Attributes:
    rules: of the stage.
    metric: the name of the number that decides.
    up: whether more of it is better.
    since: the first step that is a candidate.
    seen: (step, numbers) of each evaluation, by step.
  """

  rules: options.Validation
  metric: str
  up: bool
  since: int = 0
  seen: tuple[tuple[int, Numbers], ...] = ()

  def after(self, step: int, numbers: Numbers) -> 'History':
    """With one more evaluation."""
    return dataclasses.replace(self, seen=(*self.seen, (step, dict(numbers))))

  @property
  def candidates(self) -> list[tuple[int, float]]:
    """(step, what decides) of each that counts; NaN never does."""
    return [
      (step, numbers[self.metric])
      for step, numbers in self.seen
      if step >= self.since and math.isfinite(numbers[self.metric])
    ]

  @property
  def best(self) -> int | None:
    """The step of the best one, the first of several; None if there is none yet.

    >>> up = History(options.Validation(every=1), 'accuracy', True)
    >>> for step, value in enumerate((0.5, 0.7, 0.7), 1):
    ...   up = up.after(step, {'accuracy': value})
    >>> up.best
    2
    """
    sign = 1 if self.up else -1
    found = max(self.candidates, key=lambda c: sign * c[1], default=None)
    return found and found[0]

  @property
  def stalled(self) -> bool:
    """Whether patience is used up."""
    if not self.rules.patience:
      return False
    sign, waited, reached = 1 if self.up else -1, 0, -math.inf
    for step, numbers in self.seen:
      if step < self.since:
        continue
      value = sign * numbers[self.metric]
      if value > reached + self.rules.min_delta:
        reached, waited = value, 0
      else:
        waited += 1
    return waited >= self.rules.patience

  @property
  def keeps(self) -> bool:
    """Whether the best evaluation is what the stage leaves."""
    return self.rules.keep == 'best'

  @property
  def last(self) -> int | None:
    """The step of the last one."""
    return self.seen[-1][0] if self.seen else None

  def told(self, steps: int) -> str:
    """A line on the last one, in a stage of so many steps."""
    step, numbers = self.seen[-1]
    said = ', '.join(f'{name} {x:.4g}' for name, x in numbers.items())
    note = ''
    if self.rules.decides and not math.isfinite(numbers[self.metric]):
      note = f'; {self.metric} is no number, and decides nothing'
    elif self.rules.decides and step < self.since:
      note = f'; decides nothing before step {self.since}, when masks are final'
    elif self.rules.decides and step == self.best:
      note = '; the best so far'
    return f'step {step}/{steps}, validation: {said}{note}.'

  def to_json(self) -> list[Any]:
    """`seen`, as JSON has it."""
    return [
      [step, {k: x if math.isfinite(x) else str(x) for k, x in numbers.items()}]
      for step, numbers in self.seen
    ]

  def from_json(self, seen: Sequence[Any]) -> 'History':
    """With what `to_json` wrote."""
    read = ((step, {k: float(x) for k, x in ns.items()}) for step, ns in seen)
    return dataclasses.replace(self, seen=tuple(read))


def since(stage: options.Stage) -> int:
  """The step from which on a stage has the masks that it ends with.

  >>> prune = options.Prune(rules=(('.*', 0.5),), span=(0.0, 0.6))
  >>> since(options.Stage(name='s', model='m', steps=100, prune=prune))
  60
  """
  prune = stage.prune
  if not prune.rules or prune.method == 'static':
    return 0
  return round(prune.span[1] * stage.steps)


def due(stage: options.Stage, done: int) -> bool:
  """Whether a stage is evaluated after so many steps."""
  every = stage.validation.every
  return done == stage.steps or bool(every) and done % every == 0


def outcome(stage: options.Stage, history: History) -> str:
  """What the evaluations of a finished stage decided, in a sentence; or ''.

  Raises:
    ValueError: the best is asked for, and none has a number.
  """
  if not history.rules.decides:
    return ''
  metric, last = history.metric, history.last
  if history.best is None:
    raise ValueError(
      f'Stage {stage.name!r} goes by {metric!r} on validation,'
      f' and in none of {len(history.seen)} evaluations was that a finite number.'
    )
  said, value = [], dict(history.seen)[history.best][metric]
  if history.keeps:
    said.append(
      f'keeps step {history.best} of {last}, with the best {metric},'
      f' {value:.4g}, of {len(history.candidates)} evaluations'
    )
  if history.stalled and last < stage.steps:
    said_of = stage.optimizer
    part = optimizer.schedule(said_of.decay, stage.steps, 1.0, said_of.warmup)
    part = float(part(last))
    delta = history.rules.min_delta
    more = f' of more than {delta:g}' if delta else ''
    said.append(
      f'stopped at step {last} of {stage.steps}, as {metric} saw no improvement{more}'
      f' in {history.rules.patience} evaluations (best {value:.4g} at step'
      f' {history.best}); the learning rate, {said_of.decay} over {stage.steps} steps,'
      f' was then {part * said_of.learning_rate:.2g}, {part:.0%} of its peak'
    )
  return '; '.join(said) + '.' if said else ''


def history(stage: options.Stage, task: task_lib.Task, metric: str) -> History:
  """That of a stage which has seen nothing yet; `metric` is that of the report."""
  metric = stage.validation.metric or metric
  up = task.metrics[metric].higher_is_better
  return History(stage.validation, metric, up, since(stage))


def check_split(data: options.Data) -> None:
  """Raises a ValueError for a split that is trained on and judges, or no share."""
  if not isinstance(data.validation, str):
    fields.number('config.data.validation', data.validation, 0.1, '(0, 1)')
  for key in ('validation', 'test'):
    said = getattr(data, key)
    if isinstance(said, str) and (both := _both(said, data.train)):
      raise ValueError(
        f'config.data.{key} is {said!r}, and config.data.train {data.train!r}: {both}'
        ' is in both, and what is learned by heart would look good. Leave it out of'
        f' one of them, or take a part for each: {both}[:80%], {both}[80%:].'
      )


def _both(split, other):
  """The splits that are in both of 'train+validation' and 'validation'."""
  a, b = slices.read(split), slices.read(other)
  if a.whole == b.whole and not (a.all and b.all):
    return ''  # Parts of one, which `slices.check_apart` compares.
  if '@' in a.whole:  # A path may have a plus.
    return a.whole if a.whole == b.whole else ''
  others = b.whole.split('+')
  return '+'.join(s for s in a.whole.split('+') if s and s in others)


def check(
  where: str,
  stage: options.Stage,
  data: options.Data,
  task: task_lib.Task,
  metric: str,
) -> None:
  """Raises a ValueError for evaluations that could not be, or decide by the test.

  Args:
    where: the path of the stage in the config.
    stage, data, task: of the config.
    metric: of the report.
  """
  rules = stage.validation
  choices.one_of(f'{where}.keep', rules.keep, KEEP)
  if not rules.every:
    return
  if data.validation == '':
    raise ValueError(
      f'{where}.eval_every is {rules.every}, and config.data.validation is empty.'
      " Set that to a split ('validation'), or to the share of the training examples"
      ' that is held back for it (0.1).'
    )
  choices.one_of(f'{where}.metric', rules.metric or metric, task.metrics)
  split = data.validation if isinstance(data.validation, str) else ''
  if rules.decides and (both := _both(split, data.test)):
    raise ValueError(
      f'{where} decides by evaluations on {both!r}, which is config.data.test as'
      ' well: what is chosen by a split is no longer judged by it. Set'
      ' config.data.validation to another split, or to a share of the training'
      ' examples (0.1).'
    )
  if rules.decides and rules.every > stage.steps:
    raise ValueError(
      f'{where}.eval_every is {rules.every}, and the stage has {stage.steps} steps: it'
      ' would be evaluated at its end alone, and there is nothing to choose from.'
    )
