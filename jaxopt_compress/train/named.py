"""A user's own things, which a config names: 'my_pkg.nets:MyNet', './nets.py:MyNet'.

Before the colon is a module or a file, behind it what is defined there. Both are looked
for in the current folder, in that of the config file, and wherever Python looks.
"""

import hashlib
import importlib.util
import os
import pathlib
import sys
import traceback
from types import ModuleType
from typing import Any
import zlib

from jaxopt_compress.core import choices


def is_own(said: Any) -> bool:
  """Whether this names something of the user's, and nothing of this library's."""
  return isinstance(said, str) and ':' in said


def find(where: str, said: str) -> Any:
  """What a name of a config stands for.

  Args:
    where: the path in the config, for messages.
    said: 'module:name' or 'file.py:name'.

  Raises:
    ValueError: there is no such module or file, it fails while it is imported, or
      it defines nothing of that name.

  >>> find('config.models.net.name', 'math:sqrt')(4.0)
  2.0
  """
  source, _, name = said.rpartition(':')
  if not source or not name:
    raise ValueError(
      f"{where} is {said!r}; 'module:name' or 'file.py:name' is expected."
    )
  module = _module(f'{where} is {said!r}', source)
  found = module
  for part in name.split('.'):
    if not hasattr(found, part):
      public = [n for n in vars(found) if not n.startswith('_')]
      raise ValueError(
        f'{where} is {said!r}, and {source} defines no {part!r}.'
        f'{choices.guess(part, public)}'
      )
    found = getattr(found, part)
  return found


def digest(said: str) -> str:
  """The sha256 of the file that defines what a name stands for; '' if there is none.

  It is that of one file: what this imports may change unseen.
  """
  source = said.rpartition(':')[0]
  module = _module(said, source)
  path = getattr(module, '__file__', None)
  if not path or not os.path.exists(path):
    return ''
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _module(said, source) -> ModuleType:
  # `python -m` has the current folder on its path, and a console script has not.
  if os.getcwd() not in sys.path and '' not in sys.path:
    sys.path.append(os.getcwd())
  if not source.endswith('.py'):
    return _imported(said, source, lambda: importlib.import_module(source))
  path = _file(said, source)
  # Two files of one name are two modules; one file is run once.
  name = f'{path.stem}_{zlib.crc32(str(path).encode()):08x}'
  if name in sys.modules:
    return sys.modules[name]
  # What lies beside it can be imported by it.
  if str(path.parent) not in sys.path:
    sys.path.append(str(path.parent))
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)

  def run():
    sys.modules[name] = module
    try:
      spec.loader.exec_module(module)
    except BaseException:
      del sys.modules[name]
      raise
    return module

  return _imported(said, source, run)


def _file(said, source):
  folders = [pathlib.Path(p) for p in ('', *sys.path)]
  for folder in folders:
    if (path := (folder / source).absolute()).is_file():
      return path.resolve()
  raise ValueError(
    f'{said}, and there is no file {source} in {os.getcwd()} or in the folder of'
    ' the config.'
  )


def _imported(said, source, run):
  try:
    return run()
  except ModuleNotFoundError as e:
    if e.name and (source == e.name or source.startswith(f'{e.name}.')):
      raise ValueError(
        f'{said}, and there is no module {e.name!r}. It is looked for in'
        f' {os.getcwd()}, in the folder of the config and where Python finds'
        ' modules. Start there, install it, or name its file: "./nets.py:MyNet".'
      ) from e
    raise _failed(said, source, e) from e
  except Exception as e:  # A user's module may raise anything.
    raise _failed(said, source, e) from e


def _failed(said, source, error):
  last = traceback.extract_tb(error.__traceback__)[-1]
  if isinstance(error, SyntaxError):
    where = f'{error.filename}:{error.lineno}'
  else:
    where = f'{last.filename}:{last.lineno}'
  return ValueError(
    f'{said}, and {source} fails while it is imported: {type(error).__name__}:'
    f' {error} ({where}).'
  )
