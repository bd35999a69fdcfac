"""Where the names of points are written, so that none covers another or a point."""

from collections.abc import Sequence

from jaxopt_compress.report import svg

_HIGH = 14.0  # of a line of text
Box = tuple[float, float, float, float]  # left, top, right, bottom


def beside(
  points: Sequence[tuple[float, float]],
  names: Sequence[str],
  width: float,
  taken: Sequence[Box] = (),
) -> str:
  """Names near their points; one that is moved away is joined to its point.

  Each takes the first free place of those around its point, near ones first.

  Args:
    points: in pixels.
    names: one for each.
    width: of the drawing; no name goes over its edge where another place is free.
    taken: where something is written already.
  """
  taken = [*taken, *((x - 7, y - 7, x + 7, y + 7) for x, y in points)]
  drawn = []
  for (x, y), name in zip(points, names, strict=True):
    places = list(_places(x, y, svg.wide(name)))
    free = (p for p in places if not _meets(p, taken, width))
    # Where all is full, over another name rather than over the edge.
    inside = (p for p in places if not _meets(p, (), width))
    place = next(free, next(inside, places[0]))
    taken.append(place)
    left, top, _, bottom = place
    middle = (top + bottom) / 2
    if abs(middle - y) > 1.5 * _HIGH:
      end = left - 2 if left > x else place[2] + 2
      drawn.append(svg.line(x, y, end, middle))
    drawn.append(svg.text(left, bottom - 3, name))
  return ''.join(drawn)


def above(
  x: svg.Scale, y: float, words: str, points: Sequence[tuple[float, float]]
) -> Box:
  """Where words stand above a line across: at its end, or where points are not."""
  ends = x.end - svg.wide(words), x.start + 4
  boxes = [(left, y - 18, left + svg.wide(words), y) for left in ends]
  around = [_box(px - 7, py, 14) for px, py in points]
  free = (b for b in boxes if not _meets(b, around, x.end + 1))
  return next(free, boxes[0])


def _places(x, y, wide):
  """Boxes around a point: right, left, above, below, then further up and down."""
  right, left = x + 10, x - 10 - wide
  yield _box(right, y, wide)
  yield _box(left, y, wide)
  for side in (-1, 1):
    yield _box(x - wide / 2, y + side * 16, wide)
  for rows in range(1, 9):
    for side in (-1, 1):
      for start in (right, left):
        yield _box(start, y + side * rows * _HIGH, wide)


def _box(left, middle, wide) -> Box:
  return left, middle - _HIGH / 2, left + wide, middle + _HIGH / 2


def _meets(box, taken, width) -> bool:
  left, top, right, bottom = box
  if left < 0 or right > width or top < 0:
    return True
  return any(
    left < other[2]
    and right > other[0]
    and top < other[3]
    and bottom > other[1]
    for other in taken
  )
