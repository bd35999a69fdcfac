"""One real model: ours against the runtimes that it is written for.

ours[float] == the original runtime          first of all
accuracy of each contestant against float    over the same inputs
seconds of each contestant, in turns         wall, and of the processor
"""

from collections.abc import Callable
from collections.abc import Collection
import functools
import os
import pathlib
import re
import tempfile
import time
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

import jaxopt_compress as jc
from launch.bench.kernels import cells
from launch.bench.kernels import turns
from launch.bench.real import mixed

XLA = 'XLA float32'
FLOAT, INT8, INT4 = 'float', 'int8', 'int4'
# One that is nearer to chance than this to float is another network: nobody's time
# is compared with its.
HOLDS = 0.8
COLLAPSED = 'collapsed, not counted'


class File(NamedTuple):
  """What another runtime runs.

  Attributes:
    name: of the contestant.
    runtime: 'onnxruntime' or 'LiteRT'.
    path: of the file.
    kind: FLOAT, INT8 or INT4.
  """

  name: str
  runtime: str
  path: str
  kind: str


class Form(NamedTuple):
  """One of ours.

  Attributes:
    name: of the table.
    scheme: by which weights are rounded.
    kind: INT8 or INT4.
    barred: whether bars are for it; others are printed beside it.
    mixed: whether weights that cost too much so are rounded otherwise: `mixed.rules`.
  """

  name: str
  scheme: Any
  kind: str
  barred: bool = True
  mixed: bool = False


FORMS = (
  Form('int8', jc.W8A8, INT8),
  Form('int8 sym', 'int8, int8 token', INT8, barred=False),
  Form('int4 g128', jc.W4A8, INT4, barred=False),
  Form('int4 by sensitivity', mixed.BASE, INT4, mixed=True),
)


class Model(NamedTuple):
  """A network and what is asked of it.

  Attributes:
    name: of the table.
    apply: `(params, *inputs) -> outputs`, a tuple, of which the first is judged.
    params: its floats.
    inputs: names of the inputs, as rivals know them.
    carry: {input: position among `outputs` of what it is in the next step}; and
      the name of that output, for rivals.
    where: regular expressions of the weights that are rounded.
    cells: {name: inputs} that are timed.
    judged: inputs, each with a leading axis of batches or steps.
    judge: `(outputs, of float) -> {word: number}`, both stacked.
    files: `(name of a cell) -> [File]`, the original first.
    judged_cell: the cell whose files are judged.
    forms: of ours.
    bars: {word: the least of it that an int8 form must have}; None is what the
      best int8 rival has. Of each word 1 is float's, and who is below `HOLDS` has
      collapsed.
    parity: how far from the original runtime float results may be, of the
      largest of them.
    seen: inputs, a batch of other data than what is judged, by which formats are
      chosen; None where no form is.
  """

  name: str
  apply: Callable[..., Any]
  params: Any
  inputs: tuple[str, ...]
  carry: dict[str, tuple[int, str]]
  where: str
  cells: dict[str, tuple[np.ndarray, ...]]
  judged: tuple[np.ndarray, ...]
  judge: Callable[[np.ndarray, np.ndarray], dict[str, float]]
  files: Callable[[str], list[File]]
  judged_cell: str
  forms: tuple[Form, ...] = FORMS
  bars: dict[str, float | None] = {}
  parity: float = 1e-4
  seen: tuple[np.ndarray, ...] | None = None


class Runtimes:
  """The worker of other runtimes, kept from AMX if `path` is 'avx512-vnni'."""

  def __init__(self, python: str, path: str):
    self.path = path
    script = str(pathlib.Path(__file__).parent / 'runtimes.py')
    command = [python, '-W', 'ignore', script]
    self._worker = turns.Worker(command + ['--vnni'] * bool(path))
    self.close = self._worker.close

  def load(self, file: File, inputs: dict[str, np.ndarray]):
    self._worker.ask_json(
      do='load', name=file.name, runtime=file.runtime, path=file.path
    )
    self._with_inputs('feed', file, inputs)

  def results(self, file: File, inputs, carry) -> np.ndarray:
    carry = {name: output for name, (_, output) in carry.items()}
    with tempfile.TemporaryDirectory() as folder:
      target = f'{folder}/y.npy'
      self._with_inputs('results', file, inputs, target=target, carry=carry)
      return np.load(target)

  def contestant(self, file: File, spent: list[float]) -> turns.Contestant:
    def turn(calls):
      wall, processor = self._worker.ask_json(
        do='turn', name=file.name, calls=calls
      )
      spent.append(processor)
      return wall

    return turns.Contestant(turn, self._worker.pid)

  def drop(self, file: File):
    self._worker.ask_json(do='drop', name=file.name)

  def _with_inputs(self, do, file, inputs, **rest):
    with tempfile.TemporaryDirectory() as folder:
      path = f'{folder}/x.npz'
      np.savez(path, **inputs)
      self._worker.ask_json(do=do, name=file.name, path=path, **rest)


class Row(NamedTuple):
  """One contestant in one cell: `seconds` [rounds], processor's median."""

  name: str
  path: str
  kind: str
  rival: bool
  seconds: np.ndarray
  processor: float


def packed(model: Model, form: Form) -> tuple[Any, dict[str, str]]:
  """(parameters for the kernels, {path of what they cannot hold: why})."""
  params = jax.tree.map(np.asarray, model.params)
  first = next(iter(model.cells.values()))
  uses = jc.uses(model.apply)(params, *first)
  # Weights of a branch that is not taken meet nothing.
  idle = [
    (re.escape(path), None)
    for path, found in uses.items()
    if not found and re.fullmatch(model.where, path)
  ]
  rules = [*idle, (model.where, form.scheme), (r'.*', None)]
  if form.mixed:
    rules = mixed.rules(model, rules, uses)
  q = jc.quantize(params, rules, uses)
  skipped = {}
  leaves = jc.pack(q, uses, skipped=skipped.__setitem__)
  return jax.tree.map(jax.numpy.asarray, leaves), skipped


def ours(model: Model, form: Form | None) -> Any:
  """Parameters of a form; plain ones of None."""
  if form is None:
    return jax.tree.map(jax.numpy.asarray, model.params)
  params, skipped = packed(model, form)
  for why in sorted(set(skipped.values())):
    names = [name for name, w in skipped.items() if w == why]
    print(f'    {form.name}, not packed: {len(names)} ({names[0]}): {why}')
  before, after = jc.nbytes(model.params), jc.nbytes(params)
  print(f'    {form.name}: {after:,} bytes of {before:,}', flush=True)
  return params


def results(model: Model, params: Any) -> np.ndarray:
  """The first output for all that is judged, stacked."""
  f, found, outputs = jax.jit(jc.lift(model.apply)), [], None
  for i in range(len(model.judged[0])):
    inputs = [x[i] for x in model.judged]
    if outputs is not None:
      for name, (position, _) in model.carry.items():
        inputs[model.inputs.index(name)] = outputs[position]
    outputs = f(params, *inputs)
    found.append(np.asarray(outputs[0]))
  return np.stack(found)


def accuracy(
  model: Model, forms: dict[str, Any], rivals: list[Runtimes], bars
) -> set[str]:
  """Prints how near to float everybody is; the floats must agree first.

  Args:
    model: what is run.
    forms: {name: parameters}, `XLA` the float ones.
    rivals: workers.
    bars: told of what is claimed.

  Returns:
    The names of those that have collapsed.

  Raises:
    RuntimeError: ours is not what the original runtime computes.
  """
  want = results(model, forms[XLA])
  words, seen = {}, {}
  for name, params in forms.items():
    if name != XLA:
      words[name] = model.judge(results(model, params), want)
  judged = dict(zip(model.inputs, model.judged, strict=True))
  cell = dict(zip(model.inputs, model.cells[model.judged_cell], strict=True))
  for rival in rivals[:1]:
    for i, file in enumerate(model.files(model.judged_cell)):
      rival.load(file, cell)
      found = rival.results(file, judged, model.carry)
      rival.drop(file)
      if i == 0:
        far = float(np.abs(found - want).max() / np.abs(want).max())
        print(f'  float against {file.name}: {far:.1e} of the largest')
        if not far <= model.parity:
          raise RuntimeError(
            f'{model.name} is not what {file.name} computes: {far:.1e} apart'
            f' where {model.parity:.0e} may be. Compare {file.path} node by node.'
          )
      else:
        words[file.name], seen[file.name] = model.judge(found, want), file.kind
  lost = {
    name
    for name, found in words.items()
    if any(found[word] < HOLDS for word in model.bars)
  }
  for name, found in words.items():
    line = '  '.join(f'{word} {x:.5f}' for word, x in found.items())
    line += f'  {COLLAPSED}' * (name in lost)
    print(f'    {name:36s}{line}', flush=True)
  _tell(model, words, seen, bars)
  return lost


def _tell(model, words, seen, bars):
  """Tells the bars how near to float forms are, `seen` {rival: kind}."""
  for word, given in model.bars.items():
    others = [words[name][word] for name, kind in seen.items() if kind == INT8]
    # Of no rival there is no number, and what is compared with none is missed.
    best_int8 = max(others, default=np.nan) if given is None else given
    for form in model.forms:
      if form.barred and form.name in words:
        what = f'{model.name}: {form.name}, {word}'
        least = best_int8 if form.kind == INT8 else HOLDS
        bars.add(what, words[form.name][word], least)


def _here(f, spent, *args):
  """A jitted function in this process."""

  def turn(calls):
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(calls):
      jax.block_until_ready(f(*args))
    spent.append((time.process_time() - processor) / calls)
    return (time.perf_counter() - wall) / calls

  return turns.Contestant(turn, os.getpid())


def timed(
  model: Model,
  cell: str,
  forms: dict[str, Any],
  paths: list[str],
  rivals: list[Runtimes],
  *,
  rounds: int,
  budget: float,
) -> list[Row]:
  """Everybody in one cell."""
  inputs = [jax.numpy.asarray(x) for x in model.cells[cell]]
  kinds = {XLA: FLOAT} | {form.name: form.kind for form in model.forms}
  f, players, facts = jc.lift(model.apply), {}, {}
  for name, params in forms.items():
    for path in paths if name != XLA else [cells.AUTO]:
      key, spent = (name, path), []
      # Weights are of the program, as they are of the files that others run.
      run = jax.jit(functools.partial(f, cells.on_path(path, params)))
      players[key] = _here(run, spent, *inputs)
      facts[key] = kinds[name], False, spent
  feed = dict(zip(model.inputs, model.cells[cell], strict=True))
  for rival in rivals:
    for file in model.files(cell):
      key, spent = (file.name, rival.path), []
      rival.load(file, feed)
      players[key] = rival.contestant(file, spent)
      facts[key] = file.kind, True, spent
  took = turns.interleave(players, rounds, budget)
  for rival in rivals:
    for file in model.files(cell):
      rival.drop(file)
  return [
    Row(*key, kind, is_rival, took[key], float(np.median(spent)))
    for key, (kind, is_rival, spent) in facts.items()
  ]


def best(rows: list[Row], path: str, kinds: tuple[str, ...]) -> Row | None:
  """The fastest rival on no other instructions."""
  able = [r for r in rows if r.rival and r.path == path and r.kind in kinds]
  return min(able, key=lambda r: np.median(r.seconds), default=None)


def show(
  model: Model,
  cell: str,
  rows: list[Row],
  bars,
  collapsed: Collection[str] = (),
):
  """Prints the table of a cell, and tells the bars.

  Args:
    model: what was timed.
    cell: where.
    rows: of everybody.
    bars: told of what is claimed.
    collapsed: names of those that are printed and compared with nobody.
  """
  plain = next(r for r in rows if r.name == XLA)
  counted = [r for r in rows if r.name not in collapsed]
  barred = {form.name for form in model.forms if form.barred}
  print(
    f'\n  {model.name} {cell}\n    {"":36s}{"path":12s}{"ms":>9s}'
    f' {"quartiles":>19s}{"cpu ms":>9s}{"x XLA":>8s}  against'
  )
  for row in rows:
    words = [COLLAPSED] if row.name in collapsed else []
    for kind in (INT8, FLOAT) if not row.rival else ():
      rival = best(counted, row.path, (kind,))
      ratio, other = np.nan, kind
      if rival is not None and row in counted:
        ratio, other = np.median(rival.seconds / row.seconds), rival.name
        words.append(f'{ratio:.2f}x {other}')
      if row.kind == INT8 and row.name in barred:
        what = f'{model.name} {cell} {row.path or "auto"}: {row.name}'
        if rival is not None or kind == INT8:
          bars.add(f'{what} over {other}', ratio, 1.0)
    low, middle, high = 1e3 * np.percentile(row.seconds, [25, 50, 75])
    times = np.median(plain.seconds / row.seconds)
    print(
      f'    {row.name:36s}{row.path:12s}{middle:9.3f} [{low:8.3f},{high:8.3f}]'
      f'{1e3 * row.processor:9.3f}{times:8.2f}  {", ".join(words)}',
      flush=True,
    )
