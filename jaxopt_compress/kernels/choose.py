"""A measured choice of form and instructions for each weight, kept in a file.

    {device kind: {weight: {'form': 'kernel', 'paths': {'1': 'avx512-vnni', ...},
                            'milliseconds': {'1': {'xla': 0.2, ...}, ...}}}}

Weights of one format, one size and one way to round the other operand are one entry.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.kernels import pack as pack_lib
from jaxopt_compress.kernels import packed
from jaxopt_compress.kernels import tiled
from jaxopt_compress.kernels.cpu import native

# Turns that each takes.
_ROUNDS = 5


def tune(
  params: Any,
  uses: dict | None = None,
  *,
  rows: Sequence[int] = (1, 16, 128),
  file: str | os.PathLike | None = None,
  seconds: float = 0.05,
) -> Any:
  """Packs each weight in the form that is fastest on this machine, as measured.

  For each kind of weight and each number of rows, times its product in XLA and, in
  turns, on every instruction path of the kernels for CPUs, or in Pallas on GPUs and
  TPUs. A weight whose products are fastest in XLA stays as it is.

  Args:
    params: a tree with `QArray` and `QDotArray` leaves.
    uses: as for `pack`.
    rows: how many rows the other operand may have.
    file: JSON with the measured choices by device kind: read before, so that
      nothing is measured twice, and written after. None for no file.
    seconds: for one product.

  Returns:
    The tree, with `PackedArray` leaves that know their paths, or `TiledArray` ones.

  Raises:
    ValueError: rows that are not positive, or a file that is not of this kind.
  """
  if not rows or min(rows) < 1:
    raise ValueError(f'rows={rows}; give one or more positive numbers.')
  rows = tuple(sorted(set(rows)))
  known = _read(file)
  here = known.setdefault(device_kind(), {})
  target = jax.default_backend()

  def one(path, leaf):
    if pack_lib.packable(path, leaf, uses, target):
      return leaf
    made = pack_lib.pack_leaf(path, leaf, uses)
    if made.feature_groups > 1:
      return made  # there is no product to measure
    made = made if target == 'cpu' else tiled.tile(made)
    entry = here.setdefault(kind(made), {})
    if not set(map(str, rows)) <= set(entry.get('paths', {})):
      entry.update(_measured(made, rows, seconds))
    if entry['form'] != 'kernel':
      return leaf
    if target != 'cpu':
      return made
    paths = tuple((m, entry['paths'][str(m)]) for m in rows)
    return dataclasses.replace(made, paths=paths)

  out = rules_lib.map_named(one, params)
  if file is not None:
    _write(file, known)
  return out


def device_kind() -> str:
  """This device, and on CPUs its instruction paths."""
  name = jax.devices()[0].device_kind
  return f'{name}, {" ".join(native.paths())}' if native.paths() else name


def kind(leaf: packed.PackedArray | tiled.TiledArray) -> str:
  """What weights must share to share a choice."""
  m = leaf.matrix
  stack = 'x'.join(map(str, (*leaf.stack, m.k, m.n)))
  return f'{leaf.describe()}, {stack}, {jnp.dtype(leaf.dtype).name}'


def _measured(made, rows, seconds):
  """The entry of one kind of weight."""
  times = {}
  for m in rows:
    runs = {'xla': (_product, made.as_matrices().portable())}
    matrices = made.as_matrices()
    if isinstance(made, tiled.TiledArray):
      runs['pallas'] = (_product, matrices)
    else:
      for path in native.paths():
        # One that does not suit is another: measured twice, no harm.
        one = dataclasses.replace(matrices, paths=((m, path),))
        runs[path] = (_product, one)
    x = jax.random.normal(
      jax.random.key(m), (*made.stack, m, made.matrix.k), made.dtype
    )
    times[m] = _interleaved(runs, x, seconds)
  paths = {
    m: min((p for p in t if p != 'xla'), key=t.get, default='')
    for m, t in times.items()
  }
  gain = statistics.mean(
    math.log(t['xla'] / t[paths[m]]) if paths[m] else -1.0
    for m, t in times.items()
  )
  return {
    'form': 'kernel' if gain > 0 else 'xla',
    'paths': {str(m): p for m, p in paths.items()},
    'milliseconds': {
      str(m): {p: round(1e3 * s, 4) for p, s in t.items()}
      for m, t in times.items()
    },
  }


@jax.jit
def _product(x, leaf):
  batch = tuple(range(x.ndim - 2))
  dims = (((x.ndim - 1,), (x.ndim - 2,)), (batch, batch))
  return lift.lift(lambda x, w: lax.dot_general(x, w, dims))(x, leaf)


def _interleaved(runs, x, seconds):
  """Median seconds of each, measured in turns."""
  repeats = {}
  for name, (f, leaf) in runs.items():
    jax.block_until_ready(f(x, leaf))
    begin = time.perf_counter()
    jax.block_until_ready(f(x, leaf))
    once = max(time.perf_counter() - begin, 1e-7)
    repeats[name] = max(1, int(seconds / _ROUNDS / once))
  found = {name: [] for name in runs}
  for _ in range(_ROUNDS):
    for name, (f, leaf) in runs.items():
      begin = time.perf_counter()
      for _ in range(repeats[name]):
        jax.block_until_ready(f(x, leaf))
      found[name].append((time.perf_counter() - begin) / repeats[name])
  return {name: statistics.median(t) for name, t in found.items()}


def _read(file) -> dict:
  if file is None or not pathlib.Path(file).exists():
    return {}
  try:
    known = json.loads(pathlib.Path(file).read_text())
    shaped = all(
      {'form', 'paths'} <= set(entry)
      for entries in known.values()
      for entry in entries.values()
    )
  except (json.JSONDecodeError, AttributeError, TypeError) as e:
    raise ValueError(f'{file} is no file of choices: {e}. Remove it.') from e
  if not shaped:
    raise ValueError(
      f'{file} is no file of choices. Remove it, or name another.'
    )
  return known


def _write(file, known):
  """In one piece, so that a failure leaves the file that was there."""
  file = pathlib.Path(file)
  file.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(
    'w', dir=file.parent, suffix='.json', delete=False
  ) as f:
    json.dump(known, f, indent=2, sort_keys=True)
  os.replace(f.name, file)
