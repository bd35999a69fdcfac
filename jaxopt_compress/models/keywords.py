"""What a config may say to a model: the keywords of its class, in their ranges."""

from collections.abc import Callable
from collections.abc import Mapping
import inspect
import math
from typing import Any

from jaxopt_compress.core import choices


def check(
  name: str, init: Callable[..., None], keywords: Mapping[str, Any]
) -> None:
  """Raises a ValueError for a keyword that is not there or a number out of range.

  A whole number counts something, so it is at least 1, or 0 where that is its default
  or it counts layers.
  A fraction (of dropout, of momentum) is below 1, and any other factor is above 0.

  Args:
    name: of the model.
    init: its `__init__`.
    keywords: for it.
  """
  parameters = inspect.signature(init).parameters
  defaults = {
    key: p.default
    for key, p in parameters.items()
    if p.default is not inspect.Parameter.empty
  }
  for key, value in keywords.items():
    if key not in defaults:
      raise ValueError(
        f'{name} has no {key!r}.{choices.guess(key, defaults)} It has'
        f' {", ".join(defaults)}.'
      )
    default, numbers = defaults[key], value
    if isinstance(default, (tuple, list)):
      if not isinstance(value, (tuple, list)) or not value:
        raise ValueError(
          f'{key} of {name} is {value!r}; a tuple such as {default!r} is expected.'
        )
      default = default[0]
    elif not isinstance(value, (tuple, list)):
      numbers = (value,)
    for number in numbers:
      if expected := _unlike(key, number, default):
        raise ValueError(
          f'{key} of {name} is {value!r}; {expected} is expected.'
        )


def _unlike(key, value, default) -> str:
  """What a number would have to be; '' where it is that, or is none."""
  if isinstance(default, bool) or not isinstance(default, (int, float)):
    return ''
  if type(value) not in (int, float):
    return f'a number such as {default!r}'
  if isinstance(default, int):
    least = 0 if key in ('depth', 'depths') else min(1, default)
    fits = type(value) is int and least <= value < 2**31
    return '' if fits else f'a whole number, at least {least},'
  if default < 1:
    return '' if 0 <= value < 1 else 'a fraction in [0, 1)'
  return '' if 0 < value < math.inf else 'a positive number'
