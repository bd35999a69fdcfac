"""What is said of a word that is not one of those expected."""

from collections.abc import Iterable
import difflib
from typing import Any


def guess(word: Any, words: Iterable[Any]) -> str:
  """' Did you mean ...?' with the closest of `words`; '' where none is close.

  >>> guess('sede', ['seed', 'steps'])
  " Did you mean 'seed'?"
  """
  close = difflib.get_close_matches(str(word), [str(w) for w in words], n=1)
  return f' Did you mean {close[0]!r}?' if close else ''


def one_of(what: str, value: Any, choices: Iterable[Any], says=' is ') -> None:
  """Raises ValueError for a value that is not among the choices.

  Args:
    what: what the value is for.
    value: what was given.
    choices: what may be given.
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
