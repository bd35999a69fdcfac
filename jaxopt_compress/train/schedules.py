"""Numbers of a config that may change with the steps.

    0.9                          that number
    'linear 0 -> 0.9'            from the first step to the last
    'cosine 8 -> 1 over 0.5'     in the first half of the steps; then it stays

They are optax's schedules, evaluated at the traced step: nothing is compiled anew.
"""

from collections.abc import Callable
import re
from typing import Any

import jax
import optax

from jaxopt_compress.train import fields

_NUMBER = r'[-+]?[\d.]+(?:e[-+]?\d+)?'
_WORDS = re.compile(
  rf'(linear|cosine) +({_NUMBER}) *-> *({_NUMBER})(?: +over +({_NUMBER}))?'
)


def at(said: float | str, steps: int) -> Callable[[Any], float | jax.Array]:
  """The number as a function of the step.

  A number that does not change is a Python number, so that what it leaves out can be
  left out of the program.

  Args:
    said: of a config; see above.
    steps: of the stage. The last of them, `steps - 1`, meets the last value.

  >>> rise = at('cosine 0 -> 1 over 0.5', 21)
  >>> [round(float(rise(t)), 3) for t in (0, 5, 10, 20)]
  [0.0, 0.5, 1.0, 1.0]
  """
  if not isinstance(said, str):
    return lambda step: said
  shape, first, last, over = _read('a schedule', said)
  n = max(round(over * (steps - 1)), 1)
  if shape == 'linear':
    return optax.linear_schedule(first, last, n)
  # optax multiplies its first value, and so would never leave 0.
  falls = optax.cosine_decay_schedule(1.0, n)
  return lambda step: last + (first - last) * falls(step)


def stays(said: float | str, value: float) -> bool:
  """Whether it is this value from the first step to the last.

  >>> stays(1.0, 1), stays('linear 1 -> 1', 1), stays('linear 0 -> 1', 1)
  (True, True, False)
  """
  if not isinstance(said, str):
    return said == value
  _, first, last, _ = _read('a schedule', said)
  return first == last == value


def check(where: str, said: float | str, within: str) -> None:
  """Raises a ValueError for what is no schedule, or leaves its range.

  Args:
    where: the path in the config.
    said: the number, or the words.
    within: the interval of the number: '[0, 1)'; '' for any.
  """
  if isinstance(said, str):
    _, first, last, over = _read(where, said)
    fields.number(f'{where}, its part of the steps,', over, 1.0, '(0, 1]')
    for x in (first, last):
      fields.number(where, x, x, within)


def _read(where, said):
  """(shape, first, last, part of the steps)."""
  found = _WORDS.fullmatch(said.strip())
  try:
    shape, *numbers = found.groups(default='1')
    return shape, *map(float, numbers)
  except (AttributeError, ValueError):
    raise ValueError(
      f"{where} is {said!r}; a number is expected, or 'linear 0 -> 0.9', or"
      " 'cosine 0 -> 0.9 over 0.5' (of the steps)."
    ) from None
