"""How much faster weights without their zeros are than the same with them.

Of int8 both are packed; of float32 XLA multiplies with zeros. A star says that `jc.pack`
leaves them out for so many rows, in a model with no other weights.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from launch.bench.kernels import turns

_ROWS = (1, 32, 260)
_ZEROS = (0.5, 0.75, 0.9)
_SCHEMES = {'int8': jc.W8A8, 'float32': None}


def _apply(p, x):
  return x @ p['w']


def run(sizes: list[tuple[int, int]], *, rounds: int, budget: float):
  """Prints the table of weights [k, n]; rounds, budget as for `turns.interleave`."""
  print(
    '\nWithout zeros, speed over the same with them (* where jc.pack does so)'
  )
  print(f'  {"":32s}' + ''.join(f'{f"{m} rows":>12s}' for m in _ROWS))
  for k, n in sizes:
    for kind, scheme in _SCHEMES.items():
      for zeros in _ZEROS:
        found = measured(k, n, scheme, zeros, rounds, budget)
        name = f'{k} x {n}, {kind}, {zeros:.0%} zeros'
        print(f'  {name:32s}' + ''.join(f'{f:>12s}' for f in found), flush=True)


def measured(k, n, scheme, zeros, rounds, budget):
  """Yields the speed-up for each number of rows, and a star or a space."""
  rng = np.random.default_rng(0)
  w = rng.standard_normal((k, n), np.float32)
  params = {'w': np.where(rng.random((k, n)) < zeros, 0, w)}
  x = rng.standard_normal((max(_ROWS), k), np.float32)
  uses = jc.uses(_apply)(params, x)
  q = jc.quantize(params, [('w', scheme)], uses)
  thin = jc.pack(q, uses, sparse=True)
  dense = q if scheme is None else jc.pack(q, uses, sparse=False)
  f = jax.jit(jc.lift(_apply))
  for m in _ROWS:
    some = jnp.asarray(x[:m])
    players = {
      'thin': turns.here(f, thin, some),
      'dense': turns.here(f, dense, some),
    }
    took = turns.interleave(players, rounds, budget)
    with warnings.catch_warnings():
      # An array of floats that keeps its zeros is not packed at all.
      warnings.filterwarnings('ignore', 'Nothing is packed')
      packed = jc.pack(q, uses, rows=(m,))
    leaf = packed['w']
    star = '*' if jc.is_compressed(leaf) and leaf.plan.sparse else ' '
    yield f'{np.median(took["dense"] / took["thin"]):.2f}{star}'
