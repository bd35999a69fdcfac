"""The page: report.md for readers, report.json for programs, and the plots.

Each file is replaced as a whole, so that a reader sees the old report or the new one,
even while it is rewritten or after a crash.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import os
from typing import Any

from jaxopt_compress.disk import files
from jaxopt_compress.report import findings
from jaxopt_compress.report import plots as plots_lib
from jaxopt_compress.report import provenance
from jaxopt_compress.report import records
from jaxopt_compress.report import table


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything that a page shows.

  Attributes:
    title: the first line.
    stages: rows of the first table; the first is what sizes are compared to.
    answers: rows of the table of answers.
    coverage: `{stage name: rows of its coverage table}`.
    channels: `{stage name: rows of its table of channels}`, where some went.
    curves: `{stage name: [(operations of training, validation loss)]}`.
    facts: what else was measured, `{what: value}`.
    notes: sentences of the experiment itself, shown before the computed remarks.
    environment: see `provenance.environment`; that of this process if it is None.
  """

  title: str
  stages: Sequence[records.StageRecord] = ()
  coverage: Mapping[str, Sequence[records.LeafRecord]] = dataclasses.field(
    default_factory=dict
  )
  channels: Mapping[str, Sequence[records.GroupRecord]] = dataclasses.field(
    default_factory=dict
  )
  curves: Mapping[str, Sequence[tuple[float, float]]] = dataclasses.field(
    default_factory=dict
  )
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()
  answers: Sequence[records.Answers] = ()
  environment: Mapping[str, Any] | None = None


def write(
  directory: str | os.PathLike,
  report: Report,
  *,
  histograms: Mapping[str, tuple[Any, Any]] | None = None,
  plots: bool = True,
) -> str:
  """Writes report.md, report.json and plots/*.png under `directory`.

  Args:
    directory: created if it is missing.
    report: what to show.
    histograms: `{title: (before, after)}`, arrays of weights.
    plots: whether to draw; needs matplotlib.

  Returns:
    The path of report.md.
  """
  os.makedirs(directory, exist_ok=True)
  report = _placed(report)
  drawn = _draw(directory, report, histograms or {}) if plots else {}
  # Everything is computed before anything is replaced: a failure keeps the old report.
  content = records.to_json(report)
  content |= {'remarks': _remarks(report), 'plots': drawn}
  text = json.dumps(content, indent=2, allow_nan=False) + '\n'
  page = os.path.join(directory, 'report.md')
  files.replace(page, markdown(report, drawn))
  files.replace(os.path.join(directory, 'report.json'), text)
  return page


def read(directory: str | os.PathLike) -> Report:
  """The Report that `write` put under `directory`."""
  path = os.path.join(directory, 'report.json')
  if not os.path.exists(path):
    raise ValueError(f'{path} does not exist. Run the experiment to its end.')
  try:
    with open(path, encoding='utf-8') as f:
      return _from_json(json.load(f))
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
    raise ValueError(
      f'{path} is damaged ({type(e).__name__}: {e}). Run the experiment again:'
      ' what is finished is kept, and the report is written anew.'
    ) from e


def _from_json(content):
  return Report(
    title=content['title'],
    stages=[records.stage_from_json(s) for s in content['stages']],
    answers=[records.answers_from_json(a) for a in content['answers']],
    coverage={
      name: [records.leaf_from_json(r) for r in rows]
      for name, rows in content['coverage'].items()
    },
    channels={
      name: [records.group_from_json(r) for r in rows]
      for name, rows in content['channels'].items()
    },
    curves={
      name: [tuple(point) for point in curve]
      for name, curve in content['curves'].items()
    },
    facts=content['facts'],
    notes=content['notes'],
    environment=content['environment'],
  )


def text(report: Report) -> str:
  """What the terminal shows at the end: the tables and the remarks."""
  report = _placed(report)
  parts = [report.title, table.stages(report.stages)]
  if report.answers:
    parts += [table.answers(report.answers), *_against(report)]
  for name, groups in report.channels.items():
    parts += [f'Channels of {name}', table.channels(groups)]
  for name, rows in report.coverage.items():
    parts += [f'Leaves of {name}', table.coverage(rows)]
  if report.facts:
    parts.append(table.facts(report.facts))
  remarks = _remarks(report)
  if remarks:
    parts.append('\n'.join(f'- {r}' for r in remarks))
  return '\n\n'.join(parts) + '\n'


def _against(report):
  """What the columns of another stage in the table of answers are."""
  if not any(r.against for r in report.answers):
    return []
  return [
    "'against' is the teacher of a stage; of one without, the reference of this"
    " report. agreement@5: how often that one's first choice is among the first 5"
    ' of the stage.'
  ]


def markdown(report: Report, plots: Mapping[str, str] | None = None) -> str:
  """The page; `plots` is `{title: path relative to the page}`."""
  parts = [f'# {report.title}']
  command = (report.environment or {}).get('command')
  if command:
    parts.append(f'    {command}')
  parts += ['## Stages', table.stages(report.stages, 'markdown')]
  if report.answers:
    parts += ['## Answers', table.answers(report.answers, 'markdown')]
    parts += _against(report)
  remarks = _remarks(report)
  if remarks:
    parts += ['## Remarks', '\n'.join(f'- {r}' for r in remarks)]
  if report.facts:
    parts += ['## Also measured', table.facts(report.facts, 'markdown')]
  for title, path in (plots or {}).items():
    parts += [f'## {title}', f'![{title}]({path})']
  for name, groups in report.channels.items():
    parts += [f'## Channels of {name}', table.channels(groups, 'markdown')]
  for name, rows in report.coverage.items():
    parts += [f'## Leaves of {name}', table.coverage(rows, 'markdown')]
  if report.environment:
    environment = table.facts(report.environment, 'markdown')
    parts += ['## Environment', environment]
  return '\n\n'.join(parts) + '\n'


def _placed(report: Report) -> Report:
  """The report with an environment, that of this process if it has none."""
  if report.environment is not None:
    return report
  return dataclasses.replace(report, environment=provenance.environment())


def _remarks(report: Report) -> list[str]:
  backend = (report.environment or {}).get('backend', 'unknown')
  own = [f'{s.name}: {note}' for s in report.stages for note in s.notes]
  computed = findings.remarks(report.stages, report.coverage, backend)
  return [*report.notes, *own, *computed]


def _draw(directory, report, histograms) -> dict[str, str]:
  """Draws what there is to draw: `{title: relative path}`."""
  metrics = dict.fromkeys(
    s.metric for s in report.stages if s.value is not None
  )
  wanted = {
    'plots/metric.png': (
      f'{" and ".join(metrics).capitalize()} against bytes',
      plots_lib.metric_against_bytes,
      report.stages,
    ),
    'plots/calibration.png': (
      'Accuracy against confidence',
      plots_lib.reliability,
      report.answers,
    ),
    'plots/layers.png': (
      'Zeros and error by layer',
      plots_lib.layers,
      report.coverage,
    ),
    'plots/channels.png': (
      'Channels that stay',
      plots_lib.channels,
      report.channels,
    ),
    'plots/losses.png': (
      'Held-out loss over the cost of training',
      plots_lib.losses,
      report.curves,
    ),
    'plots/weights.png': (
      'Weights before and after',
      plots_lib.histograms,
      histograms,
    ),
  }
  return {
    title: path
    for path, (title, draw, what) in wanted.items()
    if draw(what, os.path.join(directory, path))
  }
