"""The workdir: of one run at a time.

A run holds a lock of the operating system (flock) on the file `lock`, so one that
dies lets go of it, however it dies. What the file says is for the message to others
and locks nothing. Runs on several hosts are kept apart where the file system carries
these locks from host to host: NFS does (Linux 2.6.12 and later), Lustre does if it is
mounted with `flock`. One that has no locks gets a warning, and the run goes on.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
import tempfile

from absl import logging
import jax

from jaxopt_compress.disk import files
from jaxopt_compress.train import processes

_FOLDERS = ('checkpoints', 'stages', 'caches', 'export', 'plots')
_REPORTS = ('report.html', 'report.md', 'report.json')
_FILES = ('lock', 'config.json', 'code.json', 'metrics.jsonl', *_REPORTS)


def absolute(directory: str | os.PathLike) -> pathlib.Path:
  """The path of a workdir; an empty name would be the current folder."""
  if not os.fspath(directory).strip():
    raise ValueError('The name of the workdir is empty. Set it with --workdir.')
  return pathlib.Path(directory).absolute()


def check_can_be_made(work: pathlib.Path) -> None:
  """Raises a ValueError where a workdir is not there and could not be made."""
  above = next(p for p in work.parents if p.exists())
  try:
    # Tried, not asked for: root has every permission, also where nothing can be made.
    with tempfile.TemporaryFile(dir=above):
      pass
  except OSError as e:
    raise ValueError(
      f'The workdir {work} cannot be made in {above}, which is no folder to write'
      ' in. Choose another with --workdir.'
    ) from e


@contextlib.contextmanager
def opened(work: pathlib.Path, stages: Sequence[str] = ()) -> Iterator[None]:
  """Makes and checks a workdir, and keeps other runs out of it.

  Args:
    work: the directory.
    stages: the names of those that will be run in it.

  Raises:
    ValueError: it cannot be used, or another run uses it; in every process.
  """
  with contextlib.ExitStack() as held:
    problem = ''
    try:
      _check(work, stages)
      # Process 0 writes for all.
      if jax.process_index() == 0:
        held.enter_context(_locked(work / 'lock'))
        for folder in (work, work / 'plots'):
          files.remove_partial(folder)
    except ValueError as e:
      problem = str(e)
    except OSError as e:
      problem = (
        f'The workdir {work} cannot be read and written ({e.strerror}). Choose'
        ' another with --workdir.'
      )
    processes.fail_together(problem)
    yield


def _check(work, stages):
  work.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile(dir=work):
    os.listdir(work)
  folders = list(_FOLDERS)
  for s in stages:
    folders += f'checkpoints/{s}', f'stages/{s}', f'stages/{s}.partial'
  for name in (*folders, *_FILES):
    path, folder = work / name, name in folders
    # A link to nothing is in the way of a folder, and a file is written through it.
    there = os.path.lexists(path) if folder else path.exists()
    if there and path.is_dir() != folder:
      found, expected = ('file', 'folder') if folder else ('folder', 'file')
      if path.is_symlink():
        found = f'link to {path.readlink()}'
      raise ValueError(
        f'{path} is a {found}, and a {expected} is expected. Move it away, or'
        ' choose another workdir.'
      )


@contextlib.contextmanager
def _locked(path):
  """Holds the lock of a file, which says who does."""
  with open(path, 'a+') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      f.seek(0)
      raise ValueError(
        f'The workdir {path.parent} is in use by {f.read() or "another run"}.'
        ' Wait for it, stop it, or choose another workdir.'
      ) from e
    except OSError as e:
      logging.warning(
        '%s cannot be locked (%s). Make sure that no other run uses %s.',
        *(path, e.strerror, path.parent),
      )
    since = datetime.datetime.now(datetime.UTC)
    f.truncate(0)
    f.write(
      f'process {os.getpid()} on {socket.gethostname()}, since'
      f' {since:%Y-%m-%d %H:%M:%S} UTC'
    )
    f.flush()
    yield
