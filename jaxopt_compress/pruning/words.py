"""What to make sparse, in words: each says one thing, in any order.

    0.8                           a fraction of zeros, weight by weight
    '2:4'                         2 kept of each 4 along what is contracted
    'neurons 0.5', 'heads 0.25'   whole channels
    'block 4x4 0.5'               tiles
    '0.8 wanda', '0.8 global'     ranked by another score, or across leaves
    '0.8 erk', '0.8 constant'     another allocation of the zeros, another schedule
    '0.8 end=1000 every=10'       any number of a `Sparsity`, by its name

Words that are left out say what `Sparsity` says without them.
"""

import dataclasses
import re
from typing import Any

from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import spec as spec_lib

Sparsity = spec_lib.Sparsity

_EXAMPLES = (
  "Write a fraction (0.8), 'n:m' ('2:4'), 'neurons 0.5', 'heads 0.5' or 'block 4x4"
  " 0.5', with a score ('0.8 wanda') or numbers ('0.8 end=1000') behind, or None to"
  ' leave leaves alone.'
)
# What is said as name=value.
_VALUES = {
  field.name: type(field.default)
  for field in dataclasses.fields(Sparsity)
  if type(field.default) in (int, float)
} | dict(axis=int, size=int, quantile=float, pool=str)


def sparsity(value: Sparsity | float | str | None) -> Sparsity | None:
  """A Sparsity from itself, a fraction, words, or None.

  Raises:
    ValueError: words that are none, or say a thing twice.

  >>> sparsity('neurons 0.5 wanda')
  Sparsity(target=0.5, kind='neurons', score='wanda', scope='row')
  """
  if value is None or isinstance(value, Sparsity):
    return value
  return Sparsity(**fields(value))


def fields(value: float | str) -> dict[str, Any]:
  """The fields of a `Sparsity` that words say.

  >>> fields(0.8)
  {'target': 0.8}
  >>> fields('2:4')
  {'kind': 'n_m', 'n': 2, 'm': 4}
  >>> fields('block 4x16 0.5 row')
  {'kind': 'block', 'block': (4, 16), 'target': 0.5, 'scope': 'row'}
  """
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return {'target': float(value)}
  if not isinstance(value, str) or not value.split():
    raise ValueError(f'{value!r} is no sparsity. {_EXAMPLES}')
  said = {}
  for word in value.split():
    for name, x in _said(word, value).items():
      if name in said:
        raise ValueError(
          f'{value!r} is no sparsity: it says {name!r} twice. {_EXAMPLES}'
        )
      said[name] = x
  if ('target' in said) == (said.get('kind') == 'n_m'):
    what = (
      'is n:m, which says how many' if 'target' in said else 'has no fraction'
    )
    raise ValueError(f'{value!r} is no sparsity: it {what}. {_EXAMPLES}')
  if (said.get('kind') == 'block') != ('block' in said):
    raise ValueError(
      f'{value!r} is no sparsity: blocks have a size. {_EXAMPLES}'
    )
  return said


def rules(rules: Any) -> list[tuple[str, Sparsity | None]]:
  """Pairs (regex, Sparsity or None) of a rule list whose values may be words.

  >>> [(pattern, s and s.target) for pattern, s in rules([('a', None), ('b', '2:4')])]
  [('a', None), ('b', 0.5)]
  """
  found = []
  for pattern, value in rules_lib.pairs(rules):
    try:
      found.append((pattern, sparsity(value)))
    except ValueError as e:
      raise ValueError(f'The rule {pattern!r}: {e}') from e
  return found


def _said(word, value) -> dict[str, Any]:
  """The fields that one word says."""
  if re.fullmatch(r'\d*\.?\d+(e-?\d+)?', word):
    return {'target': float(word)}
  if found := re.fullmatch(r'([1-9]\d*):([1-9]\d*)', word):
    return {'kind': 'n_m', 'n': int(found[1]), 'm': int(found[2])}
  if found := re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', word):
    return {'block': (int(found[1]), int(found[2]))}
  name, equals, number = word.partition('=')
  if equals and name in _VALUES:
    try:
      return {name: _VALUES[name](number)}
    except ValueError as e:
      raise ValueError(
        f'{value!r} is no sparsity: {name}={number!r} is no number. {_EXAMPLES}'
      ) from e
  names = _names()
  if word in names:
    return {names[word]: word}
  guess = choices.guess(word, [*names, *(f'{n}=' for n in _VALUES)])
  raise ValueError(f'{value!r} is no sparsity: {word!r}?{guess} {_EXAMPLES}')


def _names() -> dict[str, str]:
  """{word: the field that it is said of}."""
  fields = ('kind', 'score', 'allocation', 'schedule')
  named = {word: field for field in fields for word in spec_lib.names(field)}
  del named['n_m']  # which is said by its numbers
  return named | dict.fromkeys(spec_lib.SCOPES, 'scope')
