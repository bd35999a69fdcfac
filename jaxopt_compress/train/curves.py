"""How the validation loss of each stage fell with what its training cost.

    cost(stage, step) = cost(init at its end) + step * operations of one step

So a network that grew pays for the small one that it began as. What one step costs is
counted in its program: forward, backward, teachers and optimizer.
"""

from collections.abc import Sequence
import dataclasses

from jaxopt_compress.analysis import flops as flops_lib
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.report import curves as curves_lib
from jaxopt_compress.report import records
from jaxopt_compress.train import answers
from jaxopt_compress.train import distil
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import metrics
from jaxopt_compress.train import stages as stages_lib

Curve = list[tuple[float, float]]


def of(job: job_lib.Job, built: Sequence[stages_lib.Built]) -> dict[str, Curve]:
  """{stage: [(operations so far, validation loss)]}; {} where it was asked for once.

  Args:
    job: the run, whose stages are finished.
    built: its stages, in order.
  """
  if not any(b.stage.validation.every for b in built):
    return {}
  losses: dict[str, list] = {}
  for line in metrics.read(job.work / 'metrics.jsonl'):
    name, _, rest = line['stage'].partition('/')
    if rest == 'validation':
      losses.setdefault(name, []).append((line['step'], line['loss']))
  begun, found = {}, {}
  finals = {b.stage.name: b.final for b in built}
  for b in built:
    name, steps = b.stage.name, b.stage.steps
    before = begun.get(b.stage.init, 0)
    each = _of_step(job, b, finals) if steps else 0
    begun[name] = before + steps * each
    if losses.get(name):
      found[name] = [(before + i * each, x) for i, x in losses[name]]
  return found


def _of_step(job, built, finals) -> int:
  """The operations of one step, for a whole batch."""
  if built.stage.accumulate > 1:
    # In one part: the compiler drops what only counts examples, which parts begin with.
    stage = dataclasses.replace(built.stage, accumulate=1)
    plan = job.plan.data, built.plan
    built = stages_lib.build(stage, built.source, built.teachers, *plan)
  batch = job.data.batches(built.stage)[0]
  frozen = distil.frozen(built.stage.distil, finals)
  if built.stage.cache.asked:
    # Its teachers answered before the first step, and no step runs them.
    batch |= answers.blank(built.stage, batch[job.plan.data.target])
    frozen = ()

  def step(state, batch, frozen):
    return built.step(state, batch, step_lib.Replicas(), frozen)

  return flops_lib.flops(step)(built.template, batch, frozen)


def sooner(
  built: Sequence[stages_lib.Built], curves: dict[str, Curve]
) -> dict[str, str]:
  """What each stage that grows saved, beside stages of its size that never did."""
  found = {}
  sizes = {b.stage.name: records.parameters(b.model.params) for b in built}
  for b in built:
    grown = b.stage.name
    if not b.stage.grow.asked or grown not in curves:
      continue
    for other in built:
      name = other.stage.name
      alike = sizes[name] == sizes[grown] and not other.stage.init
      if alike and curves.get(name):
        found[f'growth of {grown} beside {name}'] = _saved(
          curves[grown], curves[name], grown, name
        )
  return found


def _saved(grown, other, name, rival) -> str:
  """One sentence on when a curve reaches what another one ends with."""
  cost, loss = other[-1]
  reached = curves_lib.reached(grown, loss)
  if reached is None:
    best = min(x for _, x in grown)
    return (
      f'{name} does not reach the loss {loss:.4f} that {rival} ends with; its best is'
      f' {best:.4f}'
    )
  return (
    f'{name} reaches the loss {loss:.4f} that {rival} ends with after'
    f' {reached / cost:.0%} of its operations, those before growth included'
  )
