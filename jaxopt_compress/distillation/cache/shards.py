"""One file of a cache: codes, and a digest of them and of whose they are.

    file = codes uint8 [examples, *positions, bytes], then 32 bytes of sha256

The digest is of the manifest's, the number of the file and the codes. So a file that
was changed, cut off, renamed, or made for another cache is none of this one.
"""

import hashlib
import os
import pathlib

import numpy as np

from jaxopt_compress.disk import files
from jaxopt_compress.distillation.cache import manifest as manifest_lib

_DIGEST = 32


class CorruptShard(ValueError):
  """A file is not what was written."""


def path(folder: str | os.PathLike, shard: int) -> pathlib.Path:
  """Where the file of that number is."""
  return pathlib.Path(folder) / f'shard-{shard:06d}.bin'


def examples(manifest: manifest_lib.Manifest, shard: int) -> range:
  """The examples of a file; the last may have fewer."""
  begin = shard * manifest.shard
  return range(begin, min(begin + manifest.shard, manifest.examples))


def write(
  folder: str | os.PathLike,
  manifest: manifest_lib.Manifest,
  shard: int,
  codes: np.ndarray,
) -> None:
  """Puts a file in its place, in one step once all of it is on disk.

  Args:
    codes: [examples, *positions, bytes] uint8.
  """
  assert codes.shape == _shape(manifest, shard), codes.shape
  content = codes.tobytes()
  digest = _digest(manifest, shard, content)
  files.replace(path(folder, shard), content + digest)


def read(
  folder: str | os.PathLike, manifest: manifest_lib.Manifest, shard: int
) -> np.ndarray:
  """The codes of a file, mapped into memory once all of it has been checked.

  Raises:
    CorruptShard: with the name of the file, and what to do.
  """
  name, shape = path(folder, shard), _shape(manifest, shard)
  try:
    # Mapped, not read: a batch takes a few positions of each file.
    content = np.memmap(name, np.uint8, 'r')
  except (OSError, ValueError) as e:
    raise _corrupt(name, f'cannot be read ({e})') from e
  size = int(np.prod(shape)) + _DIGEST
  if content.size != size:
    raise _corrupt(name, f'has {content.size:,} bytes, not {size:,}')
  codes, digest = content[:-_DIGEST], content[-_DIGEST:].tobytes()
  if _digest(manifest, shard, codes) != digest:
    raise _corrupt(name, 'does not have the sha256 that it states')
  return codes.reshape(shape)


def _shape(manifest, shard):
  n = len(examples(manifest, shard))
  return (n, *manifest.positions, manifest.codec.nbytes)


def _digest(manifest, shard, codes):
  digest = hashlib.sha256(f'{manifest.digest} {shard}\n'.encode())
  digest.update(codes)
  return digest.digest()


def _corrupt(name, problem):
  return CorruptShard(
    f'{name} {problem}: it is damaged, or of another cache. Delete this file and run'
    ' the writer again, which makes it alone.'
  )
