"""A run that is given more steps goes on, in the workdir that it has.

    steps larger, patience larger    the stage goes on from its last state
    a stage before it has more       the stage is made again, from its beginning
    anything else                    another experiment: refused, see `checkpoint`

A finished stage keeps the state after its last step for this, `state/` beside its
parameters, and what it left stays until the new result is there. Schedules are those of
the new length, so that the whole is not what an unbroken run of that length is: a rate that
had fallen rises again. That is said when it goes on, and in the report.
"""

import os
import pathlib
import shutil

import jax

from jaxopt_compress.disk import sealed
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import metrics
from jaxopt_compress.train import optimizer
from jaxopt_compress.train import options
from jaxopt_compress.train import processes
from jaxopt_compress.train import validation

SAME, ON, AGAIN, OTHER = 'same', 'on', 'again', 'other'
TO_DO = (ON, AGAIN)


def change(saved: checkpoint.Config, now: checkpoint.Config, name: str) -> str:
  """How what is there of a stage stands to what is asked for now.

  Args:
    saved, now: fingerprints of the stage.
    name: of it.

  Returns:
    SAME; ON, as it has more steps; AGAIN, as a stage before it has; or OTHER.

  >>> change({'stage.s.steps': 3}, {'stage.s.steps': 5}, 's')
  'on'
  >>> change({'stage.t.steps': 3}, {'stage.t.steps': 5}, 's')
  'again'
  """
  differ = checkpoint.differences(saved, now)
  if not differ:
    return SAME
  if not all(_grown(key, *values) for key, values in differ.items()):
    return OTHER
  own = all(key.startswith(f'stage.{name}.') for key in differ)
  return ON if own else AGAIN


def _grown(key, before, after):
  """Whether a number of a stage has only grown; patience 0 has no end."""
  what = key.rpartition('.')[2] if key.startswith('stage.') else ''
  if not isinstance(before, int) or not isinstance(after, int):
    return False
  if what == 'patience':
    return 0 < before and (before < after or not after)
  return what == 'steps' and 0 < before < after


def goes_on(
  name: str, saved: checkpoint.Config, now: checkpoint.Config
) -> bool:
  """Whether a stage may go on from a checkpoint of `saved`."""
  return change(saved, now, name) in (SAME, ON)


def standing(job: job_lib.Job, stage: options.Stage) -> tuple[str, str]:
  """(how what is there of a stage stands to the config, a sentence); both may be ''.

  Of a finished stage, or else of the newest checkpoint that can be read.

  Raises:
    sealed.Damaged: the result of a finished stage is not as it was written.
  """
  saved = _saved(job, stage)
  if saved is None:
    return '', ''
  now = job.plan.fingerprint(stage)
  how = change(saved, now, stage.name)
  begun = _newest(job.checkpoints(stage.name)) if how == AGAIN else None
  if begun is not None and goes_on(stage.name, begun, now):
    return SAME, ''  # It is being made again already.
  if how == ON:
    before = saved[f'stage.{stage.name}.steps']
    at = _stands(job.stage(stage.name), job.checkpoints(stage.name), before)
    if _stalled(job, stage):
      return how, (
        f'is asked for more steps, and its patience ({stage.validation.patience}) was'
        f' used up at step {at}: it trains none. Give it a larger patience, or 0.'
      )
    return how, told(stage, before, at)
  if how == AGAIN:
    keys = [*checkpoint.differences(saved, now)]
    others = dict.fromkeys(key.split('.')[1] for key in keys)
    others = [repr(x) for x in others if x != stage.name]
    return how, (
      f'is made again, as {" and ".join(others)} has more steps; what it left stays'
      ' until then.'
    )
  return how, ''


def _saved(job, stage):
  directory = job.stage(stage.name)
  if directory.exists():
    return sealed.read(directory / job_lib.RESULT).get('config')
  return _newest(job.checkpoints(stage.name))


def _stands(whole, folder, before):
  """The last step that was trained; early stopping may end before `before`."""
  paths = _steps(whole / 'state') or _steps(folder)
  return int(paths[-1].name) if paths else before


def _stalled(job, stage):
  """Whether what a finished stage has seen uses up its patience of now."""
  path = job.stage(stage.name) / job_lib.RESULT
  seen = sealed.read(path).get('validation') if path.exists() else ()
  if not seen:
    return False
  plan = job.plan
  history = validation.history(stage, plan.task, plan.report.metric)
  return history.from_json(seen).stalled


def _newest(folder):
  """The fingerprint of the newest checkpoint that can be read, or None."""
  for path in _steps(folder)[::-1]:
    try:
      return checkpoint.read_manifest(path)['config']
    except checkpoint.CorruptCheckpoint:
      continue
  return None


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
  """The checkpoints in a folder, by step."""
  if not folder.exists():
    return []
  found = [path for path in folder.iterdir() if path.name.isdigit()]
  return sorted(found, key=lambda path: int(path.name))


def prepare(job: job_lib.Job, stage: options.Stage) -> None:
  """Puts in place what a stage goes on from, and says so."""
  how, said = standing(job, stage)
  if said:
    metrics.log(f'[{stage.name}] {said}')
  folder, state = job.checkpoints(stage.name), job.stage(stage.name) / 'state'
  if jax.process_index() == 0:
    if how == AGAIN:
      # Steps that followed what another teacher or start had said.
      shutil.rmtree(folder, ignore_errors=True)
    elif how == ON and not _steps(folder):
      if not _steps(state):
        raise ValueError(
          f'Stage {stage.name!r} cannot go on: {state}, its state after the last step,'
          ' has been removed. Put the old number of steps back, or remove'
          f' {state.parent} to train it from its beginning.'
        )
      # Whole or absent: a kill in between leaves the other name.
      partial = folder.with_name(f'{stage.name}.partial')
      shutil.rmtree(partial, ignore_errors=True)
      shutil.copytree(state, partial, copy_function=linked)
      plan = state.parent / job_lib.PLAN
      if plan.exists():
        shutil.copy(plan, partial)
      shutil.rmtree(folder, ignore_errors=True)
      os.rename(partial, folder)
  processes.wait(f'{stage.name} prepared')


def keep(folder: pathlib.Path, state: pathlib.Path) -> None:
  """Keeps the last checkpoint of a stage, and those that it needs.

  Args:
    folder: of its checkpoints.
    state: where they go.
  """
  last = _steps(folder)[-1]
  needs = checkpoint.read_manifest(last).get('needs', ())
  for name in {last.name, *map(str, needs)}:
    shutil.copytree(folder / name, state / name, copy_function=linked)


def linked(source: str, target: str) -> None:
  """A file under a second name; a copy where the file system has no such thing."""
  try:
    os.link(source, target)
  except OSError:
    shutil.copy2(source, target)


def told(stage: options.Stage, before: int, at: int) -> str:
  """What more steps mean for the schedules of a stage that had `before`, `at` one."""
  said, n = stage.optimizer, stage.steps
  if before == n:
    return 'goes on, with more patience.'
  old, new = (
    float(optimizer.schedule(said.decay, steps, 1.0, said.warmup)(at))
    for steps in (before, n)
  )
  words = (
    f'has {n} steps instead of {before} and goes on; its schedules are those of'
    f' {n} steps from here: at step {at} the learning rate ({said.decay}) was'
    f' {old * said.learning_rate:.2g}, and is {new * said.learning_rate:.2g}'
  )
  end = validation.since(stage)
  if end > at:
    words += (
      f'; masks, which were final, change again until step {end}, and begin less'
      ' sparse'
    )
  return f'{words}.'


def lengths(
  whole: pathlib.Path, config: checkpoint.Config, name: str, ended: int
) -> list[int]:
  """The steps at which a stage ended before it went on with other schedules.

  Args:
    whole: the directory of its result of before, if there is one.
    config: the fingerprint of the stage.
    name: of it.
    ended: its last step now.
  """
  # Between the two renames of `put`, the result of before has its other name.
  found = [p for p in (whole, _old(whole)) if (p / job_lib.RESULT).exists()]
  if not found:
    return []
  result = sealed.read(found[0] / job_lib.RESULT)
  if change(result['config'], config, name) != ON:
    return []
  before, ends = result['config'][f'stage.{name}.steps'], result.get('lengths')
  at = _stands(found[0], found[0], before)
  # With the same schedules it is what one run is.
  same = before == config[f'stage.{name}.steps'] or at == ended
  return [*(ends or ()), *([] if same else [at])]


def put(partial: pathlib.Path, whole: pathlib.Path) -> None:
  """Puts a result under its final name, in the place of one of before."""
  if whole.exists():
    shutil.rmtree(_old(whole), ignore_errors=True)
    os.rename(whole, _old(whole))
  os.rename(partial, whole)
  shutil.rmtree(_old(whole), ignore_errors=True)


def _old(whole):
  return whole.with_name(f'{whole.name}.old')
