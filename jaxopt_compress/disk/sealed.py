"""Records that notice when they, or the files they speak of, have changed.

    {'accuracy': 0.9, 'sha256': digest of all the rest}

The digest is of the content as JSON with sorted keys, so it does not depend on how a
file is laid out, and a record may be kept inside another file.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib
from typing import Any

from jaxopt_compress.disk import files


class Damaged(ValueError):
  """What is on disk is not what was written."""


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
  """The record and the digest of it.

  Args:
    record: string keys, JSON values; tuples are as good as lists.

  >>> is_intact(seal({'a': (1, 2)})), is_intact(seal({'a': 1}) | {'a': 2})
  (True, False)
  """
  return {**record, 'sha256': _digest(record)}


def is_intact(record: Any) -> bool:
  """Whether this is a record as `seal` returned it, perhaps read from JSON."""
  if not isinstance(record, Mapping):
    return False
  rest = {key: value for key, value in record.items() if key != 'sha256'}
  return record.get('sha256') == _digest(rest)


def write(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
  """Writes a record, sealed, to a JSON file, which is replaced as a whole."""
  files.replace(path, json.dumps(seal(record), indent=2) + '\n')


def read(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what `write` wrote.

  Raises:
    Damaged: the file is missing, unreadable, or not as it was written.
  """
  content = _content(path)
  try:
    record = json.loads(content)
  except (ValueError, RecursionError) as e:
    raise Damaged(f'{path} is damaged: it is no JSON ({e}).') from e
  if not is_intact(record):
    raise Damaged(
      f'{path} is damaged, or of another version: its content does not have the'
      ' sha256 that it states.'
    )
  return record


def sha256(path: str | os.PathLike) -> str:
  """The hexadecimal digest of a file."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def of_bytes(content: bytes) -> str:
  """The hexadecimal digest of bytes."""
  return hashlib.sha256(content).hexdigest()


def check(path: str | os.PathLike, expected: str) -> None:
  """Raises Damaged unless the file has the digest `expected`."""
  try:
    found = sha256(path)
  except OSError as e:
    raise _unreadable(path, e) from e
  if found != expected:
    raise Damaged(
      f'{path} is not the file that was written: its sha256 is {found[:12]}...,'
      f' expected {expected[:12]}....'
    )


def _content(path):
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as e:
    raise _unreadable(path, e) from e


def _unreadable(path, error):
  if isinstance(error, FileNotFoundError):
    return Damaged(f'{path} is missing.')
  return Damaged(f'{path} cannot be read ({error.strerror}).')


def _digest(record):
  text = json.dumps(record, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
