"""How a batch of data becomes the arguments that follow the parameters.

    a tuple          positional arguments    apply(params, *batch)
    a dict           keyword arguments       apply(params, **batch)
    anything else    one argument            apply(params, batch)

A dict that is one argument is given in a tuple, `(batch,)`. A named tuple is anything
else: it has names of its own, as records have.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

import jax

from jaxopt_compress.analysis import walk
from jaxopt_compress.core import array


def jitted(fun: Callable, params: Any) -> Callable:
  """`jax.jit(fun)` with its first argument, of which other leaves may be functions.

  Modules of Equinox are such trees. What is no array stays in the program.

  >>> import jax.numpy as jnp
  >>> params = {'w': jnp.ones(2), 'act': jnp.tanh}
  >>> jitted(lambda p, x: p['act'](x @ p['w']), params)(jnp.zeros((1, 2))).tolist()
  [0.0]
  """
  arrays, refill = array.arrays_apart(
    params, walk.is_array, array.is_compressed
  )

  @jax.jit
  def of_arrays(arrays, *args, **kwargs):
    return fun(refill(arrays), *args, **kwargs)

  return functools.partial(of_arrays, arrays)


def call(fun: Callable, first: tuple[Any, ...], batch: Any) -> Any:
  """`fun(*first, ...)` with the arguments that the batch is.

  Raises:
    TypeError: as `fun` does, with a note on what the batch became.

  >>> f = lambda params, x, y: params * x - y
  >>> call(f, (2,), (3, 1)), call(f, (2,), {'x': 3, 'y': 1})
  (5, 5)
  >>> call(lambda params, xy: params * xy['x'], (2,), ({'x': 3},))
  6
  """
  args, kwargs, what = (batch,), {}, 'one argument'
  if type(batch) is tuple:
    args, what = batch, f'{len(batch)} positional arguments'
  elif isinstance(batch, Mapping):
    args, kwargs, what = (), batch, f'keyword arguments {list(batch)}'
  try:
    return fun(*first, *args, **kwargs)
  except TypeError as e:
    e.add_note(
      f'The batch, of type {type(batch).__name__}, was passed as {what}: tuples'
      ' are positional arguments and dicts keyword arguments. Where the function'
      ' takes it whole, give (batch,).'
    )
    raise
