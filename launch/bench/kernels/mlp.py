"""An MLP 768-3072-768 at batches 1, 197 and 1024.

    y = relu(x @ w1) @ w2

Two products with what a library puts between them: fused, copied, rounded again.
"""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from launch.bench.kernels import cells
from launch.bench.kernels import turns

_BATCHES = (1, 197, 1024)
_WIDTHS = (768, 3072)


def _apply(p, x):
  return jax.nn.relu(x @ p['w1']) @ p['w2']


def run(rivals, taught, paths, bars, *, rounds: int, budget: float):
  """Prints the table.

  Args:
    rivals: `turns.Rival`s.
    taught: (rivals, folder of weights) -> those that can do with them.
    paths: instruction paths of ours.
    bars: told of each comparison with the best rival.
    rounds, budget: as for `turns.interleave`.
  """
  width, hidden = _WIDTHS
  rng = np.random.default_rng(0)
  shapes = {'w1': (width, hidden), 'w2': (hidden, width)}
  dense = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
  dense = {name: w / np.float32(len(w) ** 0.5) for name, w in dense.items()}
  uses = jc.uses(_apply)(dense, np.zeros((1, width), np.float32))
  q = jc.quantize(dense, [('.*', jc.W8A8)], uses)
  packed = jc.pack(q, uses)
  with tempfile.TemporaryDirectory() as folder:
    codes = {}
    for name, leaf in q.items():
      codes[f'int8_{name[1]}'] = leaf.weight.numbers
      codes[f'int8_{name[1]}_scale'] = leaf.weight.scale_hat
    cells.save(folder, **dense, **codes)
    able = taught(rivals, folder)
    for m in _BATCHES:
      _batch(m, dense, q, packed, able, paths, bars, rounds, budget)


def _batch(m, dense, q, packed, rivals, paths, bars, rounds, budget):
  x = np.random.default_rng(m).standard_normal((m, _WIDTHS[0]), np.float32)
  exact = _exact(q, x)
  lifted = jax.jit(jc.lift(_apply))
  ours = {(cells.FLOAT, ''): dense, (cells.XLA, ''): q}
  ours |= {('int8', path): cells.on_path(path, packed) for path in paths}
  players, errors = {}, {}
  for key, p in ours.items():
    p = jax.tree.map(jnp.asarray, p)
    players[key] = turns.here(lifted, p, jnp.asarray(x))
    errors[key] = _distance(lifted(p, x), _exact(p, x))
  theirs = []
  with tempfile.TemporaryDirectory() as folder:
    cells.save(folder, x=x)
    for rival in rivals:
      for name in rival.rows(folder):
        key = name, rival.path
        theirs.append(key)
        players[key] = rival.contestant(name)
        errors[key] = _distance(rival.result(name), exact)
  took = turns.interleave(players, rounds, budget)
  print(f'\nMLP {_WIDTHS[0]}-{_WIDTHS[1]}-{_WIDTHS[0]}, {m} rows')
  for key, seconds in took.items():
    low, middle, high = 1e3 * np.percentile(seconds, [25, 50, 75])
    times = np.median(took[cells.FLOAT, ''] / seconds)
    print(
      f'  {key[0]:29s}{key[1]:12s}{middle:9.4f} [{low:8.4f},{high:8.4f}] ms'
      f'{times:9.2f} x float32   error {errors[key]:.0e}',
      flush=True,
    )
  for path in paths:
    same = [key for key in theirs if key[1] == path]
    if same:
      best = min(same, key=lambda key: np.median(took[key]))
      times = np.median(took[best] / took['int8', path])
      what = f'MLP, {m} rows {path or "auto"}: int8 over {best[0]}'
      bars.add(what, times, 1.0)


def _exact(p, x):
  w1, w2 = (np.asarray(w, np.float64) for w in jc.materialize(p).values())
  return np.maximum(x @ w1, 0) @ w2


def _distance(y, want):
  y = np.asarray(y, np.float64)
  return float(np.linalg.norm(y - want) / np.linalg.norm(want))
