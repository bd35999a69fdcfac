"""Files for other runtimes, kept in a folder from run to run."""

from collections.abc import Callable
from collections.abc import Sequence
import json
import os
import pathlib
import re
import subprocess

import numpy as np

from launch.bench.real import measure

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


def pattern(names: Sequence[str]) -> str:
  """A regular expression of exactly these."""
  return '|'.join(map(re.escape, names))


def onnx_files(
  make: Maker,
  source: str,
  name: str,
  calibration: dict[str, np.ndarray],
  sizes: dict[str, int] | None = None,
) -> list[measure.File]:
  """An ONNX file as it is, and rounded by onnxruntime's two ways.

  Args:
    make: of files.
    source: the file.
    name: what files made of it begin with.
    calibration: inputs that ranges are taken from, each with an axis of batches.
    sizes: {name of a size of inputs: what it is in those that are made}.
  """
  at = 'onnxruntime'
  prepared = make(
    'onnx_prepared', f'{name}.onnx', source=source, sizes=sizes or {}
  )
  seen = pathlib.Path(prepared).parent / f'{name}_calibration.npz'
  if not seen.exists():
    np.savez(seen, **calibration)
  dynamic = make('onnx_dynamic', f'{name}_dynamic.onnx', source=prepared)
  found = [
    measure.File(f'{at} float', at, source, measure.FLOAT),
    measure.File(f'{at} int8 dynamic', at, dynamic, measure.INT8),
  ]
  for word, every in (('static', False), ('static, all', True)):
    file = f'{name}_{"all" if every else "static"}.onnx'
    how = dict(source=prepared, calibration=str(seen), every=every)
    path = make('onnx_static', file, **how)
    found.append(measure.File(f'{at} int8 {word}', at, path, measure.INT8))
  return found
