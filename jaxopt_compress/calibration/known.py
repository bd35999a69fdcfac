"""Calibration reads numbers, also where the program that calls it is traced.

    jax.jit(lambda x: x * jc.calibrate(apply, params, rules, batches)['w'][0])

Ranges, factors and errors are read in numpy and compared in Python. What they come
from is known, so they are computed as the call is made, and are constants there.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
from typing import Any

import jax


def check(who: str, values: Any) -> None:
  """Raises ValueError where one of the arrays is traced."""
  # An iterator is no tree of arrays; what it gives is looked at as it comes.
  for x in jax.tree.leaves(values, lambda x: isinstance(x, Iterator)):
    if isinstance(x, jax.core.Tracer):
      raise ValueError(
        f'{who} reads numbers, and was given {jax.typeof(x)}, an array that is'
        ' traced and has none yet. Call it outside of jax.jit, jax.grad and'
        ' jax.vmap, or on arrays that are made outside.'
      )


def computed(fun: Callable) -> Callable:
  """`fun`, computed as it is called, even while its caller is traced.

  >>> double, one = computed(lambda x: float(2 * x)), jax.numpy.ones(())
  >>> jax.jit(lambda y: y + double(one))(1.0).item()
  3.0
  """

  @functools.wraps(fun)
  def with_numbers(*args, **kwargs):
    check(fun.__name__, (args, kwargs))
    # Unlike `ensure_compile_time_eval`, this leaves programs that are traced inside
    # as they are: there, `lax.axis_index` has no value yet.
    with jax.core.eval_context():
      return fun(*args, **kwargs)

  return with_numbers
