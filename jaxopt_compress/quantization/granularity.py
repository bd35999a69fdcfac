"""What shares a scale in a leaf of codes, in words for tables.

channel    g128    128x128    tensor    channel asym    g32 mx    g16 nv    g64 dq
"""

import math
from typing import Any

import jax.numpy as jnp

from jaxopt_compress.analysis import uses as uses_lib


def words(q: Any) -> str:
  """Of a `QArray`."""
  sizes = dict(q.blocks)
  matrix = q.scale.shape[-2:]
  if len(sizes) > 1:
    how = 'x'.join(str(n) for _, n in q.blocks)
  elif sizes:
    how = f'g{next(iter(sizes.values()))}'
  elif uses_lib.is_window(q.shape[-4:]) and q.scale.shape[-4:-2] != (1, 1):
    # The leaf cannot tell a window from a stack. How many entries of a column have
    # one scale is true of both, and 'channel' is all of them.
    scales = max(math.prod(q.scale.shape[-4:-1]), 1)
    rows = math.prod(q.shape[-4:-1]) // scales
    how = f'g{rows}' if matrix[-1] == q.shape[-1] else f'{rows}x{q.shape[-1]}'
  else:
    how = 'tensor' if all(n == 1 for n in matrix) else 'channel'
  words = [how]
  if q.scale.dtype == jnp.float8_e8m0fnu:
    words.append('mx')
  elif q.global_offset is not None:
    words.append('dq')
  elif q.global_scale is not None:
    words.append('nv')
  if q.zero is not None:
    words.append('asym')
  return ' '.join(words)
