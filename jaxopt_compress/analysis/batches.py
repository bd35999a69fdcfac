"""How a batch of data becomes the arguments that follow the parameters.

    a tuple          positional arguments    apply(params, *batch)
    a dict           keyword arguments       apply(params, **batch)
    anything else    one argument            apply(params, batch)

A dict that is one argument is given in a tuple, `(batch,)`. A named tuple is anything
else: it has names of its own, as records have.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any


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
      f'The batch, a {type(batch).__name__}, was passed as {what}: tuples are'
      ' positional arguments and dicts keyword arguments. Where the function'
      ' takes it whole, give (batch,).'
    )
    raise
