"""Clip search: a range somewhat smaller than that of the data rounds it better.

    argmin over shrink of  sum |x - round_trip(x, shrink * reach)|^norm * importance

for each block by itself. Candidates are tried one after the other, so memory does
not grow with their number.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp


def search(
  error: Callable[[jax.Array], jax.Array],
  steps: int = 80,
  lowest: float = 0.2,
) -> jax.Array:
  """The shrink of least error for each block.

  Args:
    error: scalar shrink -> [...] errors, one a block.
    steps: candidates, evenly spaced from 1 down.
    lowest: the last of them.

  Returns:
    [...] float32 shrinks in [lowest, 1]; of equal errors the largest, and 1 where
    all errors are NaN.
  """

  def try_one(i, best):
    least, found = best
    shrink = 1 - jnp.float32(i) * ((1 - lowest) / (steps - 1))
    e = error(shrink)
    better = e < least
    return jnp.where(better, e, least), jnp.where(better, shrink, found)

  first = error(jnp.float32(1))
  # Varies over devices as the data does, inside shard_map.
  ones = jnp.ones_like(first)
  least = jnp.where(jnp.isnan(first), jnp.inf, first)
  return lax.fori_loop(1, steps, try_one, (least, ones))[1]
