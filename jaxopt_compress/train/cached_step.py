"""What a step costs that needs no teacher, beside the same one with it."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import report
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.train import answers
from jaxopt_compress.train import distil
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import stages


def times(
  job: job_lib.Job, built: stages.Built, finished: Mapping[str, Any]
) -> dict[str, report.Timing]:
  """{'kept' and 'live': of a step} of a stage whose teachers were asked once.

  One device has the whole batch. Reading the answers, which the host does meanwhile,
  is not counted.

  Args:
    job: the run.
    built: the stage.
    finished: what the stages left behind that it learns from.
  """
  stage = built.stage
  asks = dataclasses.replace(stage, cache=options.Cache())
  live = stages.build(
    asks, built.source, built.teachers, job.plan.data, built.plan
  )
  state = jax.tree.map(_zeros, built.template)
  batch = job.data.batches(stage)[0]
  kept = answers.blank(stage, batch[job.plan.data.target])
  frozen = mesh_lib.local(distil.frozen(stage.distil, finished))
  return report.measure(
    {
      'live': (_alone(live.step), (state, batch, frozen)),
      'kept': (_alone(built.step), (state, batch | kept, ())),
    },
    against='live',
    warmup=1,
    repeats=3,
    seconds=job.plan.report.seconds,
  )


def told(found: Mapping[str, report.Timing]) -> str:
  """A sentence on `times`."""
  live, kept = found['live'], found['kept']
  return (
    f'A step takes {kept.median_ms:.3g} ms, and {live.median_ms:.3g} ms with the teacher'
    f' in it: {kept.speed:.2f}x.'
  )


def _alone(step):
  """A step of one replica."""

  def one(state, batch, frozen):
    return step(state, batch, step_lib.Replicas(), frozen)

  return one


def _zeros(x):
  # Times do not depend on what numbers are.
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.key(0)
  return jnp.zeros(x.shape, x.dtype)
