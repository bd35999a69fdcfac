"""Reading a cache: answers by the number of the example, for grain or for batches."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

import numpy as np

from jaxopt_compress.distillation.cache import manifest as manifest_lib
from jaxopt_compress.distillation.cache import shards

Answer = dict[str, np.ndarray]


class Cache:
  """The answers of a teacher, by the number of the example; see `read`.

  A source with random access, as grain's loaders take: `len`, `[i]`, and it can be
  sent to other processes. A file is checked when its first answer is asked for.

  Attributes:
    folder: where it is.
    manifest: what it says of itself.
  """

  def __init__(self, folder: pathlib.Path, manifest: manifest_lib.Manifest):
    self.folder, self.manifest = folder, manifest
    self._codes = {}  # by the number of the file

  def __getstate__(self):
    return {'folder': self.folder, 'manifest': self.manifest, '_codes': {}}

  def __len__(self) -> int:
    return self.manifest.examples

  def __getitem__(self, index: int) -> Answer:
    """The answer to one example; see `take`.

    Returns:
      'ids' [*positions, k] int32, 'log_probs' [*positions, k] float32 and 'log_tail'
      [*positions] float32.
    """
    return {name: x[0] for name, x in self.take([index]).items()}

  def take(self, indices: Any) -> Answer:
    """The answers to a batch of examples, as of `[i]` with an axis in front.

    Args:
      indices: [b] int.

    Raises:
      ValueError: they are no list of numbers; IndexError: there is no such example.
      CorruptShard: a file is not what was written; its name, and what to do.
    """
    indices = np.asarray(indices)
    # A mask would be read as the numbers 0 and 1.
    if indices.ndim != 1 or indices.dtype.kind not in 'iu':
      raise ValueError(
        f'indices are {indices.dtype} {list(indices.shape)}; the numbers of'
        ' examples, int [b], are expected. Of a mask: np.flatnonzero(mask).'
      )
    wrong = indices[(indices < 0) | (indices >= len(self))]
    if wrong.size:
      raise IndexError(
        f'There is no example {wrong[0]}: the cache in {self.folder} has'
        f' {len(self)}, counted from 0.'
      )
    manifest = self.manifest
    codes = np.empty(
      (len(indices), *manifest.positions, manifest.codec.nbytes), np.uint8
    )
    files, places = np.divmod(indices, manifest.shard)
    for shard in np.unique(files):
      here = files == shard
      codes[here] = self._file(int(shard))[places[here]]
    names = 'ids', 'log_probs', 'log_tail'
    return dict(zip(names, manifest.codec.decode(codes), strict=True))

  def check(self) -> None:
    """Reads every file once; raises CorruptShard for the first that is damaged."""
    for shard in range(self.manifest.shards):
      self._file(shard)

  def _file(self, shard):
    if shard not in self._codes:
      self._codes[shard] = shards.read(self.folder, self.manifest, shard)
    return self._codes[shard]


def read(
  folder: str | os.PathLike, *, data: str, vocabulary: int, **expected: Any
) -> Cache:
  """Opens a cache that `write` has finished.

  Args:
    folder: where it is.
    data: of the inputs that its answers are used with; see `Manifest`.
    vocabulary: of the student.
    **expected: of other fields of the manifest, such as `model=fingerprint(params)` or
      `tokenizer=vocabulary.fingerprint()`.

  Raises:
    ValueError: it is of something else (each field and both values are named), or
      files are missing.
  """
  folder = pathlib.Path(folder)
  manifest = manifest_lib.read(folder)
  expected = {'data': data, 'vocabulary': vocabulary, **expected}
  manifest_lib.check(folder, manifest, expected)
  missing = [
    shard
    for shard in range(manifest.shards)
    if not shards.path(folder, shard).exists()
  ]
  if missing:
    raise ValueError(
      f'{len(missing)} of the {manifest.shards} files of the cache in {folder} are'
      f' missing, first {shards.path(folder, missing[0]).name}. Run the writer again:'
      ' it makes those.'
    )
  return Cache(folder, manifest)


class Joined:
  """Examples and the answers to them, by number: a source for grain.

  Element i is `{**examples[i], **answers[i]}`.

  Args:
    examples: a source, `len` and `[i]`, of mappings by name.
    answers: to these examples.
  """

  def __init__(self, examples: Any, answers: Cache):
    if len(examples) != len(answers):
      raise ValueError(
        f'There are {len(examples)} examples, and answers to {len(answers)}: number i'
        ' of one would not be number i of the other. Cache the answers to these.'
      )
    self._examples, self._answers = examples, answers

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    example, answer = self._examples[index], self._answers[index]
    if clash := sorted(example.keys() & answer.keys()):
      raise ValueError(
        f'Examples have {clash}, which answers of a teacher are called. Rename them.'
      )
    return {**example, **answer}
