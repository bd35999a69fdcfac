"""How a lifted function would run: what each leaf meets, and what is dense.

for met in jc.explain(apply)(params, x):
  print(met.path, met.primitive, met.native, met.reason, met.source)

Of a network for the kernels it also tells what they compute without a leaf, by an empty
path: each attention and why XLA computes it, if it does, and norms in front of products.
"""

from collections.abc import Callable

import jax
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import context
from jaxopt_compress.core import lift


def explain(fun: Callable) -> Callable[..., list[context.Met]]:
  """For each compressed leaf, every operation it met and how that ran.

  `explain(f)(params, *args)` traces `f` abstractly, computes nothing, and
  returns a `Met` (path, primitive, native, reason, source, together) for every meeting
  of a compressed leaf with an operation, in program order. `together` names the leaves
  that one call multiplies with. `f` is the function that one would lift.

  Where leaves are packed for CPUs, each attention is told, too, with path '': whether
  the kernel computes it, and if not, why; so is a norm in front of products.
  """

  def explained(*args, **kwargs):
    met = []
    ctx = lift.context(record=met.append, inline=True)
    values, refill = array.arrays_apart((args, kwargs), _is_array)

    def of_arrays(values):
      args, kwargs = refill(values)
      return array.materialize(lift.run(ctx, fun, args, kwargs))

    jax.eval_shape(of_arrays, values)
    return list(dict.fromkeys(met))

  return explained


def _is_array(x) -> bool:
  return isinstance(x, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))
