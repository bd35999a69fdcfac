"""The pictures of a report: functions of records that return panels of SVG.

No panels: there was nothing to draw.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from jaxopt_compress.report import labels
from jaxopt_compress.report import pays
from jaxopt_compress.report import records
from jaxopt_compress.report import svg
from jaxopt_compress.report import table

_FAINT, _BLUE, _GREY = 'var(--soft)', 'var(--series-0)', 'var(--line)'


def metric_against_bytes(
  stages: Sequence[records.StageRecord], reference: str = ''
) -> list[svg.Panel]:
  """The metric over bytes in memory, one point for each stage, a panel a metric.

  Stages that lack one of the two are left out. A dashed line is as far from the
  reference as what still counts as good; see `pays.WITHIN`.
  """
  points = [r for r in stages if _finite(r.value) and r.bytes_memory]
  panels = []
  for metric in dict.fromkeys(r.metric for r in points):
    of_metric = [r for r in points if r.metric == metric]
    asked = next((r for r in of_metric if r.name == reference), None)
    panels.append(_scatter(of_metric, asked))
  return panels


def _scatter(points, reference):
  sizes = [r.bytes_memory for r in points]
  bar = pays.bar(reference) if reference else None
  values = [r.value for r in points] + ([bar] if bar is not None else [])
  room = 0.12 * (max(values) - min(values)) or 0.02 * abs(max(values)) or 0.1
  # The x axis is logarithmic, so its margin is a factor.
  x = svg.Scale(min(sizes) / 1.6, max(sizes) * 1.9, 84, 700, log=True)
  y = svg.Scale(min(values) - room, max(values) + room, 330, 34)
  first = points[0]
  better = 'higher' if first.higher_is_better else 'lower'
  drawn = [
    svg.frame(
      x,
      y,
      x_says='bytes in memory, log scale (left is smaller)',
      y_says=f'{first.metric} ({better} is better)',
      x_format=lambda v: table.quantity(v, 'B'),
      y_format=lambda v: table.number(v, first.spec),
    )
  ]
  at = [(x(r.bytes_memory), y(r.value)) for r in points]
  # The numbers of the axes.
  written = [(0, 0, x.start - 6, 380), (0, y.start + 2, 720, 380)]
  if bar is not None:
    said = f'within {pays.WITHIN:.0%} of {reference.name}'
    written.append(labels.above(x, y(bar), said, at))
    dashes = dict(stroke=_FAINT, stroke_dasharray='5 4')
    drawn.append(svg.line(x.start, y(bar), x.end, y(bar), **dashes))
    drawn.append(svg.text(written[-1][0], y(bar) - 5, said, fill=_FAINT))
  drawn += [
    svg.mark(i, *at[i], tip=_told(r, points[0])) for i, r in enumerate(points)
  ]
  names = [r.name for r in points]
  drawn.append(labels.beside(at, names, width=720, taken=written))
  return svg.Panel(
    720, 380, ''.join(drawn), f'{first.metric} of each stage over its bytes'
  )


def _told(r, first):
  said = f'{r.name}: {r.metric} {table.number(r.value, r.spec)}'
  said += f', {table.quantity(r.bytes_memory, "B")}'
  if r is not first:
    said += f', {first.bytes_memory / r.bytes_memory:.3g}x smaller'
  return said


def reliability(
  answers: Sequence[records.Answers], most: int = 12
) -> list[svg.Panel]:
  """The accuracy of answers over their confidence, one panel a stage.

  A bar is as high as the answers of its bin are right; on the diagonal they are as
  often right as they say. Darker bars have more answers. Guo et al. 2017,
  https://arxiv.org/abs/1706.04599, figure 1. Of more stages the first `most`.
  """
  shown = {r.name: r for r in answers if r.bins}
  return [_bars(r) for r in list(shown.values())[:most]]


def _bars(record):
  x, y = svg.Scale(0, 1, 46, 220), svg.Scale(0, 1, 190, 40)
  drawn = [
    svg.frame(
      x,
      y,
      x_says='confidence',
      y_says=f'{record.name}: error {table.number(record.calibration, ".2%")}',
      x_format='{:.2g}'.format,
      y_format='{:.2g}'.format,
      ticks=4,
    ),
    svg.line(x(0), y(0), x(1), y(1), stroke=_FAINT),
  ]
  largest = max([count for count, _, _ in record.bins if count > 0], default=1)
  for i, (count, confidence, right) in enumerate(record.bins):
    if not count > 0:
      continue
    left, end = i / len(record.bins), (i + 1) / len(record.bins)
    height, mean = right / count, confidence / count
    tip = f'{count:g} answers: {height:.1%} right, {mean:.1%} confident'
    # Most answers are in the last bin: the square root lets others be seen.
    shade = 0.25 + 0.75 * math.sqrt(count / largest)
    size = x(end) - x(left) - 1, y(0) - y(height)
    box = dict(fill=_BLUE, tip=tip, fill_opacity=shade)
    drawn.append(svg.rect(x(left), y(height), *size, **box))
    dot = dict(r=3, fill='var(--series-1)')
    drawn.append(
      svg.tag('circle', svg.tip_of(tip), cx=x(mean), cy=y(height), **dot)
    )
  said = f'accuracy over confidence of {record.name}'
  return svg.Panel(236, 236, ''.join(drawn), said)


def layers(
  coverage: Mapping[str, Sequence[records.LeafRecord]], most: int = 40
) -> list[svg.Panel]:
  """Sparsity and error of every leaf, one colour a stage.

  Leaves that no stage changed are left out; of the others the `most` largest are
  shown.
  """
  touched = {
    r.path: math.prod(r.shape)
    for rows in coverage.values()
    for r in rows
    if r.compressed
    or _finite(r.error_db)
    or (r.error_db is None and r.sparsity)
  }
  paths = sorted(touched, key=lambda p: -touched[p])[:most]
  order = {r.path: i for rows in coverage.values() for i, r in enumerate(rows)}
  paths.sort(key=order.get)
  drawn = {
    name: {r.path: r for r in rows if r.path in paths}
    for name, rows in coverage.items()
  }
  drawn = {name: rows for name, rows in drawn.items() if rows}
  return [_by_leaf(drawn, paths, len(touched) - len(paths))] if paths else []


def _by_leaf(stages, paths, dropped):
  names, width = list(stages), 760.0
  left = min(8 + max(map(svg.wide, paths)), 330)
  top = 30 + svg.legend_height(names, width)
  row = max(20.0, 11.0 * len(stages))
  bottom = top + row * len(paths)
  half = (width - left - 100) / 2
  errors = [
    r.error_db
    for rows in stages.values()
    for r in rows.values()
    if _finite(r.error_db)
  ]
  zeros = svg.Scale(0, 1, left + 10, left + 10 + half)
  error = svg.Scale(
    min([0.0, *errors]), max([1.0, *errors]) * 1.05, width - 20 - half, width - 20
  )  # fmt: skip
  drawn = [svg.legend(8, 16, names, width)]
  for i, path in enumerate(paths):
    if i % 2 == 0:
      drawn.append(
        svg.rect(0, top + i * row, width, row, 'var(--raised)', rx=3)
      )
    fits = int(left / svg.wide('m')) - 1
    # The end of a long name says more than its beginning.
    said = path if len(path) <= fits else '…' + path[1 - fits :]
    drawn.append(svg.text(6, top + (i + 0.5) * row + 4, said, tip=path))
  more = f' ({dropped} smaller leaves not shown)' if dropped else ''
  for scale, says, form in (
    (zeros, f'zeros{more}', '{:.0%}'.format),
    (error, 'signal to noise in dB (right is better)', '{:g}'.format),
  ):
    for value in scale.ticks(4):
      at = scale(value)
      drawn += [
        svg.line(at, top, at, bottom),
        svg.text(
          at, bottom + 16, form(value), text_anchor='middle', fill=_FAINT
        ),
      ]
    drawn.append(svg.text(scale.start, bottom + 36, says, fill=_FAINT))
  drawn += _leaf_marks(stages, paths, zeros, error, top, row)
  said = 'zeros and error of each leaf, by stage'
  return svg.Panel(width, bottom + 46, ''.join(drawn), said)


def _leaf_marks(stages, paths, zeros, error, top, row):
  for i, (name, rows) in enumerate(stages.items()):
    # Stages are spread within half a row, so that none hides another.
    shift = 0.5 + 0.6 * ((i + 0.5) / len(stages) - 0.5)
    for path, r in rows.items():
      y = top + row * (paths.index(path) + shift)
      if _finite(r.sparsity):
        tip = f'{name}, {path}: {r.sparsity:.1%} zeros'
        yield svg.mark(i, zeros(r.sparsity), y, tip)
      if _finite(r.error_db):
        tip = f'{name}, {path}: {r.error_db:.1f} dB, {r.format}'
        yield svg.mark(i, error(r.error_db), y, tip)


def channels(
  groups: Mapping[str, Sequence[records.GroupRecord]], most: int = 40
) -> list[svg.Panel]:
  """The channels of each stage where some went: a bar for each group.

  A bar is as long as its group was; what stays is dark. Of each stage the `most`
  largest groups are shown.
  """
  return [_strips(name, rows, most) for name, rows in groups.items() if rows]


def _strips(name, rows, most):
  largest = {id(r) for r in sorted(rows, key=lambda r: -r.before)[:most]}
  shown = [r for r in rows if id(r) in largest]
  dropped = len(rows) - len(shown)
  more = f' ({dropped} smaller groups not shown)' if dropped else ''
  width, row, top = 760.0, 24.0, 34.0
  left = min(16 + max(svg.wide(r.name) for r in shown), 330)
  x = svg.Scale(0, max(r.before for r in shown), left, width - 110)
  drawn = [svg.text(6, 18, f'{name}: channels that stay{more}', fill=_FAINT)]
  for i, r in enumerate(shown):
    y = top + i * row
    drawn.append(svg.text(6, y + 14, r.name))
    # As wide as two pixels at least, so that there are not more of them than can be seen.
    room = max(1, int(x(r.before) - left) // 2)
    parts = np.array_split(r.kept, min(len(r.kept), room))
    edges = np.cumsum([0, *map(len, parts)])
    drawn.append(svg.rect(left, y + 3, x(r.before) - left, 16, _GREY))
    for start, end, share in _runs(edges, [float(np.mean(p)) for p in parts]):
      if share:
        box = x(start), y + 3, x(end) - x(start), 16
        tip = f'{r.name} {start} to {end - 1}: {share:.0%} stay'
        drawn.append(svg.rect(*box, _BLUE, tip=tip, fill_opacity=share))
    said = f'{r.before:,} → {r.after:,}'
    drawn.append(svg.text(x(r.before) + 8, y + 15, said))
  said = f'channels of {name} that stay, by group'
  return svg.Panel(width, top + row * len(shown) + 8, ''.join(drawn), said)


def _runs(edges, shares):
  """(start, end, share) of neighbours with one share, as one."""
  begin = 0
  for i in range(1, len(shares) + 1):
    if i == len(shares) or shares[i] != shares[begin]:
      yield int(edges[begin]), int(edges[i]), shares[begin]
      begin = i


def histograms(
  weights: Mapping[str, tuple[Any, Any]], most: int = 12, bins: int = 81
) -> list[svg.Panel]:
  """The values of leaves before and after compression.

  Args:
    weights: `{title: (before, after)}`, arrays of any shape; the `most` largest
      are shown.
    most: panels at most.
    bins: an odd number, so that zero has a bin of its own.
  """
  shown = sorted(weights, key=lambda k: -np.size(weights[k][0]))[:most]
  return [_histogram(k, *weights[k], bins) for k in weights if k in shown]


def _histogram(title, before, after, bins):
  before, after = (
    np.ravel(np.asarray(w).astype(np.float64)) for w in (before, after)
  )
  before, after = (w[np.isfinite(w)] for w in (before, after))
  # Symmetric edges and an odd number of bins give zero a bin of its own.
  top = max((np.abs(w).max() for w in (before, after) if w.size), default=1.0)
  edges = np.linspace(-(top or 1.0), top or 1.0, bins + 1)
  counts = [np.histogram(w, edges)[0] for w in (before, after)]
  most = max(2.0, *(float(c.max(initial=0)) for c in counts))
  x = svg.Scale(edges[0], edges[-1], 50, 340)
  # A mask puts thousands of zeros into one bin; the others must stay visible.
  y = svg.Scale(0.5, most * 1.5, 190, 50, log=True)
  drawn = [
    svg.frame(
      x,
      y,
      x_says='weight: before (grey) and after (line)',
      y_says='how many weights, log scale',
      x_format='{:.3g}'.format,
      y_format=lambda v: table.quantity(v),
      ticks=4,
    ),
    svg.text(6, 16, title, font_weight='bold'),
  ]
  steps = []
  for i, (n, m) in enumerate(zip(*counts, strict=True)):
    left, right = x(edges[i]), x(edges[i + 1])
    tip = f'{edges[i]:.3g} to {edges[i + 1]:.3g}: {n:,} before, {m:,} after'
    height = y.start - y(max(n, 0.5))
    drawn.append(
      svg.rect(left, y.start - height, right - left, height, 'var(--bars)', tip)
    )
    steps += [(left, y(max(m, 0.5))), (right, y(max(m, 0.5)))]
  drawn.append(svg.lines(steps, _BLUE, stroke_width=1.4, pointer_events='none'))
  return svg.Panel(356, 236, ''.join(drawn), f'{title}: weights')


def losses(
  curves: Mapping[str, Sequence[tuple[float, float]]],
) -> list[svg.Panel]:
  """Losses over the operations that they took, a line for each stage.

  Args:
    curves: `{stage: [(operations, loss)]}`.
  """
  return _curves(
    curves,
    width=720,
    height=410,
    x_says='operations of training, those of stages before it included',
    y_says='validation loss',
    x_unit='operations',
    log=True,
  )


def validation(
  curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
) -> list[svg.Panel]:
  """What stages were judged by while they were trained, a panel for each number.

  Args:
    curves: `{stage: {what: [(step, value)]}}`.
  """
  names = dict.fromkeys(n for numbers in curves.values() for n in numbers)
  panels = []
  for name in names:
    of_name = {
      stage: numbers[name] for stage, numbers in curves.items() if name in numbers
    }  # fmt: skip
    panels += _curves(
      of_name,
      width=356,
      height=250,
      x_says='step of the stage',
      y_says=name,
      x_unit='steps',
      log=False,
    )
  return panels


def _curves(curves, *, width, height, x_says, y_says, x_unit, log):
  """A line through the finite points of each curve that has two."""
  finite = {
    name: [p for p in curve if all(map(_finite, p))]
    for name, curve in curves.items()
  }
  drawn = {name: curve for name, curve in finite.items() if len(curve) > 1}
  if not drawn:
    return []
  costs, values = zip(*(p for c in drawn.values() for p in c), strict=True)
  low, high = min(values), max(values)
  log = log and low > 0  # Only what is above 0 has a logarithm.
  room = 0.05 * (high - low) or 0.05 * abs(high) or 0.1
  names, left = list(drawn), 64
  top = 44 + svg.legend_height(names, width - left)
  x = svg.Scale(0, max(costs) * 1.02, left, width - 20)
  ends = (low / 1.05, high * 1.05) if log else (low - room, high + room)
  y = svg.Scale(*ends, height - 48, top, log=log)
  marks = [
    svg.legend(left, 14, names, width - left),
    svg.frame(
      x,
      y,
      x_says=x_says,
      y_says=f'{y_says}{", log scale" * log}',
      x_format=lambda v: table.quantity(v),
      y_format='{:.4g}'.format,
      ticks=max(3, width // 120),
    ),
  ]
  for i, (name, curve) in enumerate(drawn.items()):
    at = [(x(cost), y(value)) for cost, value in curve]
    marks.append(svg.lines(at, svg.colour(i), stroke_width=1.6))
    for (cost, value), place in zip(curve, at, strict=True):
      tip = f'{name}: {value:.4g} after {table.quantity(cost)} {x_unit}'
      marks.append(svg.mark(i, *place, tip))
  said = f'{y_says} of each stage over the {x_unit} of its training'
  return [svg.Panel(width, height, ''.join(marks), said)]


def _finite(x) -> bool:
  return x is not None and math.isfinite(x)
