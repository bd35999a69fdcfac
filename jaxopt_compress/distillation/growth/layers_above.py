"""Of every parameter of a layer, that of the layer above it.

blocks/0/up/kernel   ->   blocks/1/up/kernel       the last layer keeps its own
stacked [l, n, m]    ->   [1, 2, ..., l - 1, l - 1]
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.analysis.structure import tied
from jaxopt_compress.core import rules as rules_lib


def of(structure: structure_lib.Structure, tree: Any) -> Any:
  """The tree, every layer in place of the one below it.

  Args:
    structure: of the network; it knows which layers there are.
    tree: parameters, or a tree with subtrees of their form.

  >>> import jax, jaxopt_compress as jc
  >>> f = lambda p, x: jax.lax.scan(lambda x, w: (x @ w, None), x, p)[0]
  >>> p = jnp.arange(3.)[:, None, None] * jnp.ones((3, 2, 2))
  >>> of(jc.structure(f)(p, jnp.ones((1, 2))), p)[:, 0, 0].tolist()
  [1.0, 2.0, 2.0]
  """
  names = plan_lib.names_of(structure.shapes)
  leaves = dict(rules_lib.named_leaves(tree))
  above = {}
  for layers in structure.layers.values():
    for here, there in zip(layers, layers[1:]):
      above |= dict(zip(here, there, strict=True))

  def next_layer(path, x):
    mine, _ = plan_lib.named(path, names)
    if mine is None or not hasattr(x, 'shape'):
      return x
    for prefix, other in above.items():
      # A prefix ends where a name does: blocks/1 is not that of blocks/10.
      if f'/{path}/'.count(f'/{prefix.strip("/")}/') and mine.startswith(
        prefix
      ):
        at = path.index(prefix)
        return leaves.get(path[:at] + other + path[at + len(prefix) :], x)
    stacked = [
      i
      for i, layout in enumerate(structure.axes[mine])
      for g in structure_lib.names(layout)
      if tied.LOOP in structure.groups[g].inexact
    ]
    if not stacked or len(x.shape) != len(structure.axes[mine]):
      return x
    n = x.shape[stacked[0]]
    return jnp.take(x, np.minimum(np.arange(n) + 1, n - 1), stacked[0])

  return rules_lib.map_named(next_layer, tree)
