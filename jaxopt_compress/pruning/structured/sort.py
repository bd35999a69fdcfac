"""One checkpoint of many widths: channels in the order of their importance.

    order = jc.pruning.sort(structure, importance)
    params = jc.shrink(order, params)             # as large as before, and the same function
    small = jc.shrink(plan.leading, params)       # of any plan by the same importance

So the n most important channels of a group are its first n: Cai et al. 2020,
https://arxiv.org/abs/1908.09791, section 3.3, and Muralidharan et al. 2024,
https://arxiv.org/abs/2407.14679, section 3.1.
"""

from collections.abc import Mapping

import numpy as np

from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.pruning.structured import keep


def sort(
  structure: structure_lib.Structure, importance: Mapping[str, np.ndarray]
) -> plan_lib.Plan:
  """The plan that puts the channels of most importance first, and keeps all.

  Args:
    structure: what `jc.structure(apply)(params, x)` returned.
    importance: {group: number for each channel}, as for `jc.select`. Layers, tokens
      and classes keep their order, which has a meaning.

  Raises:
    ValueError: an importance that does not fit or is not finite.

  >>> import jax, jax.numpy as jnp
  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.ones((1, 4)), 'b': jnp.ones((4, 1))}
  >>> found = structure_lib.structure(f)(p, jnp.ones((1, 1)))
  >>> sort(found, {'a:-1': np.array([3., 1., 4., 2.])}).sources['a:-1'].tolist()
  [2, 0, 3, 1]
  """
  sources = {}
  for name, x in keep.checked(structure, importance).items():
    if not structure.ordered(name):
      # Of equal importances the first come first, as `select` keeps them.
      sources[name] = np.argsort(-x, axis=-1, kind='stable')
  return plan_lib.Plan(structure, sources)
