"""Records as a config writes them: flat, one key for each option.

A record (a frozen dataclass) may hold others. A config has no second level for those,
so that each option is one short flag: `--config.stage.pruned.prune_scope=global`. The
field that holds a record says how its fields are written, here and nowhere else:

    prune: Prune = record(Prune, prefix='prune_', rules='prune')

    record           config
    prune.rules      prune
    prune.scope      prune_scope
"""

from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxopt_compress.core import choices

_WRITTEN = 'written'  # where a field keeps what `record` was told


def record(cls: type, prefix: str = '', **names: str) -> Any:
  """A field of a record that holds another one, `cls()` by default.

  Args:
    cls: a frozen dataclass, each field with a default.
    prefix: in a config, before the name of each field.
    **names: `field='key'`, whole names of fields that have none of that form.
  """
  own = [f.name for f in dataclasses.fields(cls)]
  assert set(names) <= set(own), f'{cls.__name__} has only {own}'
  keys = {name: names.get(name, prefix + name) for name in own}
  return dataclasses.field(default=cls(), metadata={_WRITTEN: keys})


def read(cls: type, where: str, values: Mapping[str, Any]) -> Any:
  """A record from what a config says.

  Args:
    cls: its type.
    where: the path in the config, for messages.
    values: `{key: value}`; what is left out has its default.

  Raises:
    ValueError: a key that is not known (with a guess) or is missing, a value of
      another type.
  """
  defaults = defaults_of(cls)
  check_keys(where, values, tuple(defaults))
  for key, default in defaults.items():
    if default is dataclasses.MISSING and key not in values:
      raise ValueError(f'{where} needs a {key!r}.')
  values = {
    key: _typed(f'{where}.{key}', value, defaults[key])
    for key, value in values.items()
  }
  return _made(cls, values)


def written(made: Any) -> dict[str, Any]:
  """What `read` makes this record of: {key: value}, each option once."""
  found = {}
  for field in dataclasses.fields(made):
    value = getattr(made, field.name)
    if names := field.metadata.get(_WRITTEN):
      found |= {key: getattr(value, name) for name, key in names.items()}
    else:
      found[field.name] = value
  return found


def defaults_of(cls: type) -> dict[str, Any]:
  """{key: its default, or `dataclasses.MISSING`} of all that a config may say."""
  found = {}
  for field in dataclasses.fields(cls):
    part = {field.name: field.default}
    if names := field.metadata.get(_WRITTEN):
      part = {key: getattr(field.default, n) for n, key in names.items()}
    # Two records must not be set by one key.
    assert not found.keys() & part.keys(), f'{found.keys() & part.keys()} twice'
    found |= part
  return found


def _made(cls, values):
  """`cls` of checked values."""
  own = {}
  for field in dataclasses.fields(cls):
    if names := field.metadata.get(_WRITTEN):
      part = {n: values[key] for n, key in names.items() if key in values}
      own[field.name] = dataclasses.replace(field.default, **part)
    elif field.name in values:
      own[field.name] = values[field.name]
  return cls(**own)


def _typed(where, value, default):
  """The value as the type of the default; ints pass for floats."""
  default = '' if default is dataclasses.MISSING else default
  if isinstance(default, float) and type(value) is int:
    value = float(value)
  if isinstance(default, bool) and type(value) is int:
    value = bool(value)
  if type(value) is not type(default):
    raise ValueError(
      f'{where} is {value!r}, a {type(value).__name__}; a'
      f' {type(default).__name__} such as {default!r} is expected.'
    )
  return value


def check_keys(
  where: str, values: Mapping[str, Any], known: Collection[str]
) -> None:
  """Raises a ValueError that names a key of `values` which is not known."""
  for key in values:
    if key not in known:
      raise ValueError(
        f'{where} has no {key!r}.{choices.guess(key, known)} It has'
        f' {", ".join(sorted(known))}.'
      )
