"""What a run leaves to be read: report.html, report.md, report.json and the plots.

The page, `html`, is for people; report.md and `text` are for terminals and for where
pages are not shown; report.json is for programs.

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
from jaxopt_compress.report import html
from jaxopt_compress.report import pays
from jaxopt_compress.report import plots as plots_lib
from jaxopt_compress.report import provenance
from jaxopt_compress.report import records
from jaxopt_compress.report import svg
from jaxopt_compress.report import table


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything that a page shows.

  Attributes:
    title: the first line.
    stages: rows of the first table; the first is what sizes are compared to.
    reference: the stage that others are judged by; '': the first.
    answers: rows of the table of answers.
    coverage: `{stage name: rows of its coverage table}`.
    channels: `{stage name: rows of its table of channels}`, where some went.
    curves: `{stage name: [(operations of training, validation loss)]}`.
    validation: `{stage name: {metric: [(step, value)]}}`, while it was trained.
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
  validation: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]] = (
    dataclasses.field(default_factory=dict)
  )
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()
  answers: Sequence[records.Answers] = ()
  environment: Mapping[str, Any] | None = None
  reference: str = ''


def write(
  directory: str | os.PathLike,
  report: Report,
  *,
  histograms: Mapping[str, tuple[Any, Any]] | None = None,
  plots: bool = True,
) -> str:
  """Writes report.html, report.md, report.json and plots/*.svg under `directory`.

  Args:
    directory: created if it is missing.
    report: what to show.
    histograms: `{title: (before, after)}`, arrays of weights.
    plots: whether to draw.

  Returns:
    The path of report.html.
  """
  os.makedirs(directory, exist_ok=True)
  report = _placed(report)
  figures = _draw(report, histograms or {}) if plots else []
  files_of = {f'plots/{f.name}.svg': f for f in figures}
  drawn = {f.title: path for path, f in files_of.items()}
  # Everything is computed before anything is replaced: a failure keeps the old report.
  content = records.to_json(report)
  content |= {'remarks': _remarks(report), 'plots': drawn}
  made = {path: svg.standalone(f.panels) for path, f in files_of.items()}
  made['report.html'] = html.page(
    report, figures=figures, remarks=_remarks(report), against=_against(report)
  )
  made['report.md'] = markdown(report, drawn)
  made['report.json'] = json.dumps(content, indent=2, allow_nan=False) + '\n'
  for name, said in made.items():
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.replace(path, said)
  return os.path.join(directory, 'report.html')


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
  # A report of before has nothing of what came later.
  content = records.to_json(Report(content['title'])) | content
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
    validation={
      name: {
        metric: [(int(step), float(value)) for step, value in points]
        for metric, points in metrics.items()
      }
      for name, metrics in content['validation'].items()
    },
    facts=content['facts'],
    notes=content['notes'],
    environment=content['environment'],
    reference=content['reference'],
  )


def text(report: Report) -> str:
  """What the terminal shows at the end: the tables and the remarks."""
  report = _placed(report)
  parts = [report.title, *_best(report), table.stages(report.stages)]
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


def _best(report):
  """The verdict, if there is one."""
  return [said] if (said := pays.best(report.stages, report.reference)) else []


def _against(report):
  """What the columns of another stage in the table of answers are."""
  if not any(r.against for r in report.answers):
    return []
  said = (
    "'against' is the teacher of a stage; of one without, the reference of this"
    ' report.'
  )
  if ks := {k for r in report.answers for k in r.agreement}:
    k = max(ks)
    said += (
      f" agreement@{k}: how often that one's first choice is among the first {k} of"
      ' the stage.'
    )
  if any(r.difference is not None for r in report.answers):
    said += (
      ' difference: the root of the mean squared difference to its answers.'
    )
  return [said]


def markdown(report: Report, plots: Mapping[str, str] | None = None) -> str:
  """The page; `plots` is `{title: path relative to the page}`."""
  parts = [f'# {report.title}']
  command = (report.environment or {}).get('command')
  if command:
    parts.append(f'    {command}')
  parts += [f'**{said}**' for said in _best(report)]
  unpaid = pays.unpaid(report.stages, report.coverage, report.reference)
  if unpaid:
    lines = (f'- {name}: {"; ".join(said)}.' for name, said in unpaid.items())
    parts += ['## What did not pay', '\n'.join(lines)]
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


def _draw(report, histograms) -> list[html.Figure]:
  """Draws what there is to draw."""
  metrics = dict.fromkeys(
    s.metric for s in report.stages if s.value is not None
  )
  figures = [
    html.Figure(
      'metric',
      f'{" and ".join(metrics).capitalize()} against bytes',
      plots_lib.metric_against_bytes(
        report.stages, report.reference or report.stages[0].name
      )
      if report.stages
      else [],
    ),
    html.Figure(
      'calibration',
      'Accuracy against confidence',
      plots_lib.reliability(report.answers),
    ),
    html.Figure(
      'layers', 'Zeros and error by layer', plots_lib.layers(report.coverage)
    ),
    html.Figure(
      'channels', 'Channels that stay', plots_lib.channels(report.channels)
    ),
    html.Figure(
      'losses',
      'Validation loss over the cost of training',
      plots_lib.losses(report.curves),
    ),
    html.Figure(
      'validation',
      'What stages were judged by while they were trained',
      plots_lib.validation(report.validation),
    ),
    html.Figure(
      'weights', 'Weights before and after', plots_lib.histograms(histograms)
    ),
  ]
  return [f for f in figures if f.panels]
