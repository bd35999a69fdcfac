"""Where the numbers of a run go: JSON lines always, the rest if wanted.

`metrics.jsonl` is written by process 0, one object a line:

    {"stage": "teacher", "step": 100, "loss": 0.31}

A run that resumes from step s first drops what an interrupted run wrote of the
same stage after s, so no step is ever there twice.
"""

import json
import pathlib
import sys
from typing import Any

import jax

from jaxopt_compress.disk import files


class Metrics:
  """Writes the metrics of all stages of a run.

  Args:
    workdir: a directory that exists.
    tensorboard: write event files to `workdir/tensorboard` too; needs tensorboardX.
  """

  def __init__(self, workdir, *, tensorboard: bool = False):
    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    self._first = jax.process_index() == 0
    self._events = {}
    self._tensorboard = None
    if tensorboard and self._first:
      self._tensorboard = pathlib.Path(workdir) / 'tensorboard'
      _event_writer()  # fails now rather than after an hour

  def begin(self, stage: str, step: int) -> None:
    """Drops what is there of `stage` after `step`, and a torn last line."""
    if not self._first:
      return
    kept = [
      json.dumps(record)
      for record in read(self._path)
      if record['stage'] != stage or record['step'] <= step
    ]
    files.replace(self._path, ''.join(line + '\n' for line in kept))
    if self._tensorboard:
      # Event files are append-only; the reader is told what to forget.
      self._events[stage] = _event_writer()(
        str(self._tensorboard / stage), purge_step=step + 1
      )

  def write(self, stage: str, step: int, values: dict[str, Any]) -> None:
    """Adds one line."""
    if not self._first:
      return
    values = {name: float(value) for name, value in values.items()}
    record = {'stage': stage, 'step': int(step), **values}
    with self._path.open('a') as f:
      f.write(json.dumps(record) + '\n')
    if stage in self._events:
      for name, value in values.items():
        self._events[stage].add_scalar(name, value, int(step))

  def close(self) -> None:
    for events in self._events.values():
      events.close()


def read(path) -> list[dict[str, Any]]:
  """The lines of a `metrics.jsonl`; a last line that was cut off is left out.

  Raises:
    ValueError: another line is damaged.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return []
  # What follows the last newline is empty, or was being written when we died.
  *lines, _ = path.read_bytes().split(b'\n')
  return [_record(f'{path}:{i}', line) for i, line in enumerate(lines, 1)]


def _record(where, line):
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):
    record = None
  if not isinstance(record, dict) or not (
    isinstance(record.get('stage'), str) and isinstance(record.get('step'), int)
  ):
    raise ValueError(
      f'{where} is damaged: it is {line[:60].decode(errors="replace")!r}, expected'
      ' {"stage": ..., "step": ...}. Remove that line, or the file; the stages'
      ' are kept.'
    )
  return record


def _event_writer():
  try:
    import tensorboardX
  except ImportError as e:
    raise ValueError(
      'run.tensorboard is set and tensorboardX is not installed. Run'
      " pip install 'jaxopt_compress[tensorboard]', or leave it off."
    ) from e
  return tensorboardX.SummaryWriter


class Progress:
  """A bar on a terminal, a plain line now and then otherwise; process 0 only.

  Args:
    name: of the stage.
    begin, end: the steps.
    terminal: whether to draw a bar; by default, whether stderr is a terminal.
  """

  def __init__(
    self, name: str, begin: int, end: int, terminal: bool | None = None
  ):
    if terminal is None:
      terminal = sys.stderr.isatty()
    self._first = jax.process_index() == 0
    self._name, self._end, self._bar = name, end, None
    if terminal and self._first:
      import tqdm  # an extra, like all of the launch scripts' needs

      self._bar = tqdm.tqdm(
        desc=name, initial=begin, total=end, unit='step', dynamic_ncols=True
      )

  def advance(self) -> None:
    """One more step is done."""
    if self._bar is not None:
      self._bar.update(1)

  def show(self, step: int, values: dict[str, float]) -> None:
    """Shows the latest values."""
    text = ', '.join(f'{name} {value:.4g}' for name, value in values.items())
    if self._bar is not None:
      self._bar.set_postfix_str(text)
    elif self._first:
      print(f'[{self._name}] step {step}/{self._end}: {text}', flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def log(text: str) -> None:
  """A line for the reader of the run, from process 0."""
  if jax.process_index() == 0:
    print(text, flush=True)
