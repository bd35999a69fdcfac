"""Every finished stage beside the others: its answers, its speed, its export.

All is measured again from what the stages left behind, so a run that resumes at its
very end reports what a run without a break reports.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import report as report_lib
from jaxopt_compress.core import lift
from jaxopt_compress.train import evaluate
from jaxopt_compress.train import exported
from jaxopt_compress.train import final as final_lib
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import serving
from jaxopt_compress.train import stages as stages_lib


@dataclasses.dataclass(frozen=True)
class Measured:
  """What was found; each a dict by the name of a stage.

  Attributes:
    answers: on the held-out examples, beside those of the reference.
    fidelity: of each stage to others, its teachers or the reference, by their names.
    deployed: parameters as they would be served.
    latency: by batch size, against the float form of the same model.
    kernels: a sentence on what served them; not of every stage.
    exports: a sentence on each export; of 'stages' where one failed.
    failed: what was wrong, for the run to end with once the report is written.
  """

  answers: Mapping[str, evaluate.Evaluation]
  fidelity: Mapping[str, Mapping[str, evaluate.Fidelity]]
  deployed: Mapping[str, Any]
  latency: Mapping[str, Mapping[int, Any]]
  kernels: Mapping[str, str]
  exports: Mapping[str, str]
  failed: RuntimeError | None


def measure(
  job: job_lib.Job,
  built: Sequence[stages_lib.Built],
  finished: Mapping[str, Any],
) -> Measured:
  """Evaluates, times and exports the finished stages.

  Args:
    job: the run.
    built: its stages, in order.
    finished: `{name: {'params', 'variables', 'plain'}}` of each.
  """
  answers, fidelity = _answers(job, built, finished)
  deployed, kernels, wrong = _deployed(job, built, finished)
  latency = _latency(job, built, finished, deployed)
  exports, failed = _exports(job, built, finished, answers)
  return Measured(
    answers, fidelity, deployed, latency, kernels, exports, failed or wrong
  )


def repeated(job: job_lib.Job, batch: int) -> jax.Array:
  """The first held-out inputs, repeated to a batch of that size."""
  x = job.data.test[0][job.plan.data.input]
  return jnp.asarray(np.resize(x, (batch, *x.shape[1:])))


def _answers(job, built, finished):
  """(what each stage answers on the held-out examples, how close it is to others).

  The reference comes first.
  """
  by_name = {b.stage.name: b for b in built}
  first = job.plan.report.reference or built[0].stage.name
  others = {b.stage.name: b.stage.distil.stages or (first,) for b in built}
  # Logits are large: only of those is all kept that others are compared with.
  kept, found = {first, *(o for names in others.values() for o in names)}, {}
  fidelity = {name: {} for name in by_name}
  targets = job.plan.data.target

  def compare(name):
    for other in others[name]:
      if other != name:
        fidelity[name][other] = evaluate.fidelity(
          found[name].logits,
          found[other].logits,
          job.data.test,
          targets=targets,
          classes=by_name[name].model.task.classes,
        )

  for name in [first, *(n for n in by_name if n != first)]:
    found[name] = evaluate.evaluate(
      by_name[name].model.forward,
      finished[name]['params'],
      finished[name]['variables'],
      job.data.test,
      inputs=job.plan.data.input,
      targets=targets,
      reference=found[first].logits if found else None,
      task=by_name[name].model.task,
    )
    if name != first:  # its teachers may come later
      compare(name)
    if name not in kept:  # one batch is enough to check an export
      found[name] = _of_one_batch(found[name])
  compare(first)
  return {name: _of_one_batch(e) for name, e in found.items()}, fidelity


def _of_one_batch(evaluation):
  return dataclasses.replace(evaluation, logits=evaluation.logits[:1])


def _deployed(job, built, finished):
  """(parameters packed where there are kernels, what was said, what failed)."""
  deployed, kernels, failed = {}, {}, None
  for b in built:
    name, final = b.stage.name, finished[b.stage.name]
    deployed[name], said = serving.served(final['params'], b.model.uses)
    if deployed[name] is not final['params']:
      x = repeated(job, job.plan.report.batches[0])
      both = final['params'], deployed[name]
      try:
        said += '; ' + serving.difference(
          b.model.forward, *both, final['variables'], x
        )
      except RuntimeError as e:  # the report is written first, and says so
        said, failed = f'FAILED. {e}', e
    if said:
      kernels[name] = said
  return deployed, kernels, failed


def _latency(job, built, finished, deployed):
  """Stages of one model in turns, against its first, which is its float form."""
  by_model = {}
  for b in built:
    by_model.setdefault(b.model.name, []).append(b)
  latency = {}
  for group in by_model.values():

    def programs(batch, group=group):
      found, x = {}, repeated(job, batch)
      for b in group:
        name = b.stage.name
        args = deployed[name], finished[name]['variables'], x
        found[name] = b.model.forward, args
      return found

    latency |= report_lib.by_batch(
      programs,
      job.plan.report.batches,
      against=group[0].stage.name,
      seconds=job.plan.report.seconds,
    )
  if not job.plan.report.seconds:  # A few calls, which say nothing of a speed.
    unknown = dict(speed=None, speed_low=None, speed_high=None)
    latency = {
      name: {n: dataclasses.replace(t, **unknown) for n, t in found.items()}
      for name, found in latency.items()
    }
  return latency


def _exports(job, built, finished, answers):
  """(a sentence for each export, what failed): reloaded by a process of its own."""
  by_name = {b.stage.name: b for b in built}
  names = job.plan.report.export
  try:
    sentences = exported.export_and_check(
      job.work / 'export',
      {
        name: (
          _over_tree(by_name[name].model.apply),
          final_lib.without_zeros(finished[name], by_name[name].model.uses),
        )
        for name in names
      },
      job.data.test[0],
      job.plan.data.input,
      {name: answers[name].logits[0] for name in names},
      classes=job.plan.task.classes,
      facts=_served(job),
    )
  except RuntimeError as e:  # the report is written first, and says so
    return {'stages': f'FAILED. {e}'}, e
  return sentences, None


def _served(job):
  """What whoever serves an export has to know, for its manifest."""
  facts, scale = dict(job.data.served), job.data.scale
  if scale is not None:
    facts['targets'] = {
      'mean': scale.mean.tolist(),
      'std': scale.std.tolist(),
      'standardized': job.plan.asked.standardize,
      'answers': 'in the units of the targets',
    }
  return facts


def _over_tree(apply):
  return lift.lift(
    lambda tree, x: apply(tree['params'], tree['variables'], x)[0]
  )
