"""What packed weights cost: against XLA, other libraries, and the machine.

    python -m launch.bench.kernels --rivals=/path/to/python

Prints one table for each number of rows m and each weight [k, n]; with --mlp also that
of an MLP, with --end_to_end those of whole models, with --zeros where zeros are worth
leaving out; then which bars are met. Whatever is compared was measured in the same run, in turns on the same cores.

- `ms` is the time of a call from Python: the median over turns, and the quartiles.
- `inside`, of a few rows only, is the time of one product in a program of many: a call
  may take longer than its product.
- `x float32` is the speed over XLA's float32, both inside a program: the median of the
  ratios within a turn.
- `rate` counts 2 m k n operations, or the bytes of the weight, whichever is closer to
  its ceiling, and `share` is its share of that ceiling. Ceilings are what two threads
  reach that read memory (a buffer of --stream_mib MiB; one that fits a second-level
  cache is read faster), or that multiply bytes with AVX512-VNNI or, on the automatic
  path, with AMX.
- `error` is |y - exact| / |exact|; WRONG where an entry leaves its bound.
- `best rival` is the fastest that computes the same, and how many times faster ours is:
  called from Python, and, in brackets, inside a program. Rivals live in the interpreter
  of --rivals, which has torch, onnxruntime, ai-edge-litert or qwix. Those that meet the
  path avx512-vnni run in processes that may not use AMX.

Leave the cores alone meanwhile.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl import app
from absl import flags
import jax
import numpy as np

from jaxopt_compress.kernels.cpu import native
from launch.bench.kernels import bars as bars_lib
from launch.bench.kernels import cells
from launch.bench.kernels import mlp
from launch.bench.kernels import models
from launch.bench.kernels import turns
from launch.bench.kernels import zeros

_ROWS = flags.DEFINE_list('rows', ['1', '8', '64', '512'], 'Numbers of rows m.')
_SIZES = flags.DEFINE_list(
  'sizes', ['1024x1024', '4096x4096', '4096x11008'], 'Weights, as KxN.'
)
_RIVALS = flags.DEFINE_string(
  'rivals', '', 'A python that has other libraries.'
)
_LIBRARIES = flags.DEFINE_list(
  'libraries',
  ['torch', 'onnxruntime', 'litert', 'qwix'],
  'Which of them; torchao as well, which compiles for minutes.',
)
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Turns of each.')
_TURN_MS = flags.DEFINE_float('turn_ms', 20.0, 'The least time of a turn.')
_CORES = flags.DEFINE_list('cores', [], 'Which to use; the first two if empty.')
_STREAM_MIB = flags.DEFINE_integer(
  'stream_mib', 64, 'The buffer that the ceiling of reading is measured with.'
)
_MLP = flags.DEFINE_bool('mlp', False, 'An MLP 768-3072-768 as well.')
_ZEROS = flags.DEFINE_bool(
  'zeros',
  False,
  'Weights without their zeros against the same with them as well.',
)
_END_TO_END = flags.DEFINE_bool('end_to_end', False, 'Whole models as well.')
_CONTEXT = flags.DEFINE_integer(
  'context', 128, 'Tokens that the cache of the decoder holds; it is half full.'
)
_TINY = flags.DEFINE_bool('tiny', False, 'Whole models, as small as possible.')


def _compile_ceilings(folder) -> turns.Worker | None:
  """The program that measures ceilings, or None without a compiler."""
  source = pathlib.Path(__file__).parent / 'ceilings.cc'
  compiler, program = (
    shutil.which('g++') or shutil.which('c++'),
    f'{folder}/top',
  )
  if compiler is None:
    print('No C++ compiler: no ceilings.')
    return None
  how = ['-O3', '-march=native', '-std=c++17', '-pthread', '-o', program]
  subprocess.run([compiler, str(source), *how], check=True)
  return turns.Worker([program])


def _ceilings(worker) -> dict[str, turns.Contestant]:
  """{what: contestant whose turns give GB/s or GOP/s}; of what there is."""
  if worker is None:
    return {}
  read = f'read {_STREAM_MIB.value}'
  asked = dict(zip(turns.RATES, (read, 'vnni', 'amx'), strict=True))
  return {
    name: turns.Contestant(
      lambda _, line=line: float(worker.ask(line)), worker.pid
    )
    for name, line in asked.items()
    if float(worker.ask(line)) > 0
  }


def _about_the_machine(worker):
  name = 'cores {}, jax {}, kernels {}'.format(
    ','.join(map(str, sorted(os.sched_getaffinity(0)))),
    jax.__version__,
    ' '.join(native.paths()) or 'not built',
  )
  load = os.getloadavg()[0]
  busy = ': OTHERS ARE BUSY, these numbers mean little' if load > 0.5 else ''
  print(f'{name}; load {load:.1f} before this run{busy}')
  if worker is not None:
    sizes = (1, 4, 16, 64, 256)
    rates = [max(float(worker.ask(f'read {s}')) for _ in '12') for s in sizes]
    curve = ', '.join(f'{s} MiB {r:.0f}' for s, r in zip(sizes, rates))
    print(f'two threads read, GB/s: {curve}')


def _start_rivals(paths) -> list[turns.Rival]:
  if not _RIVALS.value:
    print('No --rivals: XLA alone to compare with.')
    return []
  # XLA has no products with AMX of what qwix asks it for.
  return [
    turns.Rival(_RIVALS.value, library, path)
    for path in paths
    for library in _LIBRARIES.value
    if library != 'qwix' or path == paths[0]
  ]


def _taught(rivals, folder) -> list[turns.Rival]:
  """Those that can do with the weights in a folder."""
  able = []
  for rival in rivals:
    try:
      rival.weights(folder)
      able.append(rival)
    except RuntimeError as e:
      print(f'{rival.library} {rival.path} does not take part: {e}', flush=True)
  return able


# ------------------------------------------------------------------- the table


def _rate(cell, row) -> tuple[str, float]:
  """(what it does a second, share of the ceiling)."""
  top = 'amx' if row.path == cells.AUTO and cell.m > 6 else 'vnni'
  top = top if top in cell.ceilings else 'vnni'
  shares = {}
  if row.kind != 'float32' and top in cell.ceilings:
    shares[f'{cell.gops(row):7.0f} GOP/s'] = cell.gops(row) / cell.ceilings[top]
  if row.nbytes and 'read' in cell.ceilings:
    shares[f'{cell.gbytes(row):7.1f} GB/s '] = cell.read_share(row)
  if not shares:
    return f'{cell.gops(row):7.0f} GOP/s', float('nan')
  best = max(shares, key=shares.get)
  return best, shares[best]


def _show(cell):
  tops = ', '.join(
    f'{name} {rate:.0f} {"GB/s" if name == "read" else "GOP/s"}'
    for name, rate in cell.ceilings.items()
  )
  print(f'\nm={cell.m}, {cell.k}x{cell.n}; ceilings: {tops or "not measured"}')
  print(
    f'  {"":29s}{"path":12s}{"ms":>9s} {"quartiles":>19s}{"inside":>9s}'
    f'{"x float32":>11s}{"rate":>15s}{"share":>8s}{"error":>9s}  best rival'
  )
  plain = cell.find(cells.FLOAT)
  for row in cell.rows:
    low, middle, high = 1e3 * np.percentile(row.seconds, [25, 50, 75])
    times = np.median(plain.looped / row.looped)
    rate, share = _rate(cell, row)
    error = f'{row.error:.0e}' if row.right else 'WRONG'
    print(
      f'  {row.name:29s}{row.path:12s}{middle:9.4f} [{low:8.4f},{high:8.4f}]'
      f'{1e3 * np.median(row.looped):9.4f}{times:11.2f}{rate:>15s}'
      f'{share:8.0%}{error:>9s}  {_against(cell, row)}',
      flush=True,
    )


def _against(cell, row) -> str:
  rival = None if row.rival or row.kind == 'float32' else cell.best_rival(row)
  if rival is None:
    return ''
  times = np.median(rival.seconds / row.seconds)
  inside = np.median(rival.seconds / row.looped)
  return f'{times:.2f}x {rival.name} (inside {inside:.2f}x)'


# -------------------------------------------------------------------- the bars


def _over(a, b) -> float:
  return np.median(a.looped / b.looped)


def _judge(cell, path, bars):
  """The bars of one cell on one path."""
  plain = cell.find(cells.FLOAT)
  where = f'm={cell.m} {cell.k}x{cell.n} {path or "auto"}: '
  found = {name: cell.find(name, path) for name in (*cells.OURS, cells.CODES)}
  found = {name: row for name, row in found.items() if row is not None}
  int8, int4 = found['int8'], found['int4 g128 W4A8']
  sparse = [found[s] for s in ('2:4 int8', '50% int8') if s in found]
  if cell.m == 1:
    bars.add(where + 'int8 over float32', _over(plain, int8), 3.5)
    bars.add(where + 'int4 over float32', _over(plain, int4), 6.0)
    for row in sparse:
      bars.add(where + f'{row.name} over int8', _over(int8, row), 1.4)
    for row in (int8, int4, *sparse):
      if 'read' in cell.ceilings:
        share = cell.read_share(row)
        bars.add(where + f'{row.name}, share of reading', share, 0.75)
  if cell.m == 512:
    bars.add(where + 'int8 over float32', _over(plain, int8), 3.0)
    bars.add(where + 'int4 over int8', _over(int8, int4), 0.85)
    if 'vnni' in cell.ceilings:
      share = cell.gops(int8) / cell.ceilings['vnni']
      bars.add(where + 'int8, share of VNNI', share, 0.65)
  for row in found.values():
    rival = cell.best_rival(row)
    if rival is not None:
      times = np.median(rival.seconds / row.seconds)
      inside = np.median(rival.seconds / row.looped)
      note = '' if row.looped is row.seconds else f'inside {inside:.2f}'
      bars.add(where + f'{row.name} over {rival.name}', times, 1.0, note)


def _products(rivals, ceilings, paths, bars):
  for size in _SIZES.value:
    k, n = map(int, size.split('x'))
    with tempfile.TemporaryDirectory() as folder:
      weights = cells.Weights(k, n, folder)
      able = _taught(rivals, folder)
      for m in map(int, _ROWS.value):
        cell = cells.measure(
          weights,
          m,
          paths,
          able,
          ceilings,
          rounds=_ROUNDS.value,
          budget=_TURN_MS.value / 1e3,
        )
        _show(cell)
        for path in paths:
          _judge(cell, path, bars)


def main(_):
  here = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, [int(c) for c in _CORES.value] or here[:2])
  if not native.available():
    return 'The CPU kernels were not built, so there is nothing to measure.'
  paths = [cells.AUTO]
  # Where it is the best there is, the automatic path is this one.
  if cells.VNNI in native.paths() and native.paths()[0] == 'amx':
    paths.append(cells.VNNI)
  bars, how = (
    bars_lib.Bars(),
    dict(rounds=_ROUNDS.value, budget=_TURN_MS.value / 1e3),
  )
  with tempfile.TemporaryDirectory() as folder:
    worker = _compile_ceilings(folder)
    _about_the_machine(worker)
    rivals = _start_rivals(paths)
    _products(rivals, _ceilings(worker), paths, bars)
    if _MLP.value:
      mlp.run(rivals, _taught, paths, bars, **how)
    for rival in rivals:
      rival.close()
    if worker is not None:
      worker.close()
  if _ZEROS.value:
    zeros.run([tuple(map(int, s.split('x'))) for s in _SIZES.value], **how)
  if _END_TO_END.value:
    sizes = dict(tiny=_TINY.value, context=_CONTEXT.value)
    models.run(paths, bars, **sizes, **how)
  bars.show()


if __name__ == '__main__':
  sys.exit(app.run(main))
