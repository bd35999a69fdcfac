"""The plans of a run: which channels each stage has, found once and kept on disk.

A plan lies beside the checkpoints while its stage is trained, and in the stage when it is
finished, so that a run that resumes goes on with the channels that it began with.
"""

from collections.abc import Sequence
import dataclasses
import json
from typing import Any

import jax

from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.disk import sealed
from jaxopt_compress.report import records
from jaxopt_compress.train import extend
from jaxopt_compress.train import grow
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import metrics
from jaxopt_compress.train import options
from jaxopt_compress.train import plan as run_plan_lib
from jaxopt_compress.train import processes
from jaxopt_compress.train import shrink
from jaxopt_compress.train import stages


def kept(job: job_lib.Job) -> dict[str, plan_lib.Plan]:
  """The plans that an earlier run of this config found, by stage.

  Raises:
    ValueError: one is damaged.
  """
  found = {}
  for stage in job.plan.stages:
    if not (stage.shrink.asked or stage.grow.asked):
      continue
    for folder in (job.stage(stage.name), job.checkpoints(stage.name)):
      path = folder / job_lib.PLAN
      if not path.exists():
        continue
      try:
        record = sealed.read(path)
      except sealed.Damaged as e:
        raise ValueError(
          f'{e} Remove {folder} to make stage {stage.name!r} again.'
        ) from e
      # Of another config: its checkpoints are refused where they are read.
      said = record['config'], _config(job, stage)
      if extend.goes_on(stage.name, *said):
        plan = plan_lib.Plan.from_json(json.dumps(record['plan']))
        found.setdefault(stage.name, plan)
  return found


def find(
  job: job_lib.Job, built: stages.Built, params: Any, variables: Any
) -> plan_lib.Plan:
  """The plan of a stage, from what it starts from; written beside its checkpoints."""
  stage = built.stage
  if stage.grow.asked:
    # It follows from the program alone.
    lines = str(built.plan).splitlines()[1:]
    # What stays is most of a network, and jc.widen prints it.
    told = [line for line in lines if ' stays: ' not in line]
    write(job, stage, built.plan, told)
    before, after = (
      records.parameters(model.params) for model in (built.source, built.model)
    )
    metrics.log(f'[{stage.name}] grows: {before:,} -> {after:,} parameters')
    for line in told:
      metrics.log(f'[{stage.name}] {line}')
    return built.plan
  batches = _batches(job, stage)
  try:
    plan, told = shrink.chosen(
      stage.shrink,
      built.source,
      params,
      variables,
      batches,
      seed=run_plan_lib.stage_seed(job.plan.seed, stage.name),
      table=job.work / job_lib.LATENCY,
    )
  except ValueError as e:
    raise ValueError(f'Stage {stage.name!r}: {e}') from e
  write(job, stage, plan, told)
  before, after = (
    records.parameters(model.params)
    for model in (built.source, shrink.resized(built.source, plan))
  )
  metrics.log(
    f'[{stage.name}] {before:,} -> {after:,} parameters:'
    f' {len(plan.sizes)} groups of channels, by {stage.shrink.score}'
    + _on(batches)
  )
  for line in told:
    metrics.log(f'[{stage.name}] {line}')
  return plan


def resized(
  job: job_lib.Job, built: stages.Built, params: Any, variables: Any
) -> tuple[Any, Any]:
  """(params, variables) with the channels and layers that the stage begins with."""
  if built.plan is None:
    return params, variables
  if built.stage.grow.asked:
    return _grown(job, built, params, variables)
  return _cut(job, built, params, variables)


def _grown(job, built, params, variables):
  stage = built.stage
  try:
    return grow.started(
      stage.grow,
      built.source,
      built.plan,
      built.model,
      params,
      variables,
      seed=run_plan_lib.stage_seed(job.plan.seed, stage.name),
    )
  except ValueError as e:
    raise ValueError(f'Stage {stage.name!r}: {e}') from e


def _cut(job, built, params, variables):
  stage, batches = built.stage, []
  if stage.shrink.compensate:
    batches = _batches(job, stage)
  try:
    params, variables, lost = shrink.cut(
      built.source, built.plan, params, variables, [x for x, _ in batches]
    )
  except ValueError as e:
    raise ValueError(f'Stage {stage.name!r}: {e}') from e
  if lost:
    before, after = (
      sum(getattr(loss, when) for loss in lost.values()) / len(lost)
      for when in ('before', 'after')
    )
    metrics.log(
      f'[{stage.name}] compensated: products of {len(lost)} weights lose'
      f' {after:.1%} instead of {before:.1%}' + _on(batches)
    )
  params, variables, said = shrink.folded(
    built.source, built.plan, built.model, params, variables
  )
  if said:
    metrics.log(f'[{stage.name}] {said}')
  return params, variables


def batches(
  job: job_lib.Job, stage: options.Stage, number: int
) -> list[tuple[Any, Any]]:
  """[(inputs, labels)] of so many batches of training data as it is."""
  # Scores need labels, which the batches of a stage with a teacher may lack.
  plain = dataclasses.replace(stage, augment=False, distil=options.Distil())
  read = job.data.batches(plain)
  some, data = [read[i] for i in range(number)], job.plan.data
  return [(batch[data.input], batch[data.target]) for batch in some]


def _batches(job, stage):
  """Those that channels are chosen on, where they are read."""
  if not shrink.of_batches(stage.shrink):
    return []
  return batches(job, stage, stage.shrink.batches)


def _on(batches):
  count = sum(len(x) for x, _ in batches)
  return f' on {count:,} training examples.' if count else '.'


def write(
  job: job_lib.Job,
  stage: options.Stage,
  plan: plan_lib.Plan,
  told: Sequence[str],
) -> None:
  """Writes the plan of a stage, and what is said of its costs, sealed."""
  record = {
    'stage': stage.name,
    'config': _config(job, stage),
    'plan': json.loads(plan.to_json()),
    'costs': list(told),
  }
  processes.agree({f'the plan of {stage.name}': record['plan']})
  folder = job.checkpoints(stage.name)
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    sealed.write(folder / job_lib.PLAN, record)


def costs(job: job_lib.Job, stage: str) -> str:
  """What was said of the costs of a finished stage's plan, in a sentence; or ''."""
  lines = sealed.read(job.stage(stage) / job_lib.PLAN)['costs']
  return '; '.join(' '.join(line.split()) for line in lines)


def _config(job, stage):
  # As JSON reads it: tuples are lists.
  return json.loads(json.dumps(job.plan.fingerprint(stage)))
