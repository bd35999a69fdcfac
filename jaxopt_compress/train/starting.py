"""What a stage starts from: fresh parameters, those of a stage before it, or a file."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.train import imported
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import metrics as metrics_lib
from jaxopt_compress.train import one_shot
from jaxopt_compress.train import plan as plan_lib
from jaxopt_compress.train import plans
from jaxopt_compress.train import rewind
from jaxopt_compress.train import stages as stages_lib
from jaxopt_compress.train.step import state as state_lib


def check(job: job_lib.Job, built: Sequence[stages_lib.Built]) -> None:
  """Raises a ValueError where a file that a stage starts from does not fit it."""
  for b in built:
    # What is done already needs its file no more.
    if b.stage.file and not job.stage(b.stage.name).exists():
      own = b.source.params, b.source.variables
      try:
        imported.start(b.stage.file, b.stage.init_map, *own)
      except ValueError as e:
        raise ValueError(f'Stage {b.stage.name!r}: {e}') from e


def started(
  job: job_lib.Job, built: stages_lib.Built, finished: Mapping[str, Any]
) -> tuple[Any, Any]:
  """(params, variables) that a stage starts from, all channels there."""
  stage = built.stage
  own = built.source.init(plan_lib.stage_seed(job.plan.seed, stage.name))
  if stage.file:
    *found, told = imported.start(stage.file, stage.init_map, *own)
    metrics_lib.log(f'[{stage.name}] starts from {told}.')
    return tuple(found)
  if not stage.parent:
    return own
  source, name = finished[stage.parent], job.plan.stage(stage.parent).model
  return stages_lib.start(built, name, own, mesh_lib.local(source))


def initial(
  job: job_lib.Job, built: stages_lib.Built, finished: Mapping[str, Any]
) -> state_lib.TrainState:
  """The state that a stage starts from.

  Args:
    job: the run.
    built: the stage.
    finished: what the stages before it left behind, by name.
  """
  stage = built.stage
  seed = plan_lib.stage_seed(job.plan.seed, stage.name)
  params, variables = started(job, built, finished)
  params, variables = plans.resized(job, built, params, variables)
  if stage.prune.masks:
    masks = mesh_lib.local(finished[stage.prune.masks]['params'])
    params = rewind.rewound(built, params, masks)
  ranges = built.ranges
  if ranges:
    ranges = _calibrated(job, built, params, variables)
  state = jax.jit(built.create)(params, variables, jax.random.key(seed), ranges)
  return mesh_lib.replicate(state, job.mesh)


def _calibrated(job, built, params, variables):
  """Ranges of static activations, from training data as it is."""
  stage, quantize = built.stage, built.stage.quantize
  batches = job.data.batches(dataclasses.replace(stage, augment=False))
  some = range(quantize.calibrate_batches)
  inputs = [batches[i][job.plan.data.input] for i in some]
  given = one_shot.given(job, built, params, variables)
  ranges = stages_lib.calibrate(built, params, variables, inputs, given)
  metrics_lib.log(
    f'[{stage.name}] {len(ranges)} ranges of activations ({quantize.calibrate}) from'
    f' {len(inputs) * stage.batch_size} training examples.'
  )
  return ranges
