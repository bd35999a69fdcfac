"""The pictures of a report: functions of records that write PNG files."""

from collections.abc import Mapping
from collections.abc import Sequence
import io
import math
import os
from typing import Any

import numpy as np

from jaxopt_compress.disk import files
from jaxopt_compress.report import records
from jaxopt_compress.report import table

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = (
    '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000',
)  # fmt: skip
_MARKERS = 'osD^vPX'
_GREY = '#B8B8B8'


def metric_against_bytes(
  stages: Sequence[records.StageRecord], path: str | os.PathLike
) -> bool:
  """Draws the metric over bytes in memory, one point for each stage.

  Stages that lack one of the two are left out. Each metric gets a panel of its own.

  Returns:
    Whether there was anything to draw; if not, no file is written.
  """
  points = [r for r in stages if _finite(r.value) and r.bytes_memory]
  if not points:
    return False
  metrics = list(dict.fromkeys(r.metric for r in points))
  figure, axes = _figure(1, len(metrics), width=8.0 * len(metrics), height=4.2)
  for axis, metric in zip(axes[0], metrics, strict=True):
    _scatter(axis, [r for r in points if r.metric == metric])
  _save(figure, path)
  return True


def _scatter(axis, points):
  for i, r in enumerate(points):
    axis.scatter(
      r.bytes_memory,
      r.value,
      s=60,
      color=_COLOURS[i % len(_COLOURS)],
      marker=_MARKERS[i % len(_MARKERS)],
      label=f'{r.name}  ({table.quantity(r.bytes_memory, "B")},'
      f' {table.number(r.value, r.spec)})',
      zorder=3,
    )
  axis.set_xscale('log')
  # Within two decades, marks at 1, 2 and 5 fit; over more, powers of ten.
  wide = max(r.bytes_memory for r in points) > 100 * min(
    r.bytes_memory for r in points
  )
  axis.xaxis.get_major_locator().set_params(subs=(1,) if wide else (1, 2, 5))
  axis.xaxis.set_major_formatter(lambda x, _: table.quantity(x, 'B'))
  axis.xaxis.set_minor_formatter(lambda x, _: '')
  better = 'higher' if points[0].higher_is_better else 'lower'
  axis.set_xlabel('bytes in memory, log scale (left is smaller)')
  axis.set_ylabel(f'{points[0].metric} ({better} is better)')
  axis.yaxis.set_major_formatter(lambda y, _: format(y, points[0].spec))
  _pad(axis, [r.bytes_memory for r in points], [r.value for r in points])
  axis.grid(alpha=0.3)
  # Points crowd where compression works: labels beside them would overlap.
  axis.legend(
    loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9
  )


def _pad(axis, x, y):
  # The x axis is logarithmic, so its margin is a factor.
  axis.set_xlim(min(x) / 1.6, max(x) * 1.6)
  room = 0.15 * (max(y) - min(y)) or 0.02 * abs(max(y)) or 0.1
  axis.set_ylim(min(y) - room, max(y) + room)


def reliability(
  answers: Sequence[records.Answers], path: str | os.PathLike, most: int = 12
) -> bool:
  """Draws the accuracy of answers over their confidence, one panel a stage.

  A bar is as high as the answers of its bin are right; on the diagonal they are as
  often right as they say. Darker bars have more answers. Guo et al. 2017,
  https://arxiv.org/abs/1706.04599, figure 1. Of more stages the first `most`.

  Returns:
    Whether there was anything to draw; if not, no file is written.
  """
  shown = {r.name: r for r in answers if r.bins}
  shown = list(shown.values())[:most]
  if not shown:
    return False
  columns = min(4, len(shown))
  rows = -(-len(shown) // columns)
  figure, axes = _figure(rows, columns, width=3 * columns, height=3.2 * rows)
  for axis, record in zip(axes.flat, shown, strict=False):
    _bars(axis, record)
  for axis in list(axes.flat)[len(shown) :]:
    axis.set_axis_off()
  _save(figure, path)
  return True


def _bars(axis, record):
  count, confidence, right = np.asarray(record.bins).T
  there = count > 0
  edges = np.linspace(0, 1, len(count) + 1)
  height = np.where(there, right / np.where(there, count, 1), 0)
  # Most answers are in the last bin: the square root lets others be seen.
  shade = 0.2 + 0.8 * np.sqrt(count / max(count.max(), 1))
  for left, top, alpha in zip(edges[:-1], height, shade, strict=True):
    axis.bar(
      left, top, 1 / len(count), align='edge', color=_COLOURS[0], alpha=alpha
    )
  mean = confidence[there] / count[there]
  axis.scatter(mean, height[there], color=_COLOURS[1], s=10, zorder=3)
  axis.plot([0, 1], [0, 1], color=_GREY, linewidth=1, zorder=2)
  axis.set_xlim(0, 1)
  axis.set_ylim(0, 1)
  axis.set_title(
    f'{record.name}: error {table.number(record.calibration, ".2%")}',
    fontsize=9,
  )
  axis.set_xlabel('confidence', fontsize=8)
  axis.set_ylabel('accuracy', fontsize=8)
  axis.tick_params(labelsize=7)


def layers(
  coverage: Mapping[str, Sequence[records.LeafRecord]],
  path: str | os.PathLike,
  most: int = 40,
) -> bool:
  """Draws sparsity and error of every leaf, one colour a stage.

  Leaves that no stage changed are left out; of the others the `most` largest are
  shown.

  Returns:
    Whether there was anything to draw; if not, no file is written.
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
  if not paths:
    return False
  figure, axes = _figure(
    1, 2, width=11.0, height=1.8 + 0.24 * len(paths), sharey=True
  )
  sparsity, error = axes[0]
  for i, (name, rows) in enumerate(drawn.items()):
    # Stages are spread within half a row, so that none hides another.
    shift = 0.5 * ((i + 0.5) / len(drawn) - 0.5)
    at = [paths.index(p) + shift for p in rows]
    style = dict(
      color=_COLOURS[i % len(_COLOURS)],
      marker=_MARKERS[i % len(_MARKERS)],
      s=30,
      zorder=3,
    )
    zeros = [_or_nan(r.sparsity) for r in rows.values()]
    sparsity.scatter(zeros, at, label=name, **style)
    error.scatter([_or_nan(r.error_db) for r in rows.values()], at, **style)
  _label_layers(sparsity, error, paths, dropped=len(touched) - len(paths))
  figure.legend(
    loc='outside upper center', ncols=min(len(drawn), 5), frameon=False
  )
  _save(figure, path)
  return True


def _label_layers(sparsity, error, paths, dropped):
  sparsity.set_yticks(range(len(paths)), paths, fontsize=8)
  # The first leaf is at the top, as in the tables.
  sparsity.set_ylim(len(paths) - 0.4, -0.6)
  sparsity.set_xlim(-0.03, 1.03)
  sparsity.xaxis.set_major_formatter(lambda x, _: f'{x:.0%}')
  more = f' ({dropped} smaller leaves not shown)' if dropped else ''
  sparsity.set_xlabel(f'zeros{more}')
  error.set_xlabel('signal to noise in dB (right is better, none is exact)')
  for axis in (sparsity, error):
    axis.grid(axis='x', alpha=0.3)
    for i in range(0, len(paths), 2):
      axis.axhspan(i - 0.5, i + 0.5, color='black', alpha=0.035, linewidth=0)


def channels(
  groups: Mapping[str, Sequence[records.GroupRecord]],
  path: str | os.PathLike,
  most: int = 40,
) -> bool:
  """Draws the channels of each stage where some went: a bar for each group.

  A bar is as long as its group was; what stays is dark. Of each stage the `most`
  largest groups are shown.

  Returns:
    Whether there was anything to draw; if not, no file is written.
  """
  drawn = {name: _largest(rows, most) for name, rows in groups.items() if rows}
  if not drawn:
    return False
  heights = [0.9 + 0.28 * len(rows) for rows in drawn.values()]
  figure, axes = _figure(
    len(drawn), 1, width=9.0, height=sum(heights), height_ratios=heights
  )
  for axis, (name, rows) in zip(axes[:, 0], drawn.items(), strict=True):
    for i, r in enumerate(rows):
      # Grey where a channel went, blue where it stays, between where of some.
      axis.imshow(
        np.asarray(r.kept)[None],
        extent=(0, r.before, i + 0.36, i - 0.36),
        cmap=_shades(),
        vmin=0,
        vmax=1,
        aspect='auto',
        interpolation='nearest',
      )
      axis.text(
        r.before, i, f'  {r.before:,} → {r.after:,}', va='center', fontsize=8
      )
    axis.set_xlim(0, 1.18 * max(r.before for r in rows))
    axis.set_xticks([])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks(range(len(rows)), [r.name for r in rows], fontsize=8)
    dropped = len(groups[name]) - len(rows)
    more = f' ({dropped} smaller groups not shown)' if dropped else ''
    axis.set_title(f'{name}: channels that stay{more}', fontsize=9)
    axis.spines[['top', 'right', 'bottom']].set_visible(False)
  _save(figure, path)
  return True


def _largest(rows, most):
  names = {r.name for r in sorted(rows, key=lambda r: -r.before)[:most]}
  return [r for r in rows if r.name in names]


def _shades():
  from matplotlib import colors

  return colors.LinearSegmentedColormap.from_list('kept', [_GREY, _COLOURS[0]])


def histograms(
  weights: Mapping[str, tuple[Any, Any]],
  path: str | os.PathLike,
  most: int = 12,
  bins: int = 81,
) -> bool:
  """Draws the values of leaves before and after compression.

  Args:
    weights: `{title: (before, after)}`, arrays of any shape; the `most` largest
      are shown.
    path: of the PNG file.
    most: panels at most.
    bins: an odd number, so that zero has a bin of its own.

  Returns:
    Whether there was anything to draw; if not, no file is written.
  """
  shown = sorted(weights, key=lambda k: -np.size(weights[k][0]))[:most]
  shown = [k for k in weights if k in shown]
  if not shown:
    return False
  columns = min(3, len(shown))
  rows = -(-len(shown) // columns)
  figure, axes = _figure(rows, columns, width=4 * columns, height=2.5 * rows)
  for axis, key in zip(axes.flat, shown, strict=False):
    _histogram(axis, key, *weights[key], bins)
  for axis in list(axes.flat)[len(shown) :]:
    axis.set_axis_off()
  handles, labels = axes.flat[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside upper center', ncols=2, frameon=False
  )
  _save(figure, path)
  return True


def _histogram(axis, title, before, after, bins):
  before, after = (
    np.ravel(np.asarray(w).astype(np.float64)) for w in (before, after)
  )
  before, after = (w[np.isfinite(w)] for w in (before, after))
  # Symmetric edges and an odd number of bins give zero a bin of its own.
  top = max((np.abs(w).max() for w in (before, after) if w.size), default=1.0)
  top = top or 1.0
  edges = np.linspace(-top, top, bins + 1)
  axis.hist(before, edges, color=_GREY, label='before')
  counts, _ = np.histogram(after, edges)
  axis.stairs(counts, edges, color=_COLOURS[0], label='after', linewidth=1.1)
  # A mask puts thousands of zeros into one bin; the others must stay visible.
  axis.set_yscale('log')
  axis.set_ylim(bottom=0.5)
  axis.set_title(title, fontsize=9)
  axis.tick_params(labelsize=7)
  axis.set_ylabel('weights, log scale', fontsize=7)


def losses(
  curves: Mapping[str, Sequence[tuple[float, float]]], path: str | os.PathLike
) -> bool:
  """Draws held-out losses over the operations that they took, a line for each stage.

  Args:
    curves: `{stage: [(operations, loss)]}`.
    path: of the PNG file.

  Returns:
    Whether there was anything to draw; if not, no file is written.
  """
  drawn = {name: curve for name, curve in curves.items() if len(curve) > 1}
  if not drawn:
    return False
  figure, axes = _figure(1, 1, width=8.0, height=4.2)
  axis = axes[0, 0]
  for i, (name, curve) in enumerate(drawn.items()):
    axis.plot(
      *zip(*curve, strict=True),
      color=_COLOURS[i % len(_COLOURS)],
      marker=_MARKERS[i % len(_MARKERS)],
      markersize=3,
      label=name,
    )
  axis.set_xlabel('operations of training, those of stages before it included')
  axis.xaxis.set_major_formatter(lambda x, _: table.quantity(x, ''))
  axis.set_ylabel('held-out loss, log scale')
  axis.set_yscale('log')
  axis.yaxis.set_major_formatter(lambda y, _: f'{y:.3g}')
  axis.yaxis.set_minor_formatter(lambda y, _: f'{y:.3g}')
  axis.grid(alpha=0.3, which='both')
  axis.legend(frameon=False)
  _save(figure, path)
  return True


def _figure(rows, columns, width, height, **kwargs):
  try:
    from matplotlib import figure
  except ImportError as e:
    raise ImportError(
      'Plots need matplotlib. Install it with'
      " `pip install 'jaxopt_compress[examples]'`, or write the report with"
      ' plots=False.'
    ) from e
  # Figure, not pyplot: it draws with Agg, without a display or global state.
  fig = figure.Figure((width, height), layout='constrained')
  return fig, fig.subplots(rows, columns, squeeze=False, **kwargs)


def _save(figure, path):
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  # Drawing takes long; writing what was drawn does not.
  drawn = io.BytesIO()
  figure.savefig(drawn, dpi=120, format='png')
  files.replace(path, drawn.getvalue())


def _finite(x) -> bool:
  return x is not None and math.isfinite(x)


def _or_nan(x) -> float:
  return x if _finite(x) else math.nan
