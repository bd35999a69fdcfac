"""What `sensitivity` found: rows, a table that a person reads, and rules that follow.

(error of several)^2 ~ sum of error^2       rounding errors are nearly independent
1 - cosine           ~ error^2
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any
from typing import NamedTuple

from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import agreement as agreement_lib
from jaxopt_compress.quantization import schemes as schemes_lib
from jaxopt_compress.quantization import spec as spec_lib

PARTS = ('both', 'weight', 'activations')
# An alternative whose error is a larger part of that of the rule is no help.
_HELPS = 0.8
# Lines of the table.
_MOST_LINES = 60
_HEADERS = (
  'weight',
  'rounded to',
  'bytes',
  'error',
  'share',
  'of weight',
  'of input',
  'cosine',
  'argmax',
  'what helps',
)
# How often rules are measured, with a budget that is so much smaller each time.
_TRIES = 6
_TIGHTER = 0.7


@dataclasses.dataclass(frozen=True)
class Row:
  """What rounding one weight, or what it meets, costs, everything else float.

  Attributes:
    path: of the weight, with [i] for layer i of a stack.
    part: 'both', 'weight' or 'activations'; 'weight' is all there is where what it
      meets stays as it is.
    format: of that part, in the words of a rule.
    error: of the results, relative; infinite where some are no numbers any more.
    cosine: of the rows of results, the mean.
    argmax: the fraction of rows with their largest entry at the same place, or None.
    bytes: of the weight, as this leaves it.
    weight: the path without a layer: what rules name.
  """

  path: str
  part: str
  format: str
  error: float
  cosine: float
  argmax: float | None
  bytes: int
  weight: str

  @classmethod
  def of(cls, found: agreement_lib.Agreement, **what) -> 'Row':
    error = math.inf if found.lost else found.error
    return cls(error=error, cosine=found.cosine, argmax=found.argmax, **what)


class Weight(NamedTuple):
  """A weight that rules take: its scheme, its bytes so, and as floats."""

  scheme: schemes_lib.Scheme
  bytes: int
  float_bytes: int


@dataclasses.dataclass(frozen=True)
class Costs:
  """What rounding costs, the costliest weight first; prints as one table.

  Attributes:
    rows: of the rules' own schemes.
    together: everything rounded as the rules say.
    weights: {path: `Weight`} of what the rules take.
    better: rows of alternatives, all layers of a stack at once.
    given: the rules.
    measure: rules -> the `Agreement` of the network that they make.
    parts: {'weight', 'activations': all weights alone, and all that they meet}.
  """

  rows: tuple[Row, ...]
  together: agreement_lib.Agreement
  weights: dict[str, Weight]
  better: tuple[Row, ...] = ()
  given: tuple[tuple[str, Any], ...] = ()
  measure: Callable[[Any], agreement_lib.Agreement] | None = None
  parts: dict[str, agreement_lib.Agreement] = dataclasses.field(
    default_factory=dict
  )

  def __str__(self):
    return _table(self)

  def __repr__(self):
    return f'<Costs of {len(self.weights)} weights; print it, or read its rows>'

  @property
  def bytes(self) -> int:
    """Of all these weights."""
    return sum(w.bytes for w in self.weights.values())

  def of(self, path: str) -> dict[str, Row]:
    """{part: row} of a weight, or of a layer."""
    return {row.part: row for row in self.rows if row.path == path}

  def square(self, weight: str, part: str | None = None) -> float:
    """The squared error of a part, or of all that is rounded; layers' added up."""
    if part is None:
      part = 'both' if self.weights[weight].scheme.act else 'weight'
    rows = [r for r in self.rows if (r.weight, r.part) == (weight, part)]
    return sum(r.error**2 for r in rows)

  def rules(
    self, *, cosine: float | None = None, error: float | None = None
  ) -> list[tuple[str, Any]]:
    """Rules that reach a cosine or an error with few bytes more, as measured.

    Weights get alternatives that were measured to be better, or stay floats, those
    first that save most of the squared error for their bytes. In the end the network
    that the rules make is measured on the batches.

    Args:
      cosine: the least mean cosine.
      error: the largest error; one of both is given.

    Returns:
      The rules that were given, with exceptions before them.

    Raises:
      ValueError: both or none is given, or nothing but floats reaches it.
    """
    if (cosine is None) == (error is None):
      raise ValueError(
        f'cosine={cosine}, error={error}: give one of them, the least cosine or the'
        ' largest error that is allowed.'
      )

    return _search(self, cosine, error)


def sorted_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
  """Weight by weight, the costliest first: its whole, then its parts."""
  worst = {}
  for row in rows:
    worst[row.path] = max(worst.get(row.path, 0.0), row.error)

  def place(row):
    return -worst[row.path], row.path, PARTS.index(row.part)

  return tuple(sorted(rows, key=place))


# ------------------------------------------------------------------------ the table


def _table(found: Costs) -> str:
  paths = list(dict.fromkeys(row.path for row in found.rows))
  everything = sum(_whole(found.of(path)).error ** 2 for path in paths)
  lines = [_line(found, path, everything) for path in paths[:_MOST_LINES]]
  lines.append(_total(found))
  said = _aligned([_HEADERS, *lines])
  if len(paths) > _MOST_LINES:
    said += f'\n{len(paths) - _MOST_LINES} cheaper ones are in `rows`.'
  return said


def _line(found, path, everything):
  parts = found.of(path)
  square = _whole(parts).error ** 2
  # Of several that are lost none is a part.
  known = math.isfinite(everything) and everything
  share = f'{square / everything:.1%}' if known else '-'
  return _cells(parts, share, _what_helps(found, path))


def _whole(parts: dict[str, Row]) -> Row:
  return parts.get('both') or parts['weight']


def _total(found):
  """The last line: everything rounded, all weights, all that they meet."""
  how = dict(path='all together', format='', bytes=found.bytes, weight='')
  measured = {'both': found.together, **found.parts}
  rows = {k: Row.of(v, part=k, **how) for k, v in measured.items()}
  return _cells(rows, '', '')


def _cells(parts, share, helps):
  def number(part):
    return f'{parts[part].error:.2g}' if part in parts else '-'

  whole = _whole(parts)
  argmax = '-' if whole.argmax is None else f'{whole.argmax:.1%}'
  return (
    whole.path,
    whole.format,
    f'{whole.bytes:,}',
    f'{whole.error:.2g}',
    share,
    *map(number, PARTS[1:]),
    f'{whole.cosine:.5f}',
    argmax,
    helps,
  )


def _what_helps(found, path) -> str:
  """The best alternative of each part, where the weight is much better with it."""
  weight, said = found.of(path)['weight'].weight, []
  layers = dict.fromkeys(r.path for r in found.rows if r.weight == weight)
  tried = [r for r in found.better if r.weight == weight]
  if path != next(iter(layers)) or not tried:
    return ''  # said beside the costliest layer, as all have one rule
  whole = math.sqrt(found.square(weight))
  for part in PARTS:
    mine = [r for r in tried if r.part == part]
    best = min(mine, key=lambda r: r.error, default=None)
    own = math.sqrt(found.square(weight, part))
    if best is None or not math.isfinite(best.error):
      continue
    # Of one part the other one stays, and squares add up.
    left = best.error
    if part != 'both' and math.isfinite(whole):
      left = math.sqrt(max(whole**2 - own**2, 0.0) + best.error**2)
    if left < _HELPS * whole:
      said.append(f'{part} {best.format}: {own:.2g} -> {best.error:.2g}')
  if not said:
    return 'nothing that was tried'
  return ('all layers: ' if weight != path else '') + '; '.join(said)


def _aligned(lines) -> str:
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  words = {0, 1, len(widths) - 1}

  def line(cells):
    padded = [
      cell.ljust(n) if i in words else cell.rjust(n)
      for i, (cell, n) in enumerate(zip(cells, widths, strict=True))
    ]
    return '  '.join(padded).rstrip()

  head, *rest = map(line, lines)
  return '\n'.join([head, '  '.join('-' * n for n in widths), *rest])


# ------------------------------------------------------------------------ rules


class _Option(NamedTuple):
  """A scheme of one weight, its squared error as it is predicted, and its bytes."""

  scheme: schemes_lib.Scheme | None
  square: float
  bytes: int


def _search(found, cosine, error):
  """The cheapest rules by what was measured of each weight, then measured whole."""

  def reaches(now):
    if now.lost:
      return False
    return now.error <= error if cosine is None else now.cosine >= cosine

  if reaches(found.together):
    return list(found.given)
  own, options = {}, {}
  for path, weight in found.weights.items():
    own[path] = _Option(weight.scheme, found.square(path), weight.bytes)
    options[path] = _options(found, path)
  # The budget of squared errors follows from what they are together.
  measured = found.together.error**2, error and error**2
  if cosine is not None:
    measured = 1 - found.together.cosine, 1 - cosine
  apart = sum(option.square for option in own.values())
  known = math.isfinite(apart) and not found.together.lost and measured[0] > 0
  budget = apart * measured[1] / measured[0] if known else measured[1]
  for _ in range(_TRIES):
    now = _within(budget, own, options)
    if all(option.scheme is None for option in now.values()):
      break
    rules = _with_exceptions(found, now)
    if reaches(found.measure(rules)):
      return rules
    budget *= _TIGHTER
  raise ValueError(
    f'Hardly anything but floats reaches that: as the rules are, there is'
    f' {found.together}, and what was measured instead is not near enough. Ask for'
    ' less, or give other schemes, others=, or more weights to examine.'
  )


def _within(budget, own, options) -> dict[str, _Option]:
  """Options whose squared errors are within a budget, for few bytes."""
  now = dict(own)

  def left():
    return sum(option.square for option in now.values())

  while left() > budget:
    path, option = _best_step(now, options)
    if path is None:
      break
    now[path] = option
  # The last steps may have done more than was needed.
  for path in sorted(now, key=lambda p: own[p].bytes - now[p].bytes):
    room = budget - left() + now[path].square
    fitting = [o for o in (own[path], *options[path]) if o.square <= room]
    if fitting:
      now[path] = min(fitting, key=lambda o: (o.bytes, o.square))
  return now


def _options(found, path) -> list[_Option]:
  """What a weight may have instead, floats last."""
  (scheme, size, floats), whole = found.weights[path], []
  weights = [(scheme.weight, found.square(path, 'weight'), size)]
  acts = [(scheme.act, found.square(path, 'activations'))]
  for row in found.better:
    if row.weight != path:
      continue
    square = row.error**2
    if row.part == 'weight':
      weights.append((spec_lib.parse(row.format), square, row.bytes))
    elif row.part == 'activations':
      acts.append((spec_lib.parse(row.format, 'token'), square))
    else:
      whole.append(_Option(schemes_lib.scheme(row.format), square, row.bytes))
  parts = [
    _Option(schemes_lib.Scheme(w, a), of_weight + of_act, of_bytes)
    for w, of_weight, of_bytes in weights
    for a, of_act in acts
  ]
  return [*whole, *parts, _Option(None, 0.0, floats)]


def _best_step(now, options) -> tuple[str | None, _Option | None]:
  """(weight, what it gets) that takes most of the squared error away for a byte."""
  best, gain = (None, None), 0.0
  for path, old in now.items():
    for new in options[path]:
      less = old.square - new.square
      more = max(new.bytes - old.bytes, 1)
      if new.scheme != old.scheme and less > 0 and less / more > gain:
        best, gain = (path, new), less / more
  return best


def _with_exceptions(found, now) -> list[tuple[str, Any]]:
  """The rules, and before them those of weights that have another scheme now."""
  exceptions = [
    (re.escape(path), option.scheme and schemes_lib.words(option.scheme))
    for path, option in now.items()
    if option.scheme != found.weights[path].scheme
  ]
  # All that a rule matches may be taken by exceptions.
  return exceptions + [(rules_lib.Found(p), s) for p, s in found.given]
