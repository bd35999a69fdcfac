"""Tables of records, for the terminal, for markdown and for a page.

'-' was not measured; 'nan' was measured and is not a number.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

from jaxopt_compress.report import channels as channels_lib
from jaxopt_compress.report import findings
from jaxopt_compress.report import records


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table of records.

  Attributes:
    name: its header.
    show: the text of the cell of a record.
    sort: by what a page sorts it, a number or None; by its text without it.
    bad: whether a page marks the cell of a record: a leaf that is made dense, a
      latency that is slower.
  """

  name: str
  show: Callable[[Any], str]
  sort: Callable[[Any], float | int | None] | None = None
  bad: Callable[[Any], bool] | None = None


def render(
  headers: Sequence[str], rows: Sequence[Sequence[str]], style: str = 'text'
) -> str:
  """Cells as aligned text, with columns of quantities to the right.

  Args:
    headers: names of the columns.
    rows: of cells, one for each header.
    style: 'text' for the terminal, 'markdown'.

  >>> print(render(['name', 'bytes'], [['w', '1,024'], ['b', '-']]))
  name  bytes
  ----  -----
  w     1,024
  b         -
  """
  if style not in ('text', 'markdown'):
    raise ValueError(f"style is 'text' or 'markdown', not {style!r}.")
  if style == 'markdown':
    rows = [[cell.replace('|', r'\|') for cell in row] for row in rows]
  columns = list(zip(headers, *rows, strict=True))
  widths = [max(3, *map(len, column)) for column in columns]
  right = [all(map(_is_number, column[1:])) for column in columns]

  def line(cells):
    cells = [
      cell.rjust(n) if r else cell.ljust(n)
      for cell, n, r in zip(cells, widths, right, strict=True)
    ]
    if style == 'markdown':
      return '| ' + ' | '.join(cells) + ' |'
    return '  '.join(cells).rstrip()

  # Markdown needs three dashes at least, and a colon where a column is to the right.
  dashes = ['-' * n for n in widths]
  if style == 'markdown':
    dashes = [
      d[:-1] + (':' if r else '-') for d, r in zip(dashes, right, strict=True)
    ]
  return '\n'.join([line(headers), line(dashes), *map(line, rows)])


def stages(rows: Sequence[records.StageRecord], style: str = 'text') -> str:
  """The first table: one row a stage."""
  return _table(of_stages(rows), rows, style)


def of_stages(rows: Sequence[records.StageRecord]) -> list[Column]:
  """The columns of the first table.

  'smaller' is the memory of the first stage over that of this one. '(0.5x)' after a
  latency is the speed relative to the float program.
  """
  first = next((r.bytes_memory for r in rows if r.bytes_memory), None)
  batches = sorted({b for r in rows for b in r.latency})
  metrics = {r.metric for r in rows if r.value is not None}
  # One metric heads its column; several are named in each cell.
  shared = metrics.pop() if len(metrics) == 1 else None
  columns = [
    Column('stage', lambda r: r.name),
    Column(
      shared or 'metric',
      lambda r: _metric(r, named=shared is None),
      lambda r: r.value,
    ),
    *_against(rows),
    _number('parameters', 'parameters', ','),
    _quantity('memory', 'bytes_memory', 'B'),
    Column(
      'smaller',
      lambda r: _smaller(first, r.bytes_memory),
      lambda r: first / r.bytes_memory if first and r.bytes_memory else None,
    ),
    _quantity('disk', 'bytes_disk', 'B'),
    _number('zeros', 'sparsity', '.1%'),
    _quantity('FLOPs', 'flops'),
  ]
  for b in batches:
    columns.append(
      Column(
        f'ms, batch {b}',
        lambda r, b=b: _timing(r.latency.get(b)),
        lambda r, b=b: r.latency[b].median_ms if b in r.latency else None,
        lambda r, b=b: _slower(r.latency.get(b), r.name),
      )
    )
  return columns


def _against(rows) -> list[Column]:
  """How close answers are to the reference's: of classes, or of other numbers."""
  if any(r.difference is not None for r in rows):
    return [_number('difference', 'difference', '.4g')]
  return [_number('agreement', 'agreement', '.2%'), _number('KL', 'kl', '.4f')]


def answers(rows: Sequence[records.Answers], style: str = 'text') -> str:
  """The table of answers: what each stage says, beside what its teacher says."""
  return _table(of_answers(rows), rows, style)


def of_answers(rows: Sequence[records.Answers]) -> list[Column]:
  """The columns of the table of answers."""
  ks = sorted({k for r in rows for k in r.agreement})
  loss = rows[0].loss_name if rows else 'loss'
  columns = [
    Column('stage', lambda r: r.name),
    _number(loss, 'loss', '.4f'),
  ]
  for name in dict.fromkeys(n for r in rows for n in r.numbers):
    columns.append(
      Column(
        name,
        lambda r, n=name: number(r.numbers.get(n), r.specs.get(n, '.4g')),
        lambda r, n=name: r.numbers.get(n),
      )
    )
  # Only what was measured has a column.
  if loss == 'cross entropy':
    columns.append(_number('calibration error', 'calibration', '.2%'))
  if any(r.against for r in rows):
    columns += [
      Column('against', lambda r: r.against or '-'),
      _number(f'its {loss}', 'against_loss', '.4f'),
    ]
  for k in ks:
    columns.append(
      Column(
        f'agreement@{k}',
        lambda r, k=k: number(r.agreement.get(k), '.2%'),
        lambda r, k=k: r.agreement.get(k),
      )
    )
  if any(r.difference is not None for r in rows):
    columns.append(_number('difference', 'difference', '.4g'))
  if any(r.kl is not None for r in rows):
    columns.append(_number('KL at T=1', 'kl', '.4f'))
  return columns


def coverage(rows: Sequence[records.LeafRecord], style: str = 'text') -> str:
  """The coverage table: one row a leaf."""
  return _table(LEAVES, rows, style)


def channels(rows: Sequence[records.GroupRecord], style: str = 'text') -> str:
  """The table of channels: one row a group, and a strip of those that stay."""
  return _table(of_channels(rows), rows, style)


def of_channels(rows: Sequence[records.GroupRecord]) -> list[Column]:
  """The columns of the table of channels."""
  columns = [
    Column('group', lambda r: r.name),
    _number('leaves', 'leaves', ','),
    _number('before', 'before', ','),
    _number('after', 'after', ','),
    Column(
      'stay',
      lambda r: channels_lib.strip(r.kept),
      lambda r: r.after / r.before if r.before else None,
    ),
    Column('exact', _exact),
  ]
  if any(r.asked not in (None, r.after) for r in rows):
    columns.insert(4, _number('asked', 'asked', ','))
  return columns


def facts(values: Mapping[str, Any], style: str = 'text') -> str:
  """Two columns: what, and how much."""
  rows = [[str(k), '-' if v is None else str(v)] for k, v in values.items()]
  return render(['', 'value'], rows, style)


def number(x: float | int | None, spec: str) -> str:
  """`x` formatted, '-' if it is missing, a word if it is not finite.

  >>> number(0.9512, '.1%'), number(None, '.1%'), number(math.nan, '.1%')
  ('95.1%', '-', 'nan')
  """
  if x is None:
    return '-'
  if not math.isfinite(x):
    return str(float(x))
  return format(x, spec)


def quantity(x: float | int | None, unit: str = '') -> str:
  """Three digits and a power of a thousand.

  >>> quantity(123456, 'B'), quantity(999, 'B'), quantity(1.5e9)
  ('123 kB', '999 B', '1.5 G')
  """
  if x is None or not math.isfinite(x):
    return number(x, '')
  # Rounded before it is compared: 999,999 is 1 MB, not 1e+03 kB.
  for prefix in ('', 'k', 'M', 'G', 'T', 'P'):
    digits = f'{x:.3g}'
    if abs(float(digits)) < 1000 or prefix == 'P':
      break
    x /= 1000
  return f'{digits} {prefix}{unit}'.strip()


def _table(columns: Sequence[Column], rows, style) -> str:
  headers = [c.name for c in columns]
  return render(headers, [[c.show(r) for c in columns] for r in rows], style)


def _number(name, field, spec) -> Column:
  """A field of a record as a number."""
  return Column(
    name,
    lambda r: number(getattr(r, field), spec),
    lambda r: getattr(r, field),
  )


def _quantity(name, field, unit='') -> Column:
  """A field of a record with a power of a thousand."""
  return Column(
    name,
    lambda r: quantity(getattr(r, field), unit),
    lambda r: getattr(r, field),
  )


def _exact(r) -> str:
  # The line of the program is in report.json: a cell has no room for it.
  return f'no: {r.inexact[0].partition(" at ")[0]}' if r.inexact else 'yes'


def _metric(r, named) -> str:
  value = number(r.value, r.spec)
  return f'{r.metric} {value}' if named and r.value is not None else value


def _smaller(first, own) -> str:
  return f'{first / own:.3g}x' if first and own else '-'


def _timing(t) -> str:
  if t is None:
    return '-'
  speed = '' if t.speed is None else f' ({number(t.speed, ".2f")}x)'
  return f'{number(t.median_ms, ".3g")}{speed}'


def _slower(t, stage) -> bool:
  if t is None or t.speed is None or t.against == stage:
    return False
  return findings.verdict(t) == 'slower'


def _decibels(x) -> str:
  return 'exact' if x == math.inf else number(x, '.1f')


def _runs(r) -> str:
  if r.native is None:
    return r.reason or '-'
  if r.native:
    return 'native'
  return f'densified ({r.reason})' if r.reason else 'densified'


def _is_number(cell) -> bool:
  """Whether a cell is a quantity, and so aligned to the right."""
  if cell in ('-', 'nan', 'inf', '-inf', 'exact'):
    return True
  # Digits, an exponent, a unit of at most two letters, a speed in brackets.
  return (
    re.fullmatch(r'-?[\d.,]+(e[+-]?\d+)?( ?[%a-zA-Z]{0,2})( \(.*x\))?', cell)
    is not None
  )


# The columns of the coverage table.
LEAVES = (
  Column('leaf', lambda r: r.path),
  Column(
    'shape',
    lambda r: 'x'.join(map(str, r.shape)) or 'scalar',
    lambda r: math.prod(r.shape),
  ),
  Column('format', lambda r: r.format),
  _number('bits/weight', 'bits_per_weight', '.3g'),
  _number('bytes', 'bytes', ','),
  _number('zeros', 'sparsity', '.1%'),
  Column('error dB', lambda r: _decibels(r.error_db), lambda r: r.error_db),
  Column('runs', _runs, bad=lambda r: r.native is False),
  Column('meets', lambda r: ', '.join(r.operations) or '-'),
)
