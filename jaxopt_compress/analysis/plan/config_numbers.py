"""The whole numbers of a config, by path, and the config with others.

{'width': 64, 'layers': (8, 16)}     'width': 64, 'layers/0': 8, 'layers/1': 16
"""

from collections.abc import Iterator
from collections.abc import Mapping
import copy
import dataclasses
from typing import Any


def numbers(config: Any, around: tuple = ()) -> dict[str, int]:
  """{path: number}, of all whole numbers above zero.

  Args:
    config: nested dicts, dataclasses, tuples, lists, or objects with attributes.
    around: the containers that it is in.

  >>> numbers({'width': 64, 'layers': (8, 16), 'bias': True})
  {'width': 64, 'layers/0': 8, 'layers/1': 16}
  """
  found = {}
  around = (*around, config)
  for key, value in _items(config):
    if any(value is x for x in around):
      continue  # what points back is not entered again
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
      found[key] = value
    else:
      inside = numbers(value, around).items()
      found |= {f'{key}/{path}': n for path, n in inside}
  return found


def replaced(config: Any, values: Mapping[str, int]) -> Any:
  """The config with other numbers at some paths; the one given stays as it is.

  >>> replaced({'width': 64, 'layers': (8, 16)}, {'layers/1': 4})
  {'width': 64, 'layers': (8, 4)}
  """
  if not values:
    return config
  changes = {}
  for key, value in _items(config):
    if key in values:
      changes[key] = values[key]
      continue
    ahead = f'{key}/'
    inside = {
      path[len(ahead) :]: n
      for path, n in values.items()
      if path.startswith(ahead)
    }
    if inside:
      changes[key] = replaced(value, inside)
  return _with(config, changes)


def _items(config) -> Iterator[tuple[str, Any]]:
  """The (key, value) of a container; none of anything else."""
  if isinstance(config, (str, bytes, int, float, type(None))):
    return
  if isinstance(config, (tuple, list)):
    names = getattr(config, '_fields', map(str, range(len(config))))
    yield from zip(names, config, strict=True)
  elif isinstance(config, Mapping) or hasattr(config, 'items'):
    yield from ((str(k), x) for k, x in config.items())
  elif dataclasses.is_dataclass(config):
    for field in dataclasses.fields(config):
      if field.init and hasattr(config, field.name):
        yield field.name, getattr(config, field.name)
  elif hasattr(config, '__dict__') and not callable(config):
    yield from vars(config).items()


def _with(config, changes):
  """A container with some values changed."""
  if isinstance(config, (tuple, list)):
    values = [changes.get(name, x) for name, x in _items(config)]
    named = hasattr(config, '_fields')
    return type(config)(*values) if named else type(config)(values)
  if isinstance(config, dict):
    out = copy.copy(config)
    out.update({k: changes[str(k)] for k in config if str(k) in changes})
    return out
  if isinstance(config, Mapping) or hasattr(config, 'items'):
    return type(config)({k: changes.get(str(k), x) for k, x in config.items()})
  if dataclasses.is_dataclass(config):
    return dataclasses.replace(config, **changes)
  out = copy.copy(config)
  for key, value in changes.items():
    setattr(out, key, value)
  return out
