"""Pictures as text: elements, scales and axes of SVG, drawn without a library.

Colours are words of `page.css`, such as `var(--ink)`, so that one picture is light or
dark with its page. A mark may carry a tip, an element `title`, which browsers show
under the pointer.

>>> tag('circle', cx=1.5, r=2, fill='red')
'<circle cx="1.5" r="2" fill="red"/>'
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import html
import math
import pathlib
import re

# Series are told apart by colour and by shape.
COLOURS = 7
SHAPES = ('circle', 'square', 'diamond', 'up', 'down', 'cross', 'plus')
# Half the sides of a mark, and about the width of a character, in pixels.
_SIDE, _CHARACTER = 5.0, 6.8
_STYLE = pathlib.Path(__file__).with_name('page.css')


@dataclasses.dataclass(frozen=True)
class Panel:
  """A drawing of a size in pixels; `label` says what it shows."""

  width: float
  height: float
  marks: str
  label: str

  def inline(self) -> str:
    """For a page, which has the colours."""
    return tag(
      'svg',
      self.marks,
      viewBox=f'0 0 {_number(self.width)} {_number(self.height)}',
      # Larger than drawn where there is room, within reason.
      style=f'max-width: {_number(1.2 * self.width)}px',
      role='img',
      aria_label=self.label,
    )


def tag(name: str, *inside: str, **attributes: object) -> str:
  """An element; `inside` is markup, attributes are escaped. `_` is written `-`."""
  said = ''.join(
    f' {key.rstrip("_").replace("_", "-")}="{html.escape(_number(value))}"'
    for key, value in attributes.items()
    if value is not None
  )
  body = ''.join(inside)
  return f'<{name}{said}>{body}</{name}>' if body else f'<{name}{said}/>'


def text(x: float, y: float, words: str, tip: str = '', **attributes) -> str:
  """A line of text."""
  attributes = {'fill': 'var(--ink)'} | attributes
  inside = html.escape(words) + tip_of(tip)
  return tag('text', inside, x=x, y=y, **attributes)


def tip_of(words: str) -> str:
  """What a browser shows where the pointer rests on the element around it."""
  return tag('title', html.escape(words)) if words else ''


def line(x1, y1, x2, y2, stroke='var(--line)', **attributes) -> str:
  """A line between two points."""
  return tag(
    'path',
    d=f'M{_number(x1)} {_number(y1)}L{_number(x2)} {_number(y2)}',
    stroke=stroke,
    **attributes,
  )


def lines(points: Sequence[tuple[float, float]], stroke: str, **attrs) -> str:
  """A line through points."""
  d = 'M' + 'L'.join(f'{_number(x)} {_number(y)}' for x, y in points)
  return tag('path', d=d, stroke=stroke, fill='none', **attrs)


def rect(x, y, width, height, fill, tip='', **attributes) -> str:
  """A box; a width or height below 0, of rounding errors, is none."""
  return tag(
    'rect',
    tip_of(tip),
    x=x,
    y=y,
    width=max(width, 0),
    height=max(height, 0),
    fill=fill,
    **attributes,
  )


def mark(i: int, x: float, y: float, tip: str = '') -> str:
  """The mark of the i-th series."""
  s, q = _SIDE, _SIDE / 2.5
  shape = SHAPES[i % len(SHAPES)]
  corners = {
    'square': [(-s, -s), (s, -s), (s, s), (-s, s)],
    'diamond': [(0, -1.4 * s), (1.4 * s, 0), (0, 1.4 * s), (-1.4 * s, 0)],
    'up': [(0, -1.2 * s), (1.2 * s, s), (-1.2 * s, s)],
    'down': [(0, 1.2 * s), (1.2 * s, -s), (-1.2 * s, -s)],
  }.get(shape)
  style = dict(fill=colour(i), stroke='var(--paper)', stroke_width=1)
  if shape == 'circle':
    return tag('circle', tip_of(tip), cx=x, cy=y, r=s, **style)
  if corners is None:  # Two bars, upright or turned.
    arms = [(-s, q), (s, q), (s, -q), (-s, -q)]
    ring = [(-q, s), (q, s), (q, -s), (-q, -s)]
    d = ''.join(_ring(x, y, part) for part in (arms, ring))
    turned = f'rotate(45 {_number(x)} {_number(y)})'
    style |= dict(transform=turned if shape == 'cross' else None, stroke=None)
    return tag('path', tip_of(tip), d=d, **style)
  return tag('path', tip_of(tip), d=_ring(x, y, corners), **style)


def colour(i: int) -> str:
  """The colour of the i-th series."""
  return f'var(--series-{i % COLOURS})'


def legend(x: float, y: float, names: Sequence[str], width: float) -> str:
  """Marks and names of series, in rows of at most `width` pixels."""
  drawn, left = [], x
  for i, name in enumerate(names):
    wide = 28 + _CHARACTER * len(name)
    if left > x and left + wide > x + width:
      left, y = x, y + 18
    drawn += [mark(i, left + 6, y), text(left + 16, y + 4, name)]
    left += wide
  return ''.join(drawn)


def legend_height(names: Sequence[str], width: float) -> float:
  """Of what `legend` draws, in pixels."""
  rows, left = 1, 0.0
  for name in names:
    wide = 28 + _CHARACTER * len(name)
    if left and left + wide > width:
      rows, left = rows + 1, 0.0
    left += wide
  return 18.0 * rows


def wide(words: str) -> float:
  """About how many pixels a text takes."""
  return _CHARACTER * len(words)


# ----------------------------------------------------------------------- scales


@dataclasses.dataclass(frozen=True)
class Scale:
  """Where a number lies between two pixels; `log`: by its logarithm.

  >>> Scale(0, 10, 100, 200)(5), Scale(1, 100, 0, 1, log=True)(10)
  (150.0, 0.5)
  """

  low: float
  high: float
  start: float
  end: float
  log: bool = False

  def __call__(self, value: float) -> float:
    low, high, value = map(self._moved, (self.low, self.high, value))
    span = high - low or 1.0
    return self.start + (self.end - self.start) * (value - low) / span

  def _moved(self, x):
    return math.log10(x) if self.log else x

  def ticks(self, most: int = 6) -> list[float]:
    """Round numbers within the scale, about `most` of them.

    >>> Scale(0, 10, 0, 1).ticks(), Scale(20, 5000, 0, 1, log=True).ticks(3)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [100.0, 1000.0])
    """
    if self.log:
      tens = range(
        math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
      )
      for steps in ((1, 2, 5), (1,)):
        found = [s * 10.0**n for n in tens for s in steps]
        found = [x for x in found if self.low <= x <= self.high]
        if len(found) <= most + 2:
          break
      every = -(-len(found) // (most + 2)) or 1
      if len(found) > 1:
        return found[::every]
    if not self.high > self.low:
      return [self.low]
    least = (self.high - self.low) / most
    ten = 10.0 ** math.floor(math.log10(least))
    step = next(s * ten for s in (1, 2, 2.5, 5, 10) if s * ten >= least * 0.999)
    first = math.ceil(self.low / step - 1e-9)
    last = math.floor(self.high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def frame(
  x: Scale,
  y: Scale,
  *,
  x_says: str,
  y_says: str,
  x_format: Callable[[float], str],
  y_format: Callable[[float], str],
  ticks: int = 6,
) -> str:
  """Grid, numbers and names of two axes."""
  drawn = []
  for value in x.ticks(ticks):
    at = x(value)
    drawn.append(line(at, y.start, at, y.end))
    drawn.append(
      text(at, y.start + 18, x_format(value), text_anchor='middle', **_FAINT)
    )
  for value in y.ticks(ticks):
    at = y(value)
    drawn.append(line(x.start, at, x.end, at))
    drawn.append(
      text(x.start - 8, at + 4, y_format(value), text_anchor='end', **_FAINT)
    )
  middle = (x.start + x.end) / 2
  drawn.append(
    text(middle, y.start + 38, x_says, text_anchor='middle', **_FAINT)
  )
  # Above the axis, where it is read without turning the head.
  drawn.append(text(x.start, y.end - 10, y_says, **_FAINT))
  return ''.join(drawn)


_FAINT = dict(fill='var(--soft)')


# ------------------------------------------------------------------------ files


def standalone(panels: Sequence[Panel], across: int = 3) -> str:
  """One file of panels, in rows, on light paper: for viewers that know no styles."""
  across = min(across, len(panels))
  rows = [panels[i : i + across] for i in range(0, len(panels), across)]
  drawn, top, right = [], 0.0, 0.0
  for row in rows:
    left = 0.0
    for panel in row:
      place = f'translate({_number(left)} {_number(top)})'
      drawn.append(tag('g', panel.marks, transform=place))
      left += panel.width
    right = max(right, left)
    top += max(panel.height for panel in row)
  whole = tag(
    'svg',
    rect(0, 0, right, top, 'var(--paper)'),
    *drawn,
    xmlns='http://www.w3.org/2000/svg',
    viewBox=f'0 0 {_number(right)} {_number(top)}',
    width=right,
    height=top,
    font_family='sans-serif',
    font_size=12,
  )
  light = dict(
    re.findall(r'--([\w-]+): light-dark\((#\w+),', _STYLE.read_text())
  )
  return re.sub(r'var\(--([\w-]+)\)', lambda found: light[found[1]], whole)


def _ring(x, y, corners) -> str:
  return (
    'M' + 'L'.join(f'{_number(x + a)} {_number(y + b)}' for a, b in corners)
  ) + 'Z'


def _number(value) -> str:
  """Hundredths of a pixel are enough."""
  if isinstance(value, float):
    return f'{value:.2f}'.rstrip('0').rstrip('.')
  return str(value)
