"""Pages of the reference, from the namespaces themselves: nothing is listed here.

A public name is one of `jaxopt_compress` or of a room (a folder or a file in it): what
its `__all__` has, what an `__init__.py` imports under its own name, or, in a file, what
is defined there without an underscore. Each is documented once, under its shortest
name. A public name without a docstring is an error.
"""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import types
import typing

from docstrings import escaped

_ROOT = 'jaxopt_compress'


def public(module):
  """The public names of a module: `{name: object}`, sorted."""
  if hasattr(module, '__all__'):
    names = module.__all__
  elif hasattr(module, '__path__'):
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    names = [
      alias.asname
      for node in tree.body
      if isinstance(node, ast.ImportFrom)
      for alias in node.names
      if alias.asname and alias.name == alias.asname
    ]
  else:
    names = [
      name
      for name, value in vars(module).items()
      if getattr(value, '__module__', None) == module.__name__
    ]
  names = sorted((n for n in names if not n.startswith('_')), key=str.lower)
  return {name: getattr(module, name) for name in names}


def rooms():
  """The modules that have a page: `{path that users write: module}`, in order."""
  top = importlib.import_module(_ROOT)
  waiting = {
    f'{_ROOT}.{name}': value
    for name, value in public(top).items()
    if isinstance(value, types.ModuleType)
  }
  for info in pkgutil.iter_modules(top.__path__, f'{_ROOT}.'):
    waiting.setdefault(info.name, importlib.import_module(info.name))
  # Files first: `schemes.NF4` is what users write, and not `quantization.NF4`.
  found, queue = {_ROOT: top}, sorted(waiting.items())
  queue.sort(key=lambda item: hasattr(item[1], '__path__'))
  while queue:
    path, module = queue.pop(0)
    if not public(module) or module in found.values():
      continue
    found[path] = module
    # Modules that have a short name of their own are found under that.
    queue[:0] = [
      (f'{path}.{name}', value)
      for name, value in public(module).items()
      if isinstance(value, types.ModuleType) and value not in waiting.values()
    ]
  return found


def undocumented(path, value):
  """What has no docstring: `path`, a module, class or function, and its methods."""
  if isinstance(value, types.ModuleType) or inspect.isroutine(value):
    return [] if value.__doc__ else [path]
  if not inspect.isclass(value):
    return []
  # A dataclass without a docstring is given its signature as one.
  text = value.__doc__ or ''
  own = [] if text and not text.startswith(f'{value.__name__}(') else [path]
  return own + [
    f'{path}.{name}'
    for name, member in vars(value).items()
    if inspect.isfunction(member)
    and member.__module__ == value.__module__
    and not name.startswith('_')
    and not inspect.getdoc(getattr(value, name))
  ]


def named(value):
  """Classes of ours that the signatures of a function or a class name."""
  parts = [value]
  if inspect.isclass(value):
    parts += [m for m in vars(value).values() if inspect.isfunction(m)]
  hints = []
  for part in parts:
    try:
      hints += typing.get_type_hints(part).values()
    except (NameError, TypeError):  # Names that only type checkers import.
      continue
  found = []
  while hints:
    hint = hints.pop()
    # Arguments of a Callable are a list of hints.
    hints += hint if isinstance(hint, list) else typing.get_args(hint)
    if getattr(hint, '__module__', '').startswith(_ROOT) and inspect.isclass(
      hint
    ):
      found.append(hint)
  return sorted(set(found) - {value}, key=lambda c: c.__qualname__)


def _entry(path, value):
  """The directive of one name, of which the docstring says the rest."""
  if inspect.isclass(value):
    fields = ', '.join(getattr(value, '_fields', ()))
    # Fields of named tuples are told by the docstring of the class.
    without = f'   :exclude-members: {fields}\n' * bool(fields)
    return f'.. autoclass:: {path}\n   :members:\n{without}'
  if callable(value):
    return f'.. autofunction:: {path}\n'
  return f'.. py:data:: {path.rpartition(".")[2]}\n\n   ``{_words(value)}``\n'


def _words(value):
  """What a value is: a scheme in the words of a rule, others as Python shows them."""
  parts = [getattr(value, part, None) for part in ('weight', 'act', 'grad')]
  return ', '.join(p.describe() for p in parts if p) or repr(value)


def _room(value):
  """The folder that a name comes from, as the heading of what is like it."""
  return [*getattr(value, '__module__', '').split('.'), 'core'][1]


def _title(text, line):
  return f'{text}\n{line * len(text)}\n'


def page(path, found, seen):
  """The page of one module, in rst.

  Args:
    path: of the module, as users write it.
    found: `{path: module}` of all pages.
    seen: `{id: path}` of what has an entry; this page's entries are added.
  """
  module = found[path]
  lines = [_title(path.removeprefix(f'{_ROOT}.'), '=')]
  lines.append(f'.. automodule:: {module.__name__}\n   :no-members:\n')
  lines.append(f'.. py:currentmodule:: {path}\n')
  modules, again, entries = [], [], {}
  for name, value in public(module).items():
    full = f'{path}.{name}'
    if isinstance(value, types.ModuleType):
      modules.append(value)
    elif id(value) in seen:
      words = f': ``{_words(value)}``' * (not callable(value))
      again.append(f'- :py:obj:`{name} <{seen[id(value)]}>`{words}')
    else:
      room = _room(value) if path == _ROOT else ''
      entries.setdefault(room, []).append((full, value))
      seen[id(value)] = full
  for room, group in sorted(entries.items()):
    lines += [_title(room, '-')] * bool(room)
    lines += [_entry(*item) for item in group]
  if again:
    lines += [_title('Under a shorter name', '-'), *again, '']
  paths = {id(m): p for p, m in found.items()}
  inner = [paths[id(m)] for m in modules if path != _ROOT and id(m) in paths]
  if inner:
    below = [p for p in inner if p.startswith(f'{path}.')]
    lines += [
      _title('Modules', '-'),
      *_links(inner, found),
      '',
      _toctree(below),
    ]
  return '\n'.join(lines)


def _links(paths, found):
  """A line for each page, with the first line of its docstring."""
  for path in paths:
    said = found[path].__doc__.strip().splitlines()[0]
    short = path.removeprefix(f'{_ROOT}.')
    yield f'- :doc:`{short} <{path}>`: {escaped(said)}'


def beside(module, seen):
  """Entries of what a page's signatures name and no namespace has, in rst."""
  waiting = [
    v for v in public(module).values() if not isinstance(v, types.ModuleType)
  ]
  entries = []
  while waiting:
    for value in named(waiting.pop(0)):
      if id(value) not in seen:
        seen[id(value)] = f'{value.__module__}.{value.__qualname__}'
        entries.append(_entry(seen[id(value)], value))
        waiting.append(value)
  title = '\n\n' + _title('What these take and return', '-')
  return '\n'.join([title, *entries]) if entries else ''


def _toctree(names):
  return '.. toctree::\n   :hidden:\n\n' + ''.join(f'   {n}\n' for n in names)


def write(folder):
  """Writes the pages of the reference into a folder.

  Raises:
    ValueError: public names without a docstring.
  """
  folder.mkdir(exist_ok=True)
  found, seen, missing = rooms(), {}, []
  pages = {path: page(path, found, seen) for path in found}
  for path, module in found.items():
    for name, value in {'': module, **public(module)}.items():
      missing += undocumented(f'{path}.{name}'.rstrip('.'), value)
    _update(folder / f'{path}.rst', pages[path] + beside(module, seen))
  if missing:
    raise ValueError(
      f'Public names without a docstring: {sorted(set(missing))}.'
    )
  top = sorted(path for path in found if path.count('.') < 2)
  lines = [_title('Reference', '='), _INDEX, *_links(top, found)]
  _update(folder / 'index.rst', '\n'.join([*lines, '', _toctree(top)]))
  for path in folder.glob('*.rst'):
    if path.stem not in found and path.stem != 'index':
      path.unlink()


_INDEX = """Every public name, room by room. What most people write is in
:doc:`jaxopt_compress`; the rest is one level down.
"""


def _update(path, text):
  """Leaves a file that would not change as it is, so that it is not read again."""
  if not path.exists() or path.read_text() != text:
    path.write_text(text)


def setup(app):
  write(pathlib.Path(app.srcdir) / 'api')
  return {'parallel_read_safe': True, 'parallel_write_safe': True}
