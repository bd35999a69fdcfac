"""The report of a run: what was measured, beside what can be counted."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxopt_compress import report as report_lib
from jaxopt_compress.analysis import explain
from jaxopt_compress.analysis import flops as flops_lib
from jaxopt_compress.analysis import storage
from jaxopt_compress.analysis.layers import streams
from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.disk import sealed
from jaxopt_compress.train import cached
from jaxopt_compress.train import cached_step
from jaxopt_compress.train import code
from jaxopt_compress.train import curves as curves_lib
from jaxopt_compress.train import evaluate
from jaxopt_compress.train import final as final_lib
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import measure
from jaxopt_compress.train import metrics as metrics_lib
from jaxopt_compress.train import plans
from jaxopt_compress.train import shrink
from jaxopt_compress.train import stages as stages_lib
from jaxopt_compress.train import validation
from jaxopt_compress.train.tasks import task as task_lib


def record(
  job: job_lib.Job,
  built: Sequence[stages_lib.Built],
  finished: Mapping[str, Any],
  measured: measure.Measured,
) -> report_lib.Report:
  """Writes the report to the workdir, and returns it.

  Args:
    job: the run.
    built: its stages, in order.
    finished: `{name: {'params', 'variables', 'plain'}}` of each.
    measured: what `measure` found.
  """
  coverage = {
    b.stage.name: _leaves(job, b, finished[b.stage.name], measured)
    for b in built
    if b.stage.compresses
  }
  names = ', '.join(b.stage.name for b in built)
  curves = curves_lib.of(job, built)
  report = report_lib.Report(
    title=f'{job.plan.data.name}: {names}',
    stages=[_row(job, b, finished[b.stage.name], measured) for b in built],
    answers=_said(built, measured, job.plan.report.metric),
    coverage=coverage,
    channels={
      b.stage.name: report_lib.channels.groups(b.plan)
      for b in built
      if b.plan is not None
    },
    curves=curves,
    reference=job.plan.report.reference or built[0].stage.name,
    validation=_validation(job, built),
    facts={
      **job.data.facts,
      **_targets(job),
      **code.changed(job),
      **curves_lib.sooner(built, curves),
      **_losses(job, built),
      **_costs(job, built),
      **{f'export of {k}': said for k, said in measured.exports.items()},
      **_cached(job, built, finished),
      **_calibrated(built),
      **{f'kernels of {k}': said for k, said in measured.kernels.items()},
    },
  )
  report_lib.write(
    job.work,
    report,
    histograms=_histograms(finished, coverage),
    plots=job.plan.report.plots,
  )
  return report


def _row(job, built, final, measured) -> report_lib.StageRecord:
  """One row of the first table."""
  name = built.stage.name
  found = measured.answers[name]
  args = final['params'], final['variables'], measure.repeated(job, 1)
  return report_lib.stage(
    name,
    final['params'],
    **_quality(job.plan.report.metric, found, built.model.task),
    agreement=found.agreement,
    kl=found.kl,
    difference=found.difference,
    bytes_memory=storage.nbytes(final_lib.stored(final)),
    bytes_disk=report_lib.disk_bytes(job.weights(name)),
    flops=flops_lib.flops(lift.lift(_inference(built.model.apply)))(*args),
    latency=measured.latency[name],
    notes=_resized(built) + _trained(job, built),
  )


def _targets(job) -> dict[str, str]:
  """Of answers that are numbers, in which units."""
  scale = job.data.scale
  if scale is None:
    return {}
  more = scale.advice(True) if job.plan.asked.standardize else ''
  return {'targets to train on': scale.describe() + more}


def _said(built, measured, metric) -> list[report_lib.Answers]:
  """The table of answers: of each stage, a row for each that it is compared with."""
  rows = []
  for b in built:
    name, loss_name = b.stage.name, b.model.task.loss_name
    found = measured.answers[name]
    sums = found.reliability
    # What the first table tells, and the loss, have columns of their own.
    more = {
      n.rpartition(':')[2]: (x, b.model.task.metrics[n].spec)
      for n, x in found.metrics.items()
      if n not in (metric, 'loss')
    }
    numbers, specs = ({n: x[i] for n, x in more.items()} for i in (0, 1))
    own = dict(
      loss=found.loss, loss_name=loss_name, numbers=numbers, specs=specs
    )
    if sums is not None:
      own['calibration'] = report_lib.calibration.error(sums)
      own['bins'] = tuple(map(tuple, sums.T.tolist()))
    close = measured.fidelity.get(name, {})
    rows += [
      report_lib.Answers(
        name,
        **own,
        against=other,
        against_loss=measured.answers[other].loss,
        agreement=fidelity.agreement,
        kl=fidelity.kl,
        difference=fidelity.difference,
      )
      for other, fidelity in close.items()
    ] or [report_lib.Answers(name, **own)]
  return rows


def _losses(job, built) -> dict[str, str]:
  """The parts of the loss at the last step of each stage whose loss has several."""
  last = {}
  for line in metrics_lib.read(job.work / 'metrics.jsonl'):
    last[line['stage']] = line
  found = {}
  for name in (b.stage.name for b in built):
    line = dict(last.get(name, {}))
    parts = {
      key: x
      for key, x in line.items()
      if key not in ('stage', 'step', 'loss', 'grad_norm')
    }
    if parts:
      said = ', '.join(f'{key} {x:.4g}' for key, x in parts.items())
      found[f'last loss of {name}'] = f'{line["loss"]:.4g}: {said}'
  return found


def _resized(built) -> tuple[str, ...]:
  """What became of the channels of a stage, in a sentence."""
  if built.plan is None:
    return ()
  groups = report_lib.channels.groups(built.plan)
  before, after = (
    sum(getattr(r, when) for r in groups) for when in ('before', 'after')
  )
  source, small = (
    report_lib.records.parameters(m.params) for m in (built.source, built.model)
  )
  layers = streams.groups(built.plan.structure)
  deep = any(r.name in layers for r in groups)
  kinds = 'channels, heads and layers' if deep else 'channels'
  if built.stage.grow.asked:
    return (
      f'{before:,} {kinds} of {built.stage.init}, in {len(groups)}'
      f' group{"s" * (len(groups) != 1)}, are {after:,}:'
      f' {source:,} -> {small:,} parameters.',
    )
  said = (
    f'{before - after:,} of {before:,} {kinds} of {built.stage.init}, in'
    f' {len(groups)} group{"s" * (len(groups) != 1)}, are gone, by'
    f' {built.stage.shrink.score}: {source:,} -> {small:,} parameters.'
  )
  folded, folding = shrink.folding(built.source, built.plan, built.model)
  inexact = [
    r for r in groups if r.inexact and (r.name in layers or not folded)
  ]
  if inexact:
    said += (
      f' Not exact for {len(inexact)} of them: without these channels the network is'
      ' not the one in which they are masked.'
    )
  return (f'{said} {folding}'.rstrip(),)


def _trained(job, built) -> tuple[str, ...]:
  """What its evaluations decided, and whether it went on after its end."""
  result, stage = _result(job, built), built.stage
  history = validation.history(stage, job.plan.task, job.plan.report.metric)
  history = history.from_json(result['validation'])
  said = validation.outcome(stage, history)
  notes = (f'It {said}',) if said else ()
  if ends := result['lengths']:
    notes += (
      f'It went on after {" and ".join(map(str, ends))} steps, which had the'
      f' schedules of fewer: it is not what {stage.steps} steps in one run are.',
    )
  return notes


def _result(job, built):
  # A stage that was finished before these were written down has none of them.
  later = {'validation': (), 'lengths': ()}
  return later | sealed.read(job.stage(built.stage.name) / job_lib.RESULT)


def _validation(job, built) -> dict[str, dict[str, list[tuple[int, float]]]]:
  """{stage: {metric: [(step, value)]}} of stages that were looked at."""
  found = {}
  for b in built:
    for step, numbers in _result(job, b)['validation']:
      for name, value in numbers.items():
        points = found.setdefault(b.stage.name, {}).setdefault(name, [])
        points.append((step, float(value)))
  return found


def _leaves(job, built, final, measured) -> list[report_lib.LeafRecord]:
  """What became of every leaf of a stage, and in which form it runs."""
  # What runs is the deployed form; what is counted and compared is the stored one.
  x = measure.repeated(job, 1)
  explained = explain.explain(_inference(built.model.apply))(
    measured.deployed[built.stage.name], final['variables'], x
  )
  return report_lib.coverage(final['params'], final['plain'], explained)


def _inference(apply):
  return lambda params, variables, x: apply(params, variables, x)[0]


def _quality(
  metric: str, found: evaluate.Evaluation, task: task_lib.Task
) -> dict[str, Any]:
  said = task.metrics[metric]
  return dict(
    value=found.metrics[metric],
    metric=metric.rpartition(':')[2],
    higher_is_better=said.higher_is_better,
    spec=said.spec,
  )


def _costs(job, built) -> dict[str, str]:
  """What the plans of stages cost that have a limit, as predicted and measured."""
  limited = [b.stage.name for b in built if b.stage.shrink.limits]
  return {f'channels of {n}': plans.costs(job, n) for n in limited}


def _cached(job, built, finished) -> dict[str, str]:
  """What is kept of teachers that were asked once."""
  return {
    f'answers for {b.stage.name}': _asked_once(job, b, finished)
    for b in built
    if b.stage.cache.asked
  }


def _asked_once(job, built, finished):
  said = cached.facts(job, built, finished)
  if job.plan.report.seconds:
    said += ' ' + cached_step.told(cached_step.times(job, built, finished))
  return said


def _calibrated(built) -> dict[str, str]:
  """What the static ranges of activations were found on."""
  found = {}
  for b in built:
    quantize = b.stage.quantize
    if b.ranges:
      found[f'static ranges of {b.stage.name}'] = (
        f'{len(b.ranges)}, by {quantize.calibrate}, from'
        f' {quantize.calibrate_batches * b.stage.batch_size:,} training examples'
      )
  return found


def _histograms(finished, coverage):
  """The largest compressed leaf of each compressed stage, before and after."""
  weights = {}
  for name, leaves in coverage.items():
    leaves = [leaf for leaf in leaves if leaf.compressed]
    if not leaves:
      continue
    path = max(leaves, key=lambda leaf: int(np.prod(leaf.shape))).path
    before = dict(rules_lib.named_leaves(finished[name]['plain']))[path]
    after = dict(rules_lib.named_leaves(finished[name]['params']))[path]
    weights[f'{name}: {path}'] = (
      np.asarray(before),
      np.asarray(array.materialize(after)),
    )
  return weights
