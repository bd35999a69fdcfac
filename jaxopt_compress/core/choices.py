"""What is said of a word that is not one of those expected."""

from collections.abc import Iterable
import difflib
from typing import Any


def guess(word: Any, words: Iterable[Any]) -> str:
  """' Did you mean ...?' with the closest of `words`, in any case; '' if none is.

  >>> guess('sede', ['seed', 'steps'])
  " Did you mean 'seed'?"
  """
  named = {str(w).lower(): str(w) for w in words}
  close = difflib.get_close_matches(str(word).lower(), named, n=1)
  return f' Did you mean {named[close[0]]!r}?' if close else ''


def one_of(what: str, value: Any, choices: Iterable[Any], says=' is ') -> None:
  """Raises ValueError for a value that is not among the choices.

  Args:
    what: what the value is for.
    value, choices: what was given, and what may be.
    says: what stands between `what` and the value: '=' for an argument.

  >>> one_of('kind', 'blocks', ('block', 'n_m'), '=')
  Traceback (most recent call last):
  ValueError: kind='blocks'; choose one of ('block', 'n_m'). Did you mean 'block'?
  """
  choices = tuple(choices)
  if value not in choices:
    raise ValueError(
      f'{what}{says}{value!r}; choose one of {choices}.{guess(value, choices)}'
    )
