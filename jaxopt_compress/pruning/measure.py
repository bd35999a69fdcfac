"""How sparse a tree really is: its zeros, counted.

They are counted in the arrays that the leaves stand for, whatever a rule or a config
promised.
"""

from typing import Any
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib


class Zeros(NamedTuple):
  """How many of `size` entries are zero."""

  zeros: int
  size: int

  @property
  def fraction(self) -> float:
    return self.zeros / self.size if self.size else 0.0


def sparsity(tree: Any) -> dict[str, Zeros]:
  """Counts the zeros of each leaf.

  Args:
    tree: arrays and compressed leaves, with known values.

  Returns:
    `{path: Zeros(zeros, size)}` in the order of the tree.

  >>> sparsity({'b': jnp.ones(2), 'w': jnp.eye(2)})
  {'b': Zeros(zeros=0, size=2), 'w': Zeros(zeros=2, size=4)}
  """
  named = rules_lib.named_leaves(tree)
  return {path: _zeros(array.materialize(leaf)) for path, leaf in named}


def total(counts: dict[str, Zeros]) -> Zeros:
  """All leaves together.

  >>> total(sparsity({'b': jnp.ones(2), 'w': jnp.eye(2)})).fraction.__round__(3)
  0.333
  """
  return Zeros(
    sum(c.zeros for c in counts.values()), sum(c.size for c in counts.values())
  )


def _zeros(x) -> Zeros:
  # Counted along the last axis first, and summed in int64 on the host: an int32
  # would overflow on a very large leaf.
  nonzero = np.asarray(jnp.count_nonzero(jnp.atleast_1d(x), axis=-1))
  size = int(np.prod(np.shape(x), dtype=np.int64))
  return Zeros(size - int(nonzero.sum(dtype=np.int64)), size)
