"""The end of a run: every stage beside the others, exported, checked, written.

Everything here is measured again from what the finished stages left behind, so a
run that resumes at its very end reports what a run without a break reports.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import report as report_lib
from jaxopt_compress.analysis import flops as flops_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.train import evaluate
from jaxopt_compress.train import exported
from jaxopt_compress.train import metrics as metrics_lib
from jaxopt_compress.train import serving

WEIGHTS = 'weights.safetensors'  # in the directory of a stage


def compare(plan, built, finished, data, work) -> report_lib.Report:
  """Evaluates, measures, exports and reports the finished stages.

  Args:
    plan: the `plan.Plan`.
    built: the `stages.Built` of each stage, in order.
    finished: `{stage name: {'params', 'variables', 'plain'}}`.
    data: the `examples.Examples`.
    work: the workdir.

  Returns:
    The report, which is also in `work / 'report.md'`.
  """
  by_name = {b.stage.name: b for b in built}
  reference = plan.report.reference or plan.stages[0].name

  # -- Fidelity: what each stage answers on the held-out examples -----------------
  found = {}
  for name in [reference, *(n for n in by_name if n != reference)]:
    found[name] = evaluate.evaluate(
      by_name[name].model.forward,
      finished[name]['params'],
      finished[name]['variables'],
      data.test,
      inputs=plan.data.input,
      targets=plan.data.target,
      reference=found[reference].logits if found else None,
    )
    if name != reference:  # one batch is enough to check an export
      found[name] = dataclasses.replace(
        found[name], logits=found[name].logits[:1]
      )

  # -- Latency: stages of one model interleaved, against its float form ----------
  # As they would be deployed: packed, where there are kernels.
  deployed, kernels, failed = {}, {}, None
  for name, b in by_name.items():
    final = finished[name]
    deployed[name], said = serving.served(final['params'], b.model.uses)
    if deployed[name] is not final['params']:
      one = _examples(data, plan, plan.report.batches[0])
      both = final['params'], deployed[name]
      try:
        said += '; ' + serving.difference(
          b.model.forward, *both, final['variables'], one
        )
      except RuntimeError as e:  # the report is written first, and says so
        said, failed = f'FAILED. {e}', e
    if said:
      kernels[f'kernels of {name}'] = said
  timings = {}
  for names in _by_model(built):
    programs = lambda batch, names=names: {
      name: (
        by_name[name].model.forward,
        (
          deployed[name],
          finished[name]['variables'],
          _examples(data, plan, batch),
        ),
      )
      for name in names
    }
    timings |= report_lib.by_batch(
      programs,
      plan.report.batches,
      against=names[0],
      seconds=plan.report.seconds,
    )

  # -- Exports, each reloaded by a process that has nothing else ------------------
  checked = {}
  try:
    checked = exported.export_and_check(
      work / 'export',
      {
        name: (_over_tree(by_name[name].model.apply), _stored(finished[name]))
        for name in plan.report.export
      },
      data.test[0],
      plan.data.input,
      {name: found[name].logits[0] for name in plan.report.export},
    )
  except RuntimeError as e:  # the report is written first, and says so
    checked, failed = {'stages': f'FAILED. {e}'}, e

  # -- Records --------------------------------------------------------------------
  one = _examples(data, plan, 1)
  stages, coverage = [], {}
  for name, b in by_name.items():
    final, f = finished[name], found[name]
    run = _inference(b.model.apply)
    args = (final['params'], final['variables'], one)
    stages.append(
      report_lib.stage(
        name,
        final['params'],
        **_quality(plan, f),
        agreement=f.agreement,
        kl=f.kl,
        bytes_memory=array.nbytes(_stored(final)),
        bytes_disk=report_lib.disk_bytes(work / 'stages' / name / WEIGHTS),
        flops=flops_lib.flops(lift.lift(run))(*args),
        latency=timings[name],
      )
    )
    if b.stage.compresses:
      coverage[name] = report_lib.coverage(
        final['params'],
        final['plain'],
        lift.explain(run)(deployed[name], *args[1:]),
      )

  report = report_lib.Report(
    title=f'{plan.data.name}: {", ".join(by_name)}',
    stages=stages,
    coverage=coverage,
    facts={
      **data.facts,
      **{f'export of {k}': v for k, v in checked.items()},
      **_calibrated(built),
      **kernels,
    },
  )
  report_lib.write(
    work,
    report,
    histograms=_histograms(finished, coverage),
    plots=plan.report.plots,
  )
  metrics_lib.log(report_lib.text(report))
  if failed:
    raise failed
  return report


def _stored(final):
  """What a stage needs at inference: its parameters and its variables."""
  return {'params': final['params'], 'variables': final['variables']}


def _calibrated(built) -> dict[str, str]:
  """What the static ranges of activations were found on."""
  return {
    f'static ranges of {b.stage.name}': (
      f'{len(b.ranges)}, by {b.stage.calibrate}, from'
      f' {b.stage.calibrate_batches * b.stage.batch_size:,} training examples'
    )
    for b in built
    if b.ranges
  }


def _over_tree(apply):
  return lift.lift(
    lambda tree, x: apply(tree['params'], tree['variables'], x)[0]
  )


def _by_model(built):
  """Names of the stages of each model, its first (its float form) first."""
  groups = {}
  for b in built:
    groups.setdefault(b.model.name, []).append(b.stage.name)
  return groups.values()


def _inference(apply):
  return lambda params, variables, x: apply(params, variables, x)[0]


def _quality(plan, found) -> dict[str, Any]:
  if plan.report.metric == 'bits per byte':
    return dict(
      value=found.loss / np.log(2),
      metric='bits per byte',
      higher_is_better=False,
      spec='.4f',
    )
  return dict(value=found.accuracy, metric='accuracy')


def _examples(data, plan, batch) -> jax.Array:
  """The first held-out inputs, repeated to a batch of that size."""
  x = data.test[0][plan.data.input]
  return jnp.asarray(np.resize(x, (batch, *x.shape[1:])))


def _histograms(finished, coverage):
  """The largest compressed leaf of each compressed stage, before and after."""
  weights = {}
  for name, rows in coverage.items():
    rows = [r for r in rows if r.compressed]
    if not rows:
      continue
    path = max(rows, key=lambda r: int(np.prod(r.shape))).path
    before = dict(rules_lib.named_leaves(finished[name]['plain']))[path]
    after = dict(rules_lib.named_leaves(finished[name]['params']))[path]
    weights[f'{name}: {path}'] = (
      np.asarray(before),
      np.asarray(array.materialize(after)),
    )
  return weights
