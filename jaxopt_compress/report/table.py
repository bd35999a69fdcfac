"""Tables of records, for the terminal and for markdown.

'-' was not measured; 'nan' was measured and is not a number.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
import re
from typing import Any

from jaxopt_compress.report import channels as channels_lib
from jaxopt_compress.report import records

Columns = Sequence[tuple[str, Callable[[Any], str]]]


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
  """The first table: one row a stage.

  'smaller' is the memory of the first stage over that of this one. '(0.5x)' after a
  latency is the speed relative to the float program.
  """
  first = next((r.bytes_memory for r in rows if r.bytes_memory), None)
  batches = sorted({b for r in rows for b in r.latency})
  metrics = {r.metric for r in rows if r.value is not None}
  # One metric heads its column; several are named in each cell.
  shared = metrics.pop() if len(metrics) == 1 else None
  columns = [
    ('stage', lambda r: r.name),
    (shared or 'metric', lambda r: _metric(r, named=shared is None)),
    ('agreement', lambda r: number(r.agreement, '.2%')),
    ('KL', lambda r: number(r.kl, '.4f')),
    ('parameters', lambda r: number(r.parameters, ',')),
    ('memory', lambda r: quantity(r.bytes_memory, 'B')),
    ('smaller', lambda r: _smaller(first, r.bytes_memory)),
    ('disk', lambda r: quantity(r.bytes_disk, 'B')),
    ('zeros', lambda r: number(r.sparsity, '.1%')),
    ('FLOPs', lambda r: quantity(r.flops)),
  ]
  for b in batches:
    columns.append((f'ms, batch {b}', lambda r, b=b: _timing(r.latency.get(b))))
  return _table(columns, rows, style)


def answers(rows: Sequence[records.Answers], style: str = 'text') -> str:
  """The table of answers: what each stage says, beside what its teacher says."""
  ks = sorted({k for r in rows for k in r.agreement})
  columns = [
    ('stage', lambda r: r.name),
    ('cross entropy', lambda r: number(r.loss, '.4f')),
    ('calibration error', lambda r: number(r.calibration, '.2%')),
  ]
  # Only what was measured has a column.
  if any(r.against for r in rows):
    columns += [
      ('against', lambda r: r.against or '-'),
      ('its cross entropy', lambda r: number(r.against_loss, '.4f')),
    ]
  for k in ks:
    columns.append(
      (
        f'agreement@{k}',
        lambda r, k=k: number(r.agreement.get(k), '.2%'),
      )
    )
  if any(r.kl is not None for r in rows):
    columns.append(('KL at T=1', lambda r: number(r.kl, '.4f')))
  return _table(columns, rows, style)


def coverage(rows: Sequence[records.LeafRecord], style: str = 'text') -> str:
  """The coverage table: one row a leaf."""
  columns = [
    ('leaf', lambda r: r.path),
    ('shape', lambda r: 'x'.join(map(str, r.shape)) or 'scalar'),
    ('format', lambda r: r.format),
    ('bits/weight', lambda r: number(r.bits_per_weight, '.3g')),
    ('bytes', lambda r: number(r.bytes, ',')),
    ('zeros', lambda r: number(r.sparsity, '.1%')),
    ('error dB', lambda r: _decibels(r.error_db)),
    ('runs', _runs),
    ('meets', lambda r: ', '.join(r.operations) or '-'),
  ]
  return _table(columns, rows, style)


def channels(rows: Sequence[records.GroupRecord], style: str = 'text') -> str:
  """The table of channels: one row a group, and a strip of those that stay."""
  columns = [
    ('group', lambda r: r.name),
    ('leaves', lambda r: number(r.leaves, ',')),
    ('before', lambda r: number(r.before, ',')),
    ('after', lambda r: number(r.after, ',')),
    ('stay', lambda r: channels_lib.strip(r.kept)),
    ('exact', _exact),
  ]
  if any(r.asked not in (None, r.after) for r in rows):
    asked = ('asked', lambda r: number(r.asked, ','))
    columns.insert(4, asked)
  return _table(columns, rows, style)


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


def _table(columns: Columns, rows, style) -> str:
  headers = [name for name, _ in columns]
  cells = [[str(cell(r)) for _, cell in columns] for r in rows]
  return render(headers, cells, style)


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
