"""What a model raised, in a line, and at which line of whose code.

cannot reshape array of shape (5, 12) into shape (5, 4, 6) at model.py:31 (attend)
"""

import functools
import pathlib
import sys
import sysconfig
import traceback

_ROOM = pathlib.Path(__file__).parent.parent
_INSTALLED = tuple(
  sysconfig.get_paths()[name] for name in ('purelib', 'platlib', 'stdlib')
) + (sys.prefix,)


def said(error: BaseException) -> str:
  """The first line of an error and the innermost line of the user that raised it.

  >>> try:
  ...   eval('1 / 0')
  ... except ZeroDivisionError as e:
  ...   print(said(e))
  division by zero at <string>:1 (<module>)
  """
  # Flax ends its messages with an address.
  what = str(error).partition('\n')[0].partition(' (http')[0].rstrip('.')
  what = what or type(error).__name__
  theirs = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if not is_library(frame.filename)
  ]
  if not theirs:
    return what
  frame = theirs[-1]
  return f'{what} at {frame.filename}:{frame.lineno} ({frame.name})'


@functools.cache
def is_library(name: str) -> bool:
  """Whether a file is of a library, or of the rooms that ask: no model is in it."""
  rooms = tuple(str(_ROOM / room) for room in ('core', 'analysis', 'pruning'))
  return name.startswith((*_INSTALLED, *rooms))
