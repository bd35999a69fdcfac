"""The lab notebook: from a config to a report, top to bottom.

What a workdir holds is drawn in `job`. A directory under `stages` appears by one rename, so it is whole or not there: a run
that was killed anywhere goes on where it was when the same command is given again,
and on one device ends with the same bits.
"""

import functools
import json
import math
import shutil
from typing import Any

import jax

from jaxopt_compress import report
from jaxopt_compress.disk import files
from jaxopt_compress.disk import sealed
from jaxopt_compress.export import layout
from jaxopt_compress.export import trees
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.train import answers
from jaxopt_compress.train import cached
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import code
from jaxopt_compress.train import dry_run as dry_run_lib
from jaxopt_compress.train import evaluate
from jaxopt_compress.train import examples
from jaxopt_compress.train import exported
from jaxopt_compress.train import extend
from jaxopt_compress.train import final as final_lib
from jaxopt_compress.train import fits
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import measure
from jaxopt_compress.train import metrics as metrics_lib
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import one_shot
from jaxopt_compress.train import plan as plan_lib
from jaxopt_compress.train import plans
from jaxopt_compress.train import preemption
from jaxopt_compress.train import processes
from jaxopt_compress.train import record
from jaxopt_compress.train import stages as stages_lib
from jaxopt_compress.train import starting
from jaxopt_compress.train import validation
from jaxopt_compress.train import workdir as workdir_lib
from jaxopt_compress.train.step import finite


class Diverged(ValueError):
  """A loss or a parameter is no longer a finite number."""


def run(config: Any, workdir: str, *, dry_run: bool = False) -> None:
  """Runs the stages of a config, and resumes what an earlier run began.

  Args:
    config: a ConfigDict or dict; see `plan`.
    workdir: a directory, made if it is missing.
    dry_run: build and check everything, print it, and stop.

  Raises:
    ValueError: a mistake in the config or the workdir; a message of one line. So are
      another run in this workdir, and processes with different configs.
    Diverged: NaN or infinity, with the stage, the step and the last checkpoint.
    preemption.Preempted: SIGTERM or Ctrl-C came, and the step or stage is saved.
      While the report is made, they end the process.
  """
  # -- The plan -----------------------------------------------------------------
  config, work = _jsonable(config), workdir_lib.absolute(workdir)
  processes.agree(
    dict(plan_lib.flat({'config': config}))
    | {'workdir': str(work), 'dry_run': dry_run, 'jax': jax.__version__}
  )
  plan = plan_lib.parse(config)
  log = metrics_lib.log

  # -- Devices ------------------------------------------------------------------
  mesh = mesh_lib.data_mesh(plan.run.devices or None)
  log(
    f'Devices: {mesh.size} x {jax.devices()[0].device_kind}, {plan.run.mode}.'
  )

  # -- Data ---------------------------------------------------------------------
  data = examples.load(plan.data, plan.seed, plan.task)
  processes.agree({'the data': data.description})
  log(f'Data: {plan.data.name}, {data.description}.')

  # -- Models and stages, all checked before the first is trained ----------------
  if data.scale is not None:
    plan = plan_lib.scaled(plan, data.scale)
    log(
      f'Targets: {data.scale.describe()}{data.scale.advice(plan.asked.standardize)}.'
    )
  models = {
    name: model_lib.build(
      name,
      kwargs,
      data.example,
      plan.task,
      examples.classes_of(data, plan.stages, name),
    )
    for name, kwargs in plan.models.items()
  }
  metrics = metrics_lib.Metrics(work, tensorboard=plan.run.tensorboard)
  job = job_lib.Job(plan, data, mesh, work, metrics)
  found = plans.kept(job)
  built = stages_lib.build_all(plan, models, found)
  in_order = list(built.values())
  fits.check(in_order, plan.data, data, mesh.size)
  starting.check(job, in_order)
  log(dry_run_lib.describe(in_order, leaves=dry_run))
  if dry_run:
    _rehearse(job, in_order)
    log('Dry run: everything fits together; nothing was computed.')
    return

  # -- Workdir ------------------------------------------------------------------
  with workdir_lib.opened(work, [s.name for s in plan.stages]):
    asked = json.dumps(config, indent=2) + '\n'
    if not (work / 'config.json').exists() and jax.process_index() == 0:
      files.replace(work / 'config.json', asked)

    for name, said in code.changed(job).items():
      log(f'Warning: {name} {said}.')

    # -- Go ---------------------------------------------------------------------
    finished = {}
    with preemption.Watch() as watch:
      for name in built:
        finished[name] = _finished(job, built[name])
        if finished[name] is None:
          extend.prepare(job, built[name].stage)
          code.note(job, built[name].stage)
          if built[name].plan is not None and name not in found:
            start = starting.started(job, built[name], finished)
            found[name] = plans.find(job, built[name], *start)
            built = stages_lib.build_all(plan, models, found)
          b = built[name]
          state = starting.initial(job, b, finished)
          state, history = _train(job, b, state, finished, watch)
          _finish(job, b, state, history)
          finished[name] = _finished(job, b)
        # Here, and so also those of a run that was killed just before.
        if jax.process_index() == 0:
          shutil.rmtree(job.checkpoints(name), ignore_errors=True)
        if watch.requested():
          raise preemption.Preempted(
            f'Stopped after stage {name!r}, which is saved.'
          )

    # -- Measure, export, report -------------------------------------------------
    with preemption.Watch(saved=True):
      metrics.close()
      # One process can do it, each stage being whole on each of its devices.
      if jax.process_index() == 0:
        local = mesh_lib.local(finished)
        in_order = list(built.values())
        measured = measure.measure(job, in_order, local)
        log(report.text(record.record(job, in_order, local, measured)))
        for name in () if measured.failed else plan.report.export[-1:]:
          log(exported.served_by(work / 'export' / name, data.served))
        log(report.opens(work / 'report.html'))
        if measured.failed:
          raise measured.failed
        # Not before: a config that does not fit what is here must not replace it.
        files.replace(work / 'config.json', asked)
      processes.wait('report')


def _rehearse(job, built):
  """Raises what would stop a run before its first step, or at it."""
  by_name = {b.stage.name: b for b in built}
  for b in built:
    if b.step is not None:
      step_fn = step_lib.data_parallel(b.step, job.plan.run.mode, job.mesh)
      batch = job.data.batches(b.stage)[0]
      if b.stage.cache.asked:
        batch |= answers.blank(b.stage, batch[job.plan.data.target])
      batch = mesh_lib.share(batch)
      finals = {name: by_name[name].final for name in b.stage.distil.stages}
      dry_run_lib.trace(step_fn, b, batch, finals)
  if not job.work.exists():
    workdir_lib.check_can_be_made(job.work)
    return
  with workdir_lib.opened(job.work, [b.stage.name for b in built]):
    metrics_lib.read(job.work / 'metrics.jsonl')
    for b in built:
      how, said = extend.standing(job, b.stage)
      if said:
        metrics_lib.log(f'[{b.stage.name}] {said}')
      there = job.checkpoints(b.stage.name).exists() and how != extend.AGAIN
      if _finished(job, b) is None and there:
        with _checkpoints(job, b) as saver:
          _restored(job, b, saver)


def _train(job, built, state, finished, watch):
  """Takes a stage from its last checkpoint, or `state`, to its last step.

  Returns:
    (the state whose parameters it leaves, its evaluations).
  """
  stage, options, metrics = built.stage, job.plan.run, job.metrics
  history = validation.history(stage, job.plan.task, job.plan.report.metric)
  if built.step is None:
    return state, history
  step_fn = step_lib.data_parallel(built.step, options.mode, job.mesh)
  batches, teachers = cached.lessons(job, built, finished, watch)

  with _checkpoints(job, built) as saver:
    # -- Resume -------------------------------------------------------------------
    begin = 0
    if restored := _restored(job, built, saver):
      begin, state = restored
      history = history.from_json(saver.record(begin))
      metrics_lib.log(f'[{stage.name}] resumed at step {begin}.')
    metrics.begin(stage.name, begin)
    metrics.begin(f'{stage.name}/validation', begin)
    metrics.begin(f'{stage.name}/test', begin)
    progress = metrics_lib.Progress(stage.name, begin, stage.steps)
    leave = jax.jit(lambda s: final_lib.finish(s, *_parts(built)))
    pending = []  # what no one has looked at yet: [(step, values)]

    def flush():
      for i, values in pending:
        if not finite.is_finite(values):
          what = finite.not_finite(values)
          raise Diverged(_diverged(stage, f'The {what}', i, saver))
      if pending:
        i, values = pending[-1]
        values = {name: float(x) for name, x in values.items()}
        metrics.write(stage.name, i, values)
        progress.show(i, values)
      pending.clear()

    def save(step):
      flush()
      kept = (state.params, state.variables, state.learned, state.comp_state)
      if not finite.is_finite(kept):
        what = 'A weight or a range is not finite'
        raise Diverged(_diverged(stage, what, step, saver))
      needs = [history.best] if history.keeps and history.best else []
      saver.save(step, state, history.to_json(), needs)

    # -- Train --------------------------------------------------------------------
    running = []
    for done in range(begin + 1, stage.steps + 1):
      if history.stalled:
        break
      state, values = step_fn(
        state, mesh_lib.share(batches[done - 1]), teachers
      )
      pending.append((done, values))
      # One step may wait behind the running one, so that the host prepares batches
      # meanwhile; none on several devices, which on a CPU starve each other.
      running.append(values)
      if len(running) > 1 or job.mesh.size > 1:
        jax.block_until_ready(running.pop(0))
      progress.advance()
      if done % options.log_every == 0 or done == stage.steps:
        flush()
      # Before it is saved: a run that goes on from there does not come here again.
      if validation.due(stage, done) and job.data.validation:
        flush()
        seen = _validated(job, built, mesh_lib.local(leave(state)), done)
        if not math.isfinite(seen['loss']):
          what = f'The validation loss is {seen["loss"]}'
          raise Diverged(_diverged(stage, what, done, saver))
        history = history.after(done, seen)
        metrics_lib.log(f'[{stage.name}] {history.told(stage.steps)}')
      last = done == stage.steps or history.stalled
      better = history.keeps and history.best == done
      if done % options.save_every == 0 or last or better:
        save(done)
      if watch.requested():
        save(done)
        saver.wait()
        raise preemption.Preempted(
          f'Stopped at step {done} of stage {stage.name!r}, which is saved.'
        )
    progress.close()
    if said := validation.outcome(stage, history):
      metrics_lib.log(f'[{stage.name}] {said}')
    if history.keeps and history.best != history.last:
      saver.wait()
      template = stages_lib.with_sharding(built.template, job.mesh)
      state = saver.restore_step(history.best, template)
  return state, history


def _checkpoints(job, built):
  """Those of a stage that is being trained."""
  return checkpoint.Checkpoints(
    job.checkpoints(built.stage.name),
    config=job.plan.fingerprint(built.stage),
    keep=job.plan.run.keep,
    accepts=functools.partial(extend.goes_on, built.stage.name),
  )


def _restored(job, built, saver):
  return saver.restore(stages_lib.with_sharding(built.template, job.mesh))


def _diverged(stage, what, step, saver):
  saver.wait()
  last = f'step {saver.steps[-1]}' if saver.steps else 'none yet'
  return (
    f'{what} at step {step} of stage {stage.name!r}. The last good checkpoint is'
    f' kept ({last}). Lower learning_rate, set clip, or lengthen warmup.'
  )


def _finish(job, built, state, history):
  """Evaluates a stage and puts what it leaves behind under its final name."""
  name, config = built.stage.name, job.plan.fingerprint(built.stage)
  start = mesh_lib.local((state.params, state.variables))
  given = one_shot.given(job, built, *start)
  final = jax.jit(lambda s, given: final_lib.finish(s, *_parts(built), given))(
    state, mesh_lib.replicate(given, job.mesh)
  )
  local = mesh_lib.local(final)
  step = int(mesh_lib.local(state.step))
  job.metrics.begin(f'{name}/test', step - 1)
  found, quality = _tested(job, built, local, step)
  first = job.plan.report.metric
  metrics_lib.log(
    f'[{name}] held out: {built.model.task.told(found.metrics, first)}.'
  )
  partial, whole = job.stage(f'{name}.partial'), job.stage(name)
  if jax.process_index() == 0:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
  processes.wait(f'{name} partial')
  checkpoint.save(partial / 'tree', final, config)
  if jax.process_index() == 0:
    stored = final_lib.without_zeros(local, built.model.uses)
    trees.save(partial / job_lib.WEIGHTS, stored)
    result = {'stage': name, 'config': config, 'count': found.count, **quality}
    result |= {'step': step, 'validation': history.to_json()}
    ended = history.last or built.stage.steps
    result['lengths'] = extend.lengths(whole, config, name, ended)
    result['weights'] = sealed.sha256(partial / job_lib.WEIGHTS)
    sealed.write(partial / job_lib.RESULT, result)
    if built.plan is not None:
      shutil.copy(job.checkpoints(name) / job_lib.PLAN, partial)
    if built.step is not None:
      extend.keep(job.checkpoints(name), partial / 'state')
    layout.sync(partial)
    extend.put(partial, whole)
  processes.wait(f'{name} whole')


def _parts(built):
  return built.stage, built.model, built.compression


def _judged(job, built, final, examples):
  return evaluate.evaluate(
    built.model.forward,
    final['params'],
    final['variables'],
    examples,
    inputs=job.plan.data.input,
    targets=job.plan.data.target,
    task=built.model.task,
  )


def _tested(job, built, final, step):
  """(evaluation on held-out examples, what is kept of it), written down."""
  found = _judged(job, built, final, job.data.test)
  quality = {'loss': found.loss} | found.metrics
  job.metrics.write(f'{built.stage.name}/test', step, quality)
  return found, quality


def _validated(job, built, final, step):
  """The numbers of the validation split, written down; in all processes the same."""
  found = _judged(job, built, final, job.data.validation)
  # Process 0 decides: of machines that round differently one could stop alone.
  numbers = json.loads(processes.gather(json.dumps(dict(found.metrics)))[0])
  job.metrics.write(f'{built.stage.name}/validation', step, numbers)
  return numbers


def _finished(job, built):
  """What a finished stage left behind, or None."""
  directory = job.stage(built.stage.name)
  if not directory.exists():
    return None
  try:
    result = sealed.read(directory / job_lib.RESULT)
    name, now = built.stage.name, job.plan.fingerprint(built.stage)
    if extend.change(result.get('config', now), now, name) in extend.TO_DO:
      return None
    sealed.check(directory / job_lib.WEIGHTS, str(result.get('weights')))
    return checkpoint.restore(
      directory / 'tree',
      stages_lib.with_sharding(built.final, job.mesh),
      job.plan.fingerprint(built.stage),
    )
  except (sealed.Damaged, checkpoint.CorruptCheckpoint) as e:
    raise ValueError(
      f'{e} Remove {directory} to make that stage again; the others are kept.'
    ) from e


def _jsonable(config):
  return config.to_dict() if hasattr(config, 'to_dict') else config
