"""The configs that come with the library, by name.

In a clone they lie in `configs`; a wheel carries that folder as
`jaxopt_compress/configs`, so that it adds no package of such a name to those of others.
"""

import os
import pathlib

from jaxopt_compress.core import choices


def folder() -> pathlib.Path:
  """Where they lie."""
  package = pathlib.Path(__file__).parents[1]
  inside = package / 'configs'
  return inside if inside.is_dir() else package.with_name('configs')


def names() -> list[str]:
  """What they are called, in the order of the alphabet.

  >>> 'digits' in names()
  True
  """
  found = (p.stem for p in folder().glob('*.py'))
  return sorted(name for name in found if not name.startswith('_'))


def path(word: str) -> str:
  """The file that `--config=word` means: a file, or the name of one that is shipped.

  Args:
    word: what may have ':' and an argument of `get_config` behind it, which stays.

  Raises:
    ValueError: there is no such file or name; the message guesses.

  >>> path('digits:runlocal') == f'{folder() / "digits.py"}:runlocal'
  True
  """
  name, colon, argument = word.partition(':')
  file = name
  if not os.path.isfile(name):
    if name not in names():
      raise ValueError(_nothing(name))
    file = str(folder() / f'{name}.py')
  return f'{file}{colon}{argument}'


def _nothing(name) -> str:
  """Why a word is no config: a file that is not there, or a wrong name."""
  asked = pathlib.Path(name)
  files = [p.as_posix() for p in asked.parent.glob('*.py')]
  # Who copies a command from the documentation may not be in a clone.
  near = choices.guess(asked.as_posix(), files)
  near = near or choices.guess(asked.stem, names())
  if f'{name}.py' in files:
    near = f' Did you mean {name + ".py"!r}?'
  return (
    f'There is no config {name!r}.{near} Shipped are {", ".join(names())};'
    ' `jaxopt-compress init my_config.py` writes one to start from.'
  )
