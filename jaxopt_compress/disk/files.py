"""Files that are replaced as a whole, or not at all."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import tempfile
from typing import BinaryIO

_PARTIAL = '.partial'


def replace(path: str | os.PathLike, content: str | bytes) -> None:
  """Puts `content` at `path`, as `replacing` does."""
  with replacing(path) as f:
    f.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """A file to write to, put at `path` in one step once all of it is on disk.

  A process that dies in between may leave a file `.<name>.*.partial` beside `path`,
  which stays as it was. Of a link, what it points to is replaced.
  """
  path = pathlib.Path(path).resolve()
  handle, temporary = _begin(path)
  try:
    with os.fdopen(handle, 'wb') as f:
      yield f
      # On disk before the rename, which may get there first.
      f.flush()
      os.fsync(f.fileno())
      # mkstemp makes files that only their owner may read.
      os.chmod(temporary, 0o644)
      os.replace(temporary, path)  # while it is locked: see `remove_partial`
  except BaseException as e:
    os.unlink(temporary)
    if isinstance(e, OSError):
      e.add_note(f'Nothing was written: {path} is as it was.')
    raise


def _begin(path) -> tuple[int, str]:
  """(handle, name) of a new file beside `path`, locked until it is closed."""
  while True:
    # A name of its own, so that two writers do not mix; in the same folder, as only
    # within a file system a rename is one step.
    handle, temporary = tempfile.mkstemp(
      prefix=f'.{path.name}.', suffix=_PARTIAL, dir=path.parent
    )
    with contextlib.suppress(OSError):  # a file system without locks
      fcntl.flock(handle, fcntl.LOCK_EX)
    if os.fstat(handle).st_nlink:
      return handle, temporary
    os.close(handle)  # `remove_partial` came before the lock


def remove_partial(folder: str | os.PathLike, name: str = '*') -> None:
  """Removes what `replacing` left of a file, or of all, that nobody writes now.

  A process holds a lock on what it writes, which ends with it. Where there are no locks,
  or no leave to ask for one, files stay.
  """
  for path in pathlib.Path(folder).glob(f'.{name}.*{_PARTIAL}'):
    with contextlib.suppress(OSError), open(path, 'r+b') as f:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
      path.unlink()
