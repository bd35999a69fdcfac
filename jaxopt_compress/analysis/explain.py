"""How a lifted function would run: what each leaf meets, and what is dense.

for met in jc.explain(apply)(params, x):
  print(met.path, met.primitive, met.native, met.reason, met.source)
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
  returns a `Met` (path, primitive, native, reason, source) for every meeting of
  a compressed leaf with an operation, in program order. `f` is the function that
  one would lift.
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
