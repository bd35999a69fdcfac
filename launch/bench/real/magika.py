"""Magika: which of 214 kinds a file is, by its first and last 1,024 bytes.

Files are those of the Python that runs this: sources, compiled modules, tables, pages.
"""

import pathlib
import sysconfig

import numpy as np

from launch.bench.real import files
from launch.bench.real import measure
from launch.bench.real import onnx_program

PACKAGE = 'magika'
_END, _NOTHING, _JUDGED, _EACH = 1024, 256, 64, 8
_CELLS = (1, 16)


def codes(content: bytes) -> np.ndarray:
  """[2048] of both ends, without the white space around; 256 is no byte."""
  first = content[: 4 * _END].lstrip()[:_END]
  last = content[-4 * _END :].rstrip()[-_END:]
  found = np.full(2 * _END, _NOTHING, np.int32)
  found[: len(first)] = np.frombuffer(first, np.uint8)
  found[2 * _END - len(last) :] = np.frombuffer(last, np.uint8)
  return found


def contents(count: int) -> np.ndarray:
  """[count, 2048] of files of many kinds, a few of each."""
  roots = [sysconfig.get_path('stdlib'), sysconfig.get_path('purelib')]
  kinds = {}
  for root in roots:
    for path in sorted(pathlib.Path(root).rglob('*.*')):
      few = kinds.setdefault(path.suffix, [])
      if len(few) < _EACH and path.is_file() and path.stat().st_size > 64:
        few.append(path)
  chosen = [
    p for i in range(_EACH) for few in kinds.values() for p in few[i : i + 1]
  ]
  return np.stack([codes(p.read_bytes()) for p in chosen[:count]])


def judge(found: np.ndarray, want: np.ndarray) -> dict[str, float]:
  """Of probabilities [..., kinds]: whether the first is the same."""
  same = found.argmax(-1) == want.argmax(-1)
  return {
    'argmax': float(same.mean()),
    'mean error': float(np.abs(found - want).max(-1).mean()),
  }


def load(folder: str, make: files.Maker) -> measure.Model:
  """The model of the package in `folder`, and files for rivals."""
  [source] = pathlib.Path(folder).glob('models/standard*/model.onnx')
  run, params, weights = onnx_program.load(
    make('onnx_dump', 'magika.npz', source=str(source))
  )
  x = contents(_JUDGED)
  judged = x.reshape(_JUDGED // 16, 16, -1)
  return measure.Model(
    name='Magika',
    apply=run,
    params=params,
    inputs=('bytes',),
    carry={},
    where=files.pattern(weights),
    cells={f'{n} files': (x[:n],) for n in _CELLS},
    judged=(judged,),
    judge=judge,
    files=lambda cell: files.onnx_files(
      make, str(source), 'magika', {'bytes': judged}
    ),
    judged_cell=f'{_CELLS[0]} files',
    bars={'argmax': None},
    # onnxruntime is 4e-4 from a float64 run of the graph, ours 8e-6.
    parity=1e-3,
  )
