"""The page: report.html, one file that needs nothing else.

Style and script are `page.css` and `page.js`, put into it. Without the script it is
complete: tables are sorted as they were made, and tips are those of the browser.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import html
import math
import pathlib
from typing import Any

from jaxopt_compress.report import findings
from jaxopt_compress.report import pays
from jaxopt_compress.report import svg
from jaxopt_compress.report import table

_HERE = pathlib.Path(__file__).parent
# Nothing may be loaded: what is in the file is all there is.
_POLICY = (
  "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


@dataclasses.dataclass(frozen=True)
class Figure:
  """Panels that are shown together.

  Attributes:
    name: of its file, and of its place on the page.
    title: what it shows.
    panels: side by side.
  """

  name: str
  title: str
  panels: Sequence[svg.Panel]


def page(
  report: Any,
  *,
  figures: Sequence[Figure] = (),
  remarks: Sequence[str] = (),
  against: Sequence[str] = (),
) -> str:
  """The whole page.

  Args:
    report: a `page.Report`.
    figures: what is drawn.
    remarks: sentences behind the tables.
    against: what columns of the table of answers mean.
  """
  drawn = {f.name: _figure(f) for f in figures}
  sections = {
    'Stages': [drawn.get('metric', ''), *_stages(report)],
    'Training': [drawn.get('losses', ''), drawn.get('validation', '')],
    'Answers': [*_answers(report, against), drawn.get('calibration', '')],
    'Remarks': [_items(remarks, 'said')],
    'Also measured': _facts(report),
    'Channels': [drawn.get('channels', ''), *_channels(report)],
    'Leaves': [
      drawn.get('layers', ''),
      *_leaves(report),
      drawn.get('weights', ''),
    ],
  }
  sections = {name: ''.join(parts) for name, parts in sections.items()}
  sections = {name: inside for name, inside in sections.items() if inside}
  style, script = (
    (_HERE / f'page.{kind}').read_text(encoding='utf-8')
    for kind in ('css', 'js')
  )
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
    f'{_tag("title", html.escape(report.title))}\n'
    f'<style>\n{style}</style>\n</head>\n<body>\n'
    f'{_head(report, sections)}\n<main>\n{_verdict(report)}\n'
    + '\n'.join(
      f'<section id="{_id(name)}">\n<h2>{name}</h2>\n{inside}\n</section>'
      for name, inside in sections.items()
    )
    + f'\n</main>\n{_foot(report)}\n<script>\n{script}</script>\n</body>\n</html>\n'
  )


def _head(report, sections) -> str:
  parts = {_id(name): name for name in sections}
  parts['foot'] = 'Command and machine'
  links = ''.join(_tag('a', n, href=f'#{id}') for id, n in parts.items())
  return (
    f'<header>{_tag("h1", html.escape(report.title))}'
    '<button type="button" class="theme" hidden></button></header>\n'
    f'<nav aria-label="Parts of this page">{links}</nav>'
  )


def _verdict(report) -> str:
  """What a reader wants to know first, and what should not be missed."""
  said = pays.best(report.stages, report.reference)
  parts = [_tag('p', html.escape(said), class_='verdict')] if said else []
  found, reference = pays.smallest(report.stages, report.reference)
  if found is not None:
    parts.append(_tiles(found, reference))
  unpaid = pays.unpaid(report.stages, report.coverage, report.reference)
  if unpaid:
    items = ''.join(
      _tag('li', f'{_tag("b", html.escape(name))}: {html.escape(said)}.')
      for name, sentences in unpaid.items()
      for said in ['; '.join(sentences)]
    )
    parts.append(
      '<section class="unpaid"><h2>What did not pay</h2>'
      f'<ul>{items}</ul></section>'
    )
  return '\n'.join(parts)


def _tiles(found, reference) -> str:
  """The figures of the verdict, large."""
  tiles = [
    (
      f'{reference.bytes_memory / found.bytes_memory:.3g}x smaller',
      f'{table.quantity(found.bytes_memory, "B")} in memory',
    ),
    (
      table.number(found.value, found.spec),
      f'{found.metric}; {reference.name}'
      f' {table.number(reference.value, reference.spec)}',
    ),
  ]
  for batch, t in sorted(found.latency.items()):
    if t.speed is not None and math.isfinite(t.speed):
      unsure = ', within the noise' * (findings.verdict(t) == 'same')
      said = f'of {t.against} at batch {batch}, {t.median_ms:.3g} ms{unsure}'
      tiles.append((f'{t.speed:.2f}x the speed', said))
  items = ''.join(
    _tag('li', _tag('b', html.escape(a)), _tag('span', html.escape(b)))
    for a, b in tiles
  )
  return f'<ul class="tiles">{items}</ul>'


def _stages(report) -> list[str]:
  if not report.stages:
    return []
  smaller = (
    "'smaller' compares memory with that of the first stage; (0.5x) behind a"
    ' latency is the speed relative to the float program.'
  )
  return [_table('Stages', table.of_stages(report.stages), report.stages,
                 note=smaller,
                 first=report.reference or report.stages[0].name)]  # fmt: skip


def _answers(report, against) -> list[str]:
  if not report.answers:
    return []
  columns = table.of_answers(report.answers)
  note = ' '.join(against)
  return [_table('Answers on held-out examples', columns, report.answers, note)]


def _facts(report) -> list[str]:
  if not report.facts:
    return []
  columns = [
    table.Column('what', lambda item: str(item[0])),
    table.Column('value', lambda i: '-' if i[1] is None else str(i[1])),
  ]
  return [_table('Also measured', columns, list(report.facts.items()))]


def _channels(report) -> list[str]:
  return [
    _folded(
      name,
      f'{len(rows)} groups of channels changed',
      _table(f'Channels of {name}', table.of_channels(rows), rows),
    )
    for name, rows in report.channels.items()
  ]


def _leaves(report) -> list[str]:
  return [
    _folded(
      name,
      f'{len(rows)} leaves, {sum(r.compressed for r in rows)} compressed',
      _table(f'Leaves of {name}', table.LEAVES, rows),
    )
    for name, rows in report.coverage.items()
  ]


def _folded(name, said, inside) -> str:
  head = f'{html.escape(name)} <span>{html.escape(said)}</span>'
  return f'<details>{_tag("summary", head)}{inside}</details>'


def _table(caption, columns, rows, note='', first='') -> str:
  """A table; the row that is called `first` stands out.

  Columns in which nothing was measured are left out.
  """
  columns = [c for c in columns if any(c.show(r) != '-' for r in rows)]
  classes = ['number' if c.sort else None for c in columns]
  heads = ''.join(
    _tag('th', html.escape(c.name), scope='col', class_=kind)
    for c, kind in zip(columns, classes, strict=True)
  )
  body = []
  for row in rows:
    texts = [c.show(row) for c in columns]
    marks = ['bad' if c.bad and c.bad(row) else None for c in columns]
    cells = [
      _tag(
        'td' if i else 'th',
        html.escape(text),
        class_=' '.join(filter(None, (kind, mark))) or None,
        scope=None if i else 'row',
        data_value=_value(column, row, text),
      )
      for i, (column, text, kind, mark) in enumerate(
        zip(columns, texts, classes, marks, strict=True)
      )
    ]
    known = bool(first) and texts[0] == first
    body.append(_tag('tr', *cells, class_='first' if known else None))
  # It says what the heading says, and is for those who hear it.
  label = _tag('caption', html.escape(caption), class_='unseen')
  above = _tag('p', html.escape(note), class_='note') if note else ''
  return (
    f'{above}<div class="wide" tabindex="0"><table class="sortable">{label}'
    f'<thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
  )


def _value(column, row, text) -> str:
  """What the script sorts by; '' is missing, and so is what is no number."""
  if column.sort is None:
    return '' if text == '-' else text
  value = column.sort(row)
  if value is None or math.isnan(value):
    return ''
  if math.isinf(value):
    return 'Infinity' if value > 0 else '-Infinity'
  return repr(value)


def _figure(figure) -> str:
  small = all(panel.width < 400 for panel in figure.panels)
  panels = ''.join(panel.inline() for panel in figure.panels)
  return (
    f'<figure id="figure-{_id(figure.name)}"><figcaption class="note">'
    f'{html.escape(figure.title)}</figcaption>'
    f'<div class="panels{" small" * small}" tabindex="0">{panels}</div></figure>'
  )


def _items(sentences, kind) -> str:
  if not sentences:
    return ''
  items = ''.join(_tag('li', html.escape(s)) for s in sentences)
  return f'<ul class="{kind}">{items}</ul>'


def _foot(report) -> str:
  """How it was made: the command, and the machine."""
  environment = dict(report.environment or {})
  command = environment.pop('command', None)
  parts = ['<footer id="foot">']
  if command:
    code = _tag('code', html.escape(str(command)))
    parts.append(f'<h2>Command</h2><pre tabindex="0">{code}</pre>')
  if environment:
    listed: Mapping[str, Any] = environment
    items = ''.join(
      f'<div>{_tag("dt", html.escape(str(k)))}{_tag("dd", html.escape(str(v)))}</div>'
      for k, v in listed.items()
    )
    parts.append(f'<h2>Machine</h2><dl>{items}</dl>')
  return ''.join([*parts, '</footer>'])


def _id(name) -> str:
  return html.escape(name.lower().replace(' ', '-'))


def _tag(name, *inside, **attributes) -> str:
  """An element of HTML, which is closed also where it is empty."""
  made = svg.tag(name, *inside, **attributes)
  return f'{made[:-2]}></{name}>' if made.endswith('/>') else made
