"""Files that are replaced as a whole, or not at all."""

from collections.abc import Iterator
import contextlib
import os
import tempfile


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[str]:
  """Gives a temporary file to write, which takes the place of `path` at the end.

  If the block raises, the temporary file is removed and `path` stays as it was.

  Yields:
    The path of an empty file in the same folder, so that the rename is atomic.
  """
  folder = os.path.dirname(os.path.abspath(path))
  handle, temporary = tempfile.mkstemp(dir=folder)
  os.close(handle)
  try:
    yield temporary
    # mkstemp makes files that only their owner may read.
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
