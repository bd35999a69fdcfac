"""A measured choice of form and instructions for each weight.

Weights of one format, one size and one way to round the other operand are one entry of
the file that `measured` keeps.
"""

from collections.abc import Sequence
import math
import os
import statistics
import time
from typing import Any
import warnings

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels import measured
from jaxopt_compress.kernels import pack as pack_lib
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import streams
from jaxopt_compress.kernels.leaves import tiled
from jaxopt_compress.pruning.storage import sparsify

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
  turns, on every instruction path of the kernels for CPUs, with its zeros and, where
  it is of bytes half of which are zero, without, or laid out for GPUs and TPUs. A
  weight whose products are fastest in XLA stays as it is.

  Args:
    params: a tree with `QArray` and `QDotArray` leaves.
    uses: as for `pack`.
    rows: how many rows the other operand may have.
    file: JSON with what was measured, by device kind: read before, so that nothing
      is measured twice, and written after. None for no file.
    seconds: for one product.

  Returns:
    The tree, with `PackedArray` leaves that know their paths, or `TiledArray` ones.
    Convolutions are packed as `pack` does, not measured. Where nothing can be packed
    the tree as it was, with a warning that says why.

  Raises:
    ValueError: rows that are not positive, or a file that is not of this kind.
  """
  rows = tuple(sorted(set(pack_lib.check_rows(rows))))
  known = measured.read(file)
  target = jax.default_backend()
  if not _candidates(target):
    warnings.warn(f'Nothing is packed: {native.MISSING}.', stacklevel=2)
    return array.on_device(params)
  known_here = known.setdefault(device_kind(), {})
  reasons = {}

  def fastest(path, stored):
    leaf = sparsify.with_zeros(stored)
    why = pack_lib.packable(path, leaf, uses, target)
    if array.is_compressed(stored):
      reasons[path] = why if array.is_compressed(leaf) else 'no codes are tuned'
    if why:
      return stored
    made = pack_lib.pack_leaf(path, leaf, uses)
    met = {u.primitive for u in uses_lib.of(path, uses) or ()}
    if 'conv_general_dilated' in met or len(made.plan.matrix.rows) > 2:
      return made
    found = []
    for form in _forms(made, target):
      times = known_here.setdefault(kind(form), {})
      _measure_missing(form, rows, times, target, seconds)
      found.append(_gain(form, rows, times, target))
    gain, best = max(found, key=lambda choice: choice[0])
    return best if gain > 0 else stored

  out = rules_lib.map_named(fastest, params)
  if all(reasons.values()):
    warnings.warn(pack_lib.nothing_done('tuned', reasons), stacklevel=2)
  elif file is not None:
    measured.add(file, known)
  return out


def _candidates(target: str) -> tuple[str, ...]:
  """What a product may run on, beside XLA; the best first."""
  return native.paths() if target == 'cpu' else ('tiled',)


def _forms(made: leaves.PackedArray, target: str) -> list[Any]:
  """The layouts that a packed weight may have on a target."""
  if target != 'cpu':
    return [tiled.tile(made, target)]
  thin = streams.of_codes(made)
  return [made] if thin is None else [made, thin]


def _measure_missing(form, rows, times, target, seconds) -> None:
  """Measures the numbers of rows that `times` does not have, into it."""
  for m in rows:
    if not {'xla', *_candidates(target)} <= set(times.get(str(m), {})):
      times[str(m)] = _measured(form, m, seconds)


def _gain(form, rows, times, target) -> tuple[float, Any]:
  """How much faster a form is than XLA, and the form with its fastest paths.

  The gain is the sum over `rows` of the logarithm of the speed-up.
  """
  best, gain = {}, 0.0
  for m in rows:
    at_m = times[str(m)]
    # Times are rounded, so ties happen: `min` takes the first, the best path.
    best[m] = min(_candidates(target), key=at_m.get)
    gain += math.log(at_m['xla']) - math.log(at_m[best[m]])
  if target == 'cpu':
    form = plan_lib.with_paths(form, best.items())
  return gain, form


def device_kind() -> str:
  """This device, and on CPUs its instruction paths."""
  name = jax.devices()[0].device_kind
  return f'{name}, {" ".join(native.paths())}' if native.paths() else name


def kind(leaf: leaves.PackedArray | leaves.TiledArray) -> str:
  """What weights must share to share a choice."""
  m = leaf.plan.matrix
  shape = (*plan_lib.stack(leaf), m.k, m.n)
  sizes = 'x'.join(map(str, shape))
  if isinstance(leaf, leaves.StreamArray):
    each = leaf.payload.size / math.prod(shape)
    sizes += f', {each:.1f} bytes each'
  return f'{leaf.describe()}, {sizes}, {jnp.dtype(leaf.dtype).name}'


def _measured(made, m, seconds) -> dict[str, float]:
  """Milliseconds of a product of m rows on everything that it may run on."""
  matrices = plan_lib.as_matrices(made)
  runs = {'xla': matrices.portable()}
  if isinstance(made, leaves.TiledArray):
    runs['tiled'] = matrices
  else:
    for path in native.paths():
      # A path that cannot do the job falls back to another, which is then
      # timed twice.
      runs[path] = plan_lib.with_paths(matrices, ((m, path),))
  shape = (*plan_lib.stack(made), m, made.plan.matrix.k)
  x = jax.random.normal(jax.random.key(m), shape, made.dtype)
  times = _interleaved(runs, x, seconds)
  return {name: round(1e3 * s, 4) for name, s in times.items()}


@jax.jit
def _product(x, leaf):
  batch = tuple(range(x.ndim - 2))
  dims = (((x.ndim - 1,), (x.ndim - 2,)), (batch, batch))
  return lift.lift(lambda x, w: lax.dot_general(x, w, dims))(x, leaf)


def _interleaved(runs, x, seconds):
  """Median seconds of the product with each leaf, measured in turns."""
  repeats = {}
  for name, leaf in runs.items():
    jax.block_until_ready(_product(x, leaf))
    begin = time.perf_counter()
    jax.block_until_ready(_product(x, leaf))
    once = max(time.perf_counter() - begin, 1e-7)
    repeats[name] = max(1, int(seconds / _ROUNDS / once))
  found = {name: [] for name in runs}
  for _ in range(_ROUNDS):
    for name, leaf in runs.items():
      begin = time.perf_counter()
      for _ in range(repeats[name]):
        jax.block_until_ready(_product(x, leaf))
      found[name].append((time.perf_counter() - begin) / repeats[name])
  return {name: statistics.median(t) for name, t in found.items()}
