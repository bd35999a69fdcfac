"""Whether numbers are finite, and which are not."""

from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array


@jax.jit
def is_finite(tree: Any) -> jax.Array:
  """Whether every floating number of `tree` is finite: scalar bool."""
  finite = jnp.bool_(True)
  for x in jax.tree.leaves(array.materialize(tree)):
    if jnp.issubdtype(x.dtype, jnp.inexact):
      finite &= jnp.isfinite(x).all()
  return finite


def not_finite(values: Mapping[str, Any]) -> str:
  """Which numbers of a step are not, and where to look.

  Args:
    values: what a step tells, by name.

  >>> not_finite({'loss': jnp.nan, 'hard': 2.3, 'soft': jnp.nan})
  'loss is nan and soft is nan (hard is 2.3: look at what the teacher answers)'
  """
  values = {k: float(x) for k, x in values.items()}
  bad = {k: x for k, x in values.items() if not math.isfinite(x)}
  what = ' and '.join(f'{k} is {x}' for k, x in bad.items())
  # The student's own answers are in both.
  hard = values.get('hard', math.nan)
  if any(k.startswith('soft') for k in bad) and math.isfinite(hard):
    what += f' (hard is {hard:.4g}: look at what the teacher answers)'
  return what
