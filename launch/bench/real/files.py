"""Files for other runtimes, kept in a folder from run to run."""

from collections.abc import Callable
import json
import os
import pathlib
import subprocess

Maker = Callable[..., str]


def _ask(python: str, what: str, **how):
  """What a function of `makers.py` returns in that interpreter.

  Raises:
    RuntimeError: it failed.
  """
  script = str(pathlib.Path(__file__).parent / 'makers.py')
  done = subprocess.run(
    [python, '-W', 'ignore', script, what, json.dumps(how)],
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f'{what} of {how}: {done.stderr[-2000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def package(python: str, name: str) -> str:
  """The folder of a package there; '' if it is not installed."""
  return _ask(python, 'find', package=name)


def maker(python: str, folder: str) -> Maker:
  """`make(what, name, **how) -> path` of a file in `folder`, made if missing.

  A file of a name is made once: clear the folder when how it is made changes.
  """
  os.makedirs(folder, exist_ok=True)

  def make(what, name, **how):
    path = pathlib.Path(folder) / name
    if not path.exists():
      # Whole or not at all: a run may be stopped.
      part = path.with_name(f'part_{name}')
      _ask(python, what, path=str(part), **how)
      part.rename(path)
    return str(path)

  return make
