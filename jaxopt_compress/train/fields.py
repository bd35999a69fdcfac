"""Records as a config writes them: flat, one key for each option.

A record (a frozen dataclass) may hold others. A config has no second level for most,
so that each option is one short flag: `--config.stage.pruned.prune_scope=global`. The
field that holds a record says how its fields are written, here and nowhere else:

    prune: Prune = record(Prune, prefix='prune_', rules='prune')

    record           config
    prune.rules      prune
    prune.scope      prune_scope

What is one thought of many options is a dict of its own:

    shrink: Shrink = level(Shrink)      shrink=dict(keep=0.5), --config.stage.s.shrink.keep=0.5

What else a config may say to somebody who knows better which words there are:

    keywords: Mapping = rest()

A field also says in which range its numbers lie, and which other options must be set for
it to have an effect:

    clip: float = option(0.0, '[0, inf)', needs='steps')
"""

from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxopt_compress.core import choices

_WRITTEN = 'written'  # where a field keeps what `record` was told
_LEVEL = 'level'
_REST = 'rest'
_RANGE, _NEEDS, _ALSO = 'range', 'needs', 'also'  # and what `option` was told


@dataclasses.dataclass(frozen=True)
class Key:
  """What is known of a key of a config: see `option`."""

  default: Any
  within: str
  needs: tuple[str, ...]
  also: type | None = None


def option(
  default: Any, within: str = '', needs: str = '', also: type | None = None
) -> Any:
  """A field of a record, with what is asked of its value.

  Args:
    default: its value where a config says nothing.
    within: the interval of a number, or of each in a tuple: '[0, 1)', '[1, inf)'.
    needs: keys of the config without which a value has no effect, or `key=value`.
    also: another type that a value may have, which is checked by who reads it.
  """
  said = {_RANGE: within, _NEEDS: tuple(needs.split()), _ALSO: also}
  return dataclasses.field(default=default, metadata=said)


def record(cls: type, prefix: str = '', needs: str = '', **names: str) -> Any:
  """A field of a record that holds another one, `cls()` by default.

  Args:
    cls: a frozen dataclass, each field with a default.
    prefix: in a config, before the name of each field.
    needs: as for `option`, of all its fields.
    **names: `field='key'`, whole names of fields that have none of that form.
  """
  own = [f.name for f in dataclasses.fields(cls)]
  assert set(names) <= set(own), f'{cls.__name__} has only {own}'
  keys = {name: names.get(name, prefix + name) for name in own}
  return dataclasses.field(
    default=cls(), metadata={_WRITTEN: keys, _NEEDS: tuple(needs.split())}
  )


def level(cls: type) -> Any:
  """A field of a record that holds another one, which a config writes as a dict."""
  return dataclasses.field(default=cls(), metadata={_LEVEL: True})


def rest() -> Any:
  """A field of a record for all keys that are none of its others, as they are.

  Who reads it checks them.
  """
  return dataclasses.field(
    default_factory=dict, hash=False, metadata={_REST: True}
  )


def read(cls: type, where: str, values: Mapping[str, Any]) -> Any:
  """A record from what a config says.

  Args:
    cls: its type.
    where: the path in the config, for messages.
    values: `{key: value}`; what is left out has its default.

  Raises:
    ValueError: a key that is not known (with a guess) or is missing, a value of
      another type or out of its range, or one that has no effect.
  """
  check_mapping(where, values)
  known, more = keys_of(cls), {}
  if other := _rest_of(cls):
    more = {other: {k: x for k, x in values.items() if k not in known}}
    values = {k: x for k, x in values.items() if k in known}
  check_keys(where, values, tuple(known))
  for key, said in known.items():
    if said.default is dataclasses.MISSING and key not in values:
      raise ValueError(f'{where} needs a {key!r}.')
  values = {
    key: _value(f'{where}.{key}', value, known[key])
    for key, value in values.items()
  }
  found = {key: said.default for key, said in known.items()} | values
  for key, said in known.items():
    for need in said.needs:
      other, _, word = need.partition('=')
      if not (found[other] == word if word else found[other]):
        _unread(where, key, found[key], said.default, need)
  return dataclasses.replace(_made(cls, values), **more)


def _rest_of(cls) -> str:
  """The field for keys that are none of the others, or ''."""
  found = [f.name for f in dataclasses.fields(cls) if f.metadata.get(_REST)]
  return ''.join(found)


def _value(where, value, said):
  if dataclasses.is_dataclass(default := said.default) and default is not (
    dataclasses.MISSING
  ):
    return read(type(default), where, value)
  if said.also and type(value) is said.also:
    return value
  if said.also is dict and type(value) is str:
    raise ValueError(
      f'{where} is {value!r}; such a word stands in rules,'
      f" ((r'.*/kernel', {value!r}), (r'.*', None)), or beside what a weight is used"
      f' for, dict(dot={value!r}).'
    )
  return number(where, value, default, said.within)


def check_unread(
  where: str, made: Any, keys: Collection[str], need: str
) -> None:
  """Raises a ValueError where one of these keys was set, as nothing reads it.

  Args:
    where: the path in the config.
    made: a record.
    keys: of it, as in a config.
    need: what is missing.
  """
  values, known = written(made), keys_of(type(made))
  for key in keys:
    _unread(where, key, values[key], known[key].default, need)


def _unread(where, key, value, default, need):
  if value != default:
    raise ValueError(
      f'{where}.{key} is {value!r}, which has no effect without {need}. Leave'
      f' it at {default!r}, or add what it needs.'
    )


def written(made: Any) -> dict[str, Any]:
  """What `read` makes this record of: {key: value}, each option once.

  A dict of its own is left out where it is as it would be without.
  """
  found = {}
  for field in dataclasses.fields(made):
    value = getattr(made, field.name)
    if names := field.metadata.get(_WRITTEN):
      found |= {key: getattr(value, name) for name, key in names.items()}
    elif field.metadata.get(_REST):
      found |= value
    elif not field.metadata.get(_LEVEL):
      found[field.name] = value
    elif value != field.default:
      found[field.name] = written(value)
  return found


def defaults_of(cls: type) -> dict[str, Any]:
  """{key: its default, or `dataclasses.MISSING`} of all that a config may say.

  The default of a dict of its own is the dict of its defaults.
  """
  return {
    key: defaults_of(type(said.default))
    if dataclasses.is_dataclass(said.default)
    else said.default
    for key, said in keys_of(cls).items()
  }


def keys_of(cls: type) -> dict[str, Key]:
  """All that a config may say."""
  found = {}
  for field in dataclasses.fields(cls):
    if field.metadata.get(_REST):
      continue
    needs = field.metadata.get(_NEEDS, ())
    within, also = (field.metadata.get(k) for k in (_RANGE, _ALSO))
    part = {field.name: Key(field.default, within or '', needs, also)}
    if names := field.metadata.get(_WRITTEN):
      inner = keys_of(type(field.default))
      part = {
        key: dataclasses.replace(inner[name], needs=needs + inner[name].needs)
        for name, key in names.items()
      }
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


def number(where: str, value: Any, default: Any, within: str) -> Any:
  """The value in the type of its default, a number in its range."""
  value = _typed(where, value, default)
  if not within:
    return value
  low, high = map(float, within[1:-1].split(','))
  if isinstance(default, tuple):
    each = value = tuple(_typed(where, x, default[0]) for x in value)
  else:
    each = (value,)
  for x in each:
    # Nothing compares with NaN, and no range includes infinity.
    above = low <= x if within[0] == '[' else low < x
    below = x <= high if within[-1] == ']' else x < high
    if not (above and below):
      raise ValueError(
        f'{where} is {value!r}; a number in {within} is expected.'
      )
  return value


def _typed(where, value, default):
  """The value as the type of the default; ints pass for floats."""
  default = '' if default is dataclasses.MISSING else default
  if isinstance(default, float) and type(value) is int:
    value = float(value)
  if isinstance(default, bool) and type(value) is int and value in (0, 1):
    value = bool(value)
  if type(value) is not type(default):
    raise ValueError(
      f'{where} is {value!r}, of type {type(value).__name__};'
      f' {type(default).__name__}, such as {default!r}, is expected.'
    )
  return value


def check_mapping(where: str, values: Any) -> None:
  """Raises a ValueError for what is no dict."""
  if not isinstance(values, Mapping):
    raise ValueError(f'{where} is {values!r}; a dict of options is expected.')


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
