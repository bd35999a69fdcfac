"""One run: what every part of it reads, and no part changes.

job.work/config.json             what was asked for
job.work/lock                    held while a run uses the workdir
job.work/metrics.jsonl           one line for each logged step
job.work/code.json               digests of the user's code, see `code`
job.work/checkpoints/<stage>/    of the stage that is being trained
job.work/stages/<stage>/         of a finished stage: tree/ (a checkpoint),
                                 weights.safetensors and result.json, sealed,
                                 state/, from which it goes on if it is given more
                                 steps, and plan.json where channels have gone
job.work/caches/<digest>/        answers of teachers, see `cached`
job.work/export/<stage>/         exported programs
job.work/latency.json            what operations take here, for limits of latency
job.work/report.html, .md, .json, plots/
"""

import dataclasses
import pathlib

import jax

from jaxopt_compress.train import examples
from jaxopt_compress.train import metrics as metrics_lib
from jaxopt_compress.train import plan as plan_lib

WEIGHTS = 'weights.safetensors'
RESULT = 'result.json'
PLAN = 'plan.json'
LATENCY = 'latency.json'


@dataclasses.dataclass(frozen=True)
class Job:
  """A run.

  Attributes:
    plan: what was asked for.
    data: its examples.
    mesh: its devices.
    work: the workdir.
    metrics: where numbers go while it runs.
  """

  plan: plan_lib.Plan
  data: examples.Examples
  mesh: jax.sharding.Mesh
  work: pathlib.Path
  metrics: metrics_lib.Metrics

  def checkpoints(self, stage: str) -> pathlib.Path:
    return self.work / 'checkpoints' / stage

  def stage(self, name: str) -> pathlib.Path:
    """The directory of a finished stage: there once it is whole."""
    return self.work / 'stages' / name

  def weights(self, stage: str) -> pathlib.Path:
    """The file of what a finished stage needs at inference."""
    return self.stage(stage) / WEIGHTS
