"""Asking a teacher once, and keeping what it says.

A writer makes the files that are not there. Whenever it is killed, each file is whole
or not there, so that the same call goes on where the last one was.
"""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from jaxopt_compress.disk import files
from jaxopt_compress.disk import sealed
from jaxopt_compress.distillation.cache import manifest as manifest_lib
from jaxopt_compress.distillation.cache import shards

# `indices [b] -> (ids, log_probs [b, *positions, k], log_tail [b, *positions])`
Answers = Callable[[np.ndarray], tuple[Any, Any, Any]]


def write(
  folder: str | os.PathLike,
  manifest: manifest_lib.Manifest,
  answers: Answers,
  *,
  batch_size: int,
  part: tuple[int, int] = (0, 1),
  progress: Callable[[list[int]], Iterable[int]] = iter,
) -> None:
  """Writes the files of a cache that are missing.

  Args:
    folder: made if it is not there; on a file system that all writers share.
    manifest: what will be there. In a folder where a writer has been, the same.
    answers: of the teacher to the examples of these numbers, as
      `losses.tail.compress` gives them. It is called with `batch_size` numbers each
      time, the last of a file repeated, so that it compiles once.
    batch_size: examples at a time.
    part: (i, n): of n processes this is number i, and it writes every n-th file.
    progress: what the numbers of the missing files are drawn through, such as
      `tqdm.tqdm`.

  Raises:
    ValueError: the folder holds a cache of another manifest (each field that differs
      is named), or the answers do not fit the manifest.

  >>> import tempfile
  >>> from jaxopt_compress.distillation import cache
  >>> from jaxopt_compress.distillation.losses import tail
  >>> logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
  >>> made = cache.Manifest(model='m', data='d', vocabulary=3, k=1, examples=2)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write(folder, made, lambda i: tail.compress(logits[i], 1), batch_size=2)
  ...   cache.read(folder, data='d', vocabulary=3)[1]['ids'].tolist()
  [2]
  """
  if batch_size < 1:
    raise ValueError(f'batch_size={batch_size}; at least 1 is expected.')
  mine, of = part
  if not 0 <= mine < of:
    raise ValueError(
      f'part={part}; (i, n) with i from 0 to n - 1 is expected: process i of n.'
    )
  folder = pathlib.Path(folder)
  _begin(folder, manifest)
  todo = []
  for shard in range(mine, manifest.shards, of):
    path = shards.path(folder, shard)
    # Nobody else writes these, so what a killed writer left of them is dead.
    files.remove_partial(folder, path.name)
    if not path.exists():
      todo.append(shard)
  for shard in progress(todo):
    codes = _codes(
      manifest, answers, shards.examples(manifest, shard), batch_size
    )
    shards.write(folder, manifest, shard, codes)


def _begin(folder, manifest):
  """The manifest is there before the first file, and is no other."""
  if (folder / manifest_lib.NAME).exists():
    found = manifest_lib.read(folder)
    manifest_lib.check(folder, found, dataclasses.asdict(manifest))
    return
  folder.mkdir(parents=True, exist_ok=True)
  # The manifest is lost, or this is a folder of something else.
  if others := sorted(folder.glob('shard-*.bin')):
    raise ValueError(
      f'{folder} has files ({others[0].name}) and no {manifest_lib.NAME} that says'
      ' whose they are. Choose another folder, or remove this one.'
    )
  sealed.write(folder / manifest_lib.NAME, dataclasses.asdict(manifest))


def _codes(manifest, answers, examples, batch_size):
  """The codes of a file."""
  parts = []
  for begin in range(examples.start, examples.stop, batch_size):
    indices = np.arange(begin, begin + batch_size)
    here = np.minimum(indices, examples.stop - 1)
    ids, log_probs, log_tail = map(np.asarray, answers(here))
    expected = (batch_size, *manifest.positions)
    if log_tail.shape != expected:
      raise ValueError(
        f'The answers to {batch_size} examples have positions'
        f' {list(log_tail.shape)}, and by the manifest {list(expected)} are expected.'
      )
    _check_numbers(here, log_probs, log_tail)
    count = min(batch_size, examples.stop - begin)
    try:
      codes = manifest.codec.encode(ids, log_probs, log_tail)
    except ValueError as e:
      raise ValueError(
        f'The answers to examples {begin} to {begin + count - 1}: {e}'
      ) from e
    parts.append(codes[:count])
  return np.concatenate(parts)


def _check_numbers(indices, *logarithms):
  """Names the example where a teacher diverged."""
  for i, *said in zip(indices, *logarithms, strict=False):
    if any(np.isnan(x).any() for x in said):
      raise ValueError(
        f'The answer to example {i} is not finite: the teacher says NaN or infinity.'
        ' Look at that example and at what the teacher computes of it, in float32 if'
        ' it is asked in another dtype.'
      )
