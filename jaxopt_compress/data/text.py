"""Text as bytes: the standard library's own sources, or a user's files.

    a text is one array of bytes, each file followed by a NUL
    a window predicts each of its bytes from those before it, the first from a NUL

A hash of its path assigns a file to one split. So no function is half in training and
half in test, and a file keeps its split when others come and go. `gzip_bits_per_byte`
is what a model of the text has to beat.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import fnmatch
import gzip
import hashlib
import os
import pathlib
import re
import sysconfig

import numpy as np

from jaxopt_compress.data.batches import Batch
from jaxopt_compress.data.batches import Batches
from jaxopt_compress.data.batches import batches
from jaxopt_compress.data.batches import eval_batches

_SPLITS = ('train', 'validation', 'test')

# Not written by people or not part of the library: copies that editors hide, character
# tables, generated help, records of the build, installed packages, tests.
SKIP = (
  '.*',
  *('site-packages', 'dist-packages', '__pycache__'),
  *('test', 'tests', 'idle_test'),
  *('encodings', 'pydoc_data', '_sysconfigdata*', '__phello__*'),
)


def load(
  split: str,
  root: str | os.PathLike | None = None,
  *,
  only: str = '.*',
  suffixes: Sequence[str] = ('.py',),
  skip: Sequence[str] = SKIP,
) -> np.ndarray:
  """The files of one split, in the order of their paths.

  Args:
    split: 'train', 'validation' or 'test': about 90, 5 and 5 percent of the
      files; or several: 'train+validation'; or 'all'.
    root: a directory of text files, or one file, which is no split but 'all'; the
      standard library by default.
    only: a regular expression that the whole path of a file must match.
    suffixes: endings of the files to read.
    skip: names of files and directories to leave out, with wildcards if needed.

  Returns:
    [n] uint8.

  Raises:
    ValueError: no such split or directory, no files, or a file that is not text.
  """
  wanted = _SPLITS if split == 'all' else split.split('+')
  if unknown := [name for name in wanted if name not in _SPLITS]:
    raise ValueError(
      f'No split {unknown[0]!r}; there are {list(_SPLITS)}, joined by "+", and'
      " 'all'."
    )
  if root is not None and pathlib.Path(root).is_file():
    return _one(pathlib.Path(root), split)
  try:
    chosen = re.compile(only)
  except re.error as e:
    raise ValueError(
      f'{only!r}, which chooses files, is not a regular expression: {e}. All'
      " Python files are '.*\\.py'."
    ) from e
  root = _root(root)
  names = [
    name
    for name in files(root, suffixes=suffixes, skip=skip)
    if split_of(name) in wanted and chosen.fullmatch(name)
  ]
  if not names:
    among = '' if only == '.*' else f' that match {only!r}'
    raise ValueError(
      f'None of the files under {root}{among} falls into {split!r}: there are'
      " too few to be split by file. Take parts of all: 'all[:90%]' to train on,"
      " 'all[90%:]' to be judged by."
    )
  return read(root / name for name in names)


def _one(path, split):
  if split != 'all':
    raise ValueError(
      f"{path} is one file, which is no {split!r}. Take parts of it: 'all[:90%]' to"
      " train on, 'all[90%:]' to be judged by."
    )
  return read([path])


def files(
  root: str | os.PathLike | None = None,
  *,
  suffixes: Sequence[str] = ('.py',),
  skip: Sequence[str] = SKIP,
) -> list[str]:
  """Sorted paths of the files below `root`, relative to it, joined by '/'."""
  root = _root(root)
  found = []
  for directory, subdirectories, names in os.walk(root):
    # os.walk reads this list again, so skipped directories are not entered.
    subdirectories[:] = [d for d in subdirectories if not _skipped(d, skip)]
    found += [
      pathlib.Path(directory, name).relative_to(root).as_posix()
      for name in names
      if name.endswith(tuple(suffixes)) and not _skipped(name, skip)
    ]
  if not found:
    raise ValueError(
      f'No file under {root} ends with one of {list(suffixes)}. Pass'
      " suffixes=('.txt', ...) that fit, or another root."
    )
  return sorted(found)


def split_of(name: str) -> str:
  """The split of a file, by its path relative to the root.

  >>> split_of('argparse.py'), split_of('ast.py')
  ('test', 'train')
  """
  # Not Python's hash, which differs from process to process.
  digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
  place = int.from_bytes(digest, 'big') % 20
  return {0: 'test', 1: 'validation'}.get(place, 'train')


def read(paths: Iterable[str | os.PathLike]) -> np.ndarray:
  """The bytes of files, a NUL after each; empty files are left out.

  Returns:
    [n] uint8.

  Raises:
    ValueError: a file is missing or has a NUL in it, or there is nothing.
  """
  parts = []
  for path in map(pathlib.Path, paths):
    if not path.is_file():
      raise ValueError(f'There is no file {path}. Check the path.')
    data = path.read_bytes()
    if b'\0' in data:
      raise ValueError(
        f'{path} has a NUL at byte {data.index(0)}, so it is no text, and NUL is'
        ' what ends a file here. Leave it out, or re-encode it as UTF-8.'
      )
    parts += [data, b'\0'] if data else []
  if not parts:
    raise ValueError('There is no text: no files, or empty ones only.')
  return np.frombuffer(b''.join(parts), np.uint8)


def windows(
  text: np.ndarray, *, batch_size: int, length: int, seed: int
) -> Batches:
  """Windows of a text to train on, as batches indexed by the step.

  An epoch has one window for each `length` bytes of the text. Each starts up to
  `length` bytes later by chance, so that no two epochs cut the text at the same places.

  Args:
    text: [n] uint8.
    batch_size: windows in a batch.
    length: bytes in a window.
    seed: for the order and the starts.

  Returns:
    Batches of `tokens` and `label`, [batch_size, length] int32: label i is the
    byte after token i.

  Raises:
    ValueError: the text is shorter than a window, or has too few for a batch.

  >>> text = np.frombuffer(b'abcdefgh', np.uint8)
  >>> batch = windows(text, batch_size=1, length=3, seed=0)[0]
  >>> bool((batch['label'] - batch['tokens'] == 1).all())
  True
  """
  last = last_start(text, length)
  stream = _from_nul(text)

  def read_windows(batch, rng):
    start = batch['start'] + rng.integers(0, length, len(batch['start']))
    return _windows_at(stream, np.minimum(start, last), length)

  return batches(
    {'start': np.arange(0, last + 1, length)},
    batch_size=batch_size,
    seed=seed,
    transform=read_windows,
  )


def eval_windows(
  text: np.ndarray,
  *,
  batch_size: int,
  length: int,
  context: int | None = None,
) -> list[Batch]:
  """Windows in which every byte of a text counts exactly once.

  Bytes that two windows share count in the earlier one, where more bytes precede
  them. So outside the first window each byte is predicted from at least `context`
  others.

  Args:
    text: [n] uint8.
    batch_size: windows in a batch; the last is padded.
    length: bytes in a window.
    context: by how many bytes windows overlap; half of `length` by default.

  Returns:
    Batches of `tokens`, `label` [batch_size, length] int32, and `mask`
    [batch_size, length] bool: where label counts.

  Raises:
    ValueError: the text is shorter than a window, or context is not below length.

  >>> text = np.frombuffer(b'abcdefg', np.uint8)
  >>> [batch] = eval_windows(text, batch_size=2, length=4, context=1)
  >>> [bytes(row.astype(np.uint8)) for row in batch['label']]
  [b'abcd', b'defg']
  >>> batch['mask'].astype(int).tolist()
  [[1, 1, 1, 1], [0, 1, 1, 1]]
  """
  context = length // 2 if context is None else context
  if not 0 <= context < length:
    raise ValueError(
      f'context={context} is not from 0 to length - 1 = {length - 1}.'
    )
  last = last_start(text, length)
  stream = _from_nul(text)
  # Windows start every length - context bytes; the last one ends with the text. A
  # window's own bytes begin where the window before it ended.
  start = np.minimum(
    np.arange(0, last + length - context, length - context), last
  )
  counted = np.concatenate([[0], start[:-1] + length])
  result = []
  for batch in eval_batches({'start': start, 'counted': counted}, batch_size):
    place = batch['start'][:, None] + np.arange(length)
    mask = (place >= batch['counted'][:, None]) & batch['mask'][:, None]
    result.append(_windows_at(stream, batch['start'], length) | {'mask': mask})
  return result


def excerpts(text: np.ndarray, n: int, length: int = 4096) -> np.ndarray:
  """About `n` bytes of a text, in evenly spaced excerpts of `length` bytes.

  They come from all over the text; its first `n` bytes would be a file or two.

  Args:
    text: [m] uint8, as `load` returns it.
    n: how many bytes; m or more for all of them.
    length: of one excerpt.

  Returns:
    [k * length] uint8 with k = max(1, n // length), or `text`.

  >>> excerpts(np.arange(100), 20, length=10)[[0, 9, 10, 19]]
  array([ 0,  9, 90, 99])
  """
  if n >= len(text) or length >= len(text):
    return text
  starts = np.linspace(0, len(text) - length, max(1, n // length)).astype(int)
  return np.concatenate([text[s : s + length] for s in starts])


def vocabulary(text: np.ndarray) -> int:
  """How many tokens a model of a text has to tell apart: 1 + the largest byte."""
  return 1 + int(text.max())


def gzip_bits_per_byte(text: np.ndarray) -> float:
  """What `gzip -9` needs for a text, the rival of a model of it.

  The better of two: each file compressed by itself, without its NUL, or all as one
  stream. Headers count. On Python sources one stream has always won.

  Args:
    text: [n] uint8, as `load` returns it.

  Returns:
    8 * compressed bytes / n.

  >>> gzip_bits_per_byte(np.zeros(1000, np.uint8)) < 0.3
  True
  """
  data = text.tobytes()
  if not data:
    raise ValueError('There is no text to compress.')
  alone = sum(_gzipped(part) for part in data.split(b'\0') if part)
  return 8 * min(alone or np.inf, _gzipped(data)) / len(data)


def _gzipped(data) -> int:
  """Bytes of `gzip -9`; without a time in the header, always the same."""
  return len(gzip.compress(data, 9, mtime=0))


def _root(root) -> pathlib.Path:
  root = pathlib.Path(sysconfig.get_path('stdlib') if root is None else root)
  if not root.is_dir():
    raise ValueError(
      f'There is no directory {root}. Pass root= a directory of text files; the'
      " default is the standard library's own, which some Pythons keep in a zip."
    )
  return root


def _skipped(name, patterns) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def last_start(text: np.ndarray, length: int) -> int:
  """Where the last window of a text begins; a shorter text is refused."""
  if len(text) < length:
    raise ValueError(
      f'The text has {len(text)} bytes, and a window has {length}. Choose a'
      ' smaller length, or read more text.'
    )
  return len(text) - length


def _from_nul(text):
  """A NUL before the text, so that its first byte is predicted as well."""
  return np.concatenate([np.zeros(1, np.uint8), text])


def _windows_at(stream, start, length) -> Batch:
  # One byte more than a window: labels are the tokens moved by one.
  bytes_ = stream[start[:, None] + np.arange(length + 1)].astype(np.int32)
  return {'tokens': bytes_[:, :-1], 'label': bytes_[:, 1:]}
