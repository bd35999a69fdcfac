"""The file of what `tune` measured, which several processes may write at once.

    {device kind: {weight: {rows: {'xla': milliseconds, 'avx512-vnni': ...}}}}

A writer holds a lock while it reads the file, adds what it knows and puts a new file in
the place of the old one. So nothing that others wrote is lost, and no reader, who takes
no lock, sees half a file.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
import tempfile
from typing import Any

Times = dict[str, dict[str, dict[str, dict[str, float]]]]

# The largest time, eleven days: longer ones were not measured.
_MOST_MS = 1e9
# How many rows: at least one, and no other way to write the number.
_ROWS = re.compile('[1-9][0-9]{0,17}')


def read(file: str | os.PathLike | None) -> Times:
  """The times of a file; none if there is no file.

  Raises:
    ValueError: it is a folder, or no file of such times; says where it is not.
  """
  if file is None or not pathlib.Path(file).exists():
    return {}
  if pathlib.Path(file).is_dir():
    raise ValueError(f'{file} is a folder. Name a file in it, as times.json.')
  try:
    times = json.loads(pathlib.Path(file).read_bytes())
    why = _what_is_wrong(times)
  except (ValueError, RecursionError) as e:
    why = str(e)
  if why:
    raise ValueError(
      f'{file} holds no measurements of tune: {why}. Remove it, or name another'
      ' file.'
    )
  return times


def add(file: str | os.PathLike, times: Times) -> None:
  """Adds times to a file, in the place of those of the same product.

  The file, and folders above it, are made if they are not there.
  """
  # Of a link, what it leads to is replaced, and locked for those who name that.
  file = pathlib.Path(os.path.realpath(file))
  file.parent.mkdir(parents=True, exist_ok=True)
  with _locked(file):
    merged = _merged(read(file), times)
    _replace(file, json.dumps(merged, indent=2, sort_keys=True) + '\n')


def _what_is_wrong(times: Any) -> str:
  """'' for what `Times` says, with names of rows and times that can be."""
  for place, value in _entries(times, ()):
    where = ' > '.join(place) or 'the whole file'
    if len(place) < 4:
      if not isinstance(value, dict):
        return f'{where} is {_shown(value)}, not an object'
      if len(place) == 3 and not _ROWS.fullmatch(place[-1]):
        return f'{where}: {_shown(place[-1])} is no number of rows'
    # In Python true is a number, too, and comparisons with NaN are false.
    elif type(value) not in (int, float) or not 0 < value < _MOST_MS:
      return f'{where} is {_shown(value)}, not a time in milliseconds'
  return ''


def _entries(value, place) -> Iterator[tuple[tuple[str, ...], Any]]:
  """(names that lead there, value), down to the times."""
  yield place, value
  if len(place) < 4 and isinstance(value, dict):
    for name, inside in value.items():
      yield from _entries(inside, (*place, name))


def _shown(value) -> str:
  said = json.dumps(value)
  return said if len(said) <= 40 else f'{said[:37]}...'


def _merged(old: Times, new: Times) -> Times:
  """Both times, the newer where both have one.

  >>> _merged({'cpu': {'w': {'1': {'xla': 2.0}}}}, {'cpu': {'w': {'8': {'xla': 3.0}}}})
  {'cpu': {'w': {'1': {'xla': 2.0}, '8': {'xla': 3.0}}}}
  """
  merged = dict(old)
  for device, weights in new.items():
    mine = merged[device] = dict(merged.get(device, {}))
    for weight, rows in weights.items():
      mine[weight] = mine.get(weight, {}) | rows
  return merged


@contextlib.contextmanager
def _locked(file: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a file; the system lets go of it if the process ends."""
  import fcntl  # Windows, where nothing else of the library fails, has none.

  # The file itself cannot be locked: others take its place.
  with open(file.with_name(f'.{file.name}.lock'), 'a') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _replace(file: pathlib.Path, text: str) -> None:
  """Puts a text in the place of a file in one step."""
  # In the folder of the file: only within one file system does `os.replace` swap in
  # one step. The name is this writer's own, where locks of the file system fail.
  handle, new = tempfile.mkstemp(prefix=f'.{file.name}.', dir=file.parent)
  try:
    with os.fdopen(handle, 'w') as f:
      f.write(text)
      # A name may reach the disk before what it names.
      f.flush()
      os.fsync(f.fileno())
    # `mkstemp` makes files that others cannot read; the file that is there can be
    # shared.
    os.chmod(new, file.stat().st_mode if file.exists() else 0o644)
    os.replace(new, file)
  except BaseException:
    os.unlink(new)
    raise
