"""A config, checked and turned into frozen records.

A config (`configs/*.py`) is a ConfigDict of ints, floats, strings and tuples:

    seed                  of everything random
    data                  options.Data: which examples
    task                  options.Task: what is asked for; a text is its name
    models.<name>         keywords of `models.build`
    stages                the names of the stages, in the order they run
    stage.<name>          options.Stage: what is trained, and how it is compressed
    report                options.Report: what is exported and compared
    run                   options.Run: how it runs; no part of a checkpoint's identity

The ConfigDict stops here: everything below gets these records, or keywords.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import re
from typing import Any
import zlib

from jaxopt_compress.calibration import ranges
from jaxopt_compress.core import choices
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.train import answers
from jaxopt_compress.train import distil
from jaxopt_compress.train import fields
from jaxopt_compress.train import grow
from jaxopt_compress.train import imported
from jaxopt_compress.train import on_policy
from jaxopt_compress.train import options
from jaxopt_compress.train import penalty
from jaxopt_compress.train import shrink
from jaxopt_compress.train import sources
from jaxopt_compress.train import tasks
from jaxopt_compress.train import validation

_SEEDS = '[0, 2147483648)'  # `stage_seed` tells no more apart
_OF_VALIDATION = ('eval_every', 'keep', 'metric', 'patience', 'min_delta')


@dataclasses.dataclass(frozen=True)
class Plan:
  """A whole config."""

  seed: int
  data: options.Data
  asked: options.Task
  task: tasks.Task
  models: Mapping[str, Mapping[str, Any]]
  stages: Sequence[options.Stage]
  report: options.Report
  run: options.Run

  def stage(self, name: str) -> options.Stage:
    return next(s for s in self.stages if s.name == name)

  def fingerprint(self, stage: options.Stage) -> dict[str, Any]:
    """Flat dict of all that the result of a stage depends on.

    That is the seed, the data, the stage and the stages that it starts from or
    learns from, and their models. Later stages may change, and so may `run`, and
    evaluations that decide nothing.
    """
    needed = self.needed(stage)
    parts = {'seed': self.seed, 'data': fields.written(self.data)}
    decides = any(s.validation.decides for s in needed)
    if isinstance(self.data.validation, str) and not decides:
      del parts['data']['validation']
    if self.asked != options.Task():
      parts['task'] = fields.written(self.asked)
    parts['models'] = {s.model: dict(self.models[s.model]) for s in needed}
    parts['stage'] = {s.name: self._written(s) for s in needed}
    return dict(flat(parts))

  def _written(self, stage):
    said, rules = fields.written(stage), stage.validation
    if rules.decides:
      return said | {'metric': rules.metric or self.report.metric}
    return {k: x for k, x in said.items() if k not in _OF_VALIDATION}

  def needed(self, stage: options.Stage) -> list[options.Stage]:
    """The stage after all that it depends on."""
    before = [self.stage(name) for _, name in stage.sources]
    found = [s for b in before for s in self.needed(b)] + [stage]
    return list({s.name: s for s in found}.values())


def stage_seed(seed: int, name: str) -> int:
  """A seed of the stage's own, which does not depend on the other stages."""
  return (seed + zlib.crc32(name.encode())) % 2**31


def parse(config: Mapping[str, Any]) -> Plan:
  """Checks a config and returns the plan.

  Raises:
    ValueError: a key that is not known (with a guess), a value of another type, out
      of its range or without effect, a stage that names a model or a stage that is
      not there.
  """
  config = _plain(config)
  fields.check_mapping('config', config)
  known = ('seed', 'data', 'task', 'models', 'stages', 'stage', 'report', 'run')
  fields.check_keys('config', config, known)
  for key in ('data', 'models', 'stages', 'stage'):
    if not config.get(key):
      raise ValueError(f'The config has no {key}. See `jaxopt-compress init`.')
  names = config['stages']
  _check_names(names)
  for key in ('models', 'stage'):
    fields.check_mapping(f'config.{key}', config[key])
    for name, said in config[key].items():
      fields.check_mapping(f'config.{key}.{name}', said)
  # A config may describe stages that it does not run.
  fields.check_keys(
    'config.stage', dict.fromkeys(names), tuple(config['stage'])
  )
  data = fields.read(options.Data, 'config.data', config['data'])
  sources.module_of(data)
  asked = fields.read(
    options.Task, 'config.task', _task(config.get('task', {}))
  )
  report = fields.read(
    options.Report, 'config.report', config.get('report', {})
  )
  stages = [_stage(n, config['stage'][n]) for n in names]
  task = tasks.read.read(asked, data.name, _numbers(report, stages))
  plan = Plan(
    seed=fields.number('config.seed', config.get('seed', 0), 0, _SEEDS),
    data=data,
    asked=asked,
    task=task,
    models=config['models'],
    stages=tuple(_towards_teachers(s, task) for s in stages),
    report=dataclasses.replace(
      report, metric=report.metric or next(iter(task.metrics))
    ),
    run=fields.read(options.Run, 'config.run', config.get('run', {})),
  )
  _check_references(plan)
  return plan


def scaled(plan: Plan, scale: tasks.regression.Scale) -> Plan:
  """The plan whose task knows the targets to train on."""
  numbers = _numbers(plan.report, plan.stages)
  task = tasks.read.read(plan.asked, plan.data.name, numbers, scale)
  return dataclasses.replace(plan, task=task)


def _numbers(report, stages):
  """{path in the config: the metric that it names}."""
  found = {'config.report.metric': report.metric}
  for s in stages:
    found[f'config.stage.{s.name}.metric'] = s.validation.metric
  return found


def _task(said):
  """A text is the name of a task."""
  return {'name': said} if isinstance(said, str) else said


def _towards_teachers(stage, task):
  """The stage with the loss of the task, where it has a teacher and says none."""
  distil = stage.distil
  if distil.loss or not distil.teacher:
    return stage
  distil = dataclasses.replace(distil, loss=task.soft)
  return dataclasses.replace(stage, distil=distil)


def _check_names(names):
  """Stages have names of their own, which are those of directories."""
  if not isinstance(names, tuple):
    raise ValueError(
      f"config.stages is {names!r}; a tuple such as ('teacher', 'student') is"
      ' expected.'
    )
  for i, name in enumerate(names):
    if not re.fullmatch(r'[A-Za-z0-9_-]+', str(name)):
      raise ValueError(
        f'config.stages has {name!r}; a name of letters, digits, "_" and "-" is'
        ' expected, as it is that of a directory.'
      )
    if name == options.EMA:
      raise ValueError(
        f'config.stages has {name!r}, which is the teacher that follows its student.'
        ' Give the stage another name.'
      )
    if name in names[:i]:
      raise ValueError(
        f'config.stages has {name!r} twice. Give one of them another name.'
      )


def _stage(name, said):
  if said.get('name', name) != name:
    raise ValueError(
      f'config.stage.{name}.name is {said["name"]!r}; the name of a stage is its'
      ' key. Leave it out.'
    )
  return fields.read(
    options.Stage, f'config.stage.{name}', {'name': name, **said}
  )


def complete(config: Any) -> Any:
  """Fills in the defaults, so that every option can be given as a flag.

  Args:
    config: a ConfigDict, changed in place and returned.

  Raises:
    ValueError: a value stands where there are options of its own.
  """
  _fill('config', config, 'data', options.Data)
  if isinstance(said := config.get('task', {}), str):
    del config['task']
    config['task'] = _task(said)
  _fill('config', config, 'task', options.Task)
  _fill('config', config, 'report', options.Report)
  _fill('config', config, 'run', options.Run)
  stages = config.get('stage', {})
  fields.check_mapping('config.stage', _plain(stages))
  for name in stages:
    _fill('config.stage', stages, name, options.Stage)
    stages[name].name = name
  return config


def _fill(where, config, key, cls):
  if key not in config:
    config[key] = {}
  _default(f'{where}.{key}', config[key], fields.defaults_of(cls))
  for name, said in fields.keys_of(cls).items():
    if said.also and name in config[key]:
      _of_any_type(config[key], name)


def _of_any_type(config, key):
  """Has a flag take a number, words or a tuple, where a config fixes the type."""
  from ml_collections import config_dict  # What brings a ConfigDict is there.

  value = config[key]
  del config[key]
  config[key] = config_dict.FieldReference(value, field_type=object)


def _default(where, config, defaults):
  fields.check_mapping(where, _plain(config))
  for name, default in defaults.items():
    if name not in config and default is not dataclasses.MISSING:
      config[name] = default
    elif isinstance(default, Mapping):
      _default(f'{where}.{name}', config[name], default)


def _check_references(plan):
  earlier = []
  sources.check_apart(plan.data)
  validation.check_split(plan.data)
  for stage in plan.stages:
    where = f'config.stage.{stage.name}'
    choices.one_of(f'{where}.model', stage.model, tuple(plan.models))
    imported.check(where, stage)
    distil.check(where, stage)
    on_policy.check(where, stage, plan.data)
    answers.check(where, stage)
    validation.check(where, stage, plan.data, plan.task, plan.report.metric)
    tasks.check.check(where, stage, plan.data, plan.task)
    for key, name in stage.sources:
      if name not in earlier:
        raise ValueError(
          f'{where}.{key} is {name!r}; a stage that runs before it is expected,'
          f' of {earlier}.{choices.guess(name, earlier)}'
          + (' Or a path: "./weights.safetensors".' if key == 'init' else '')
        )
    if not stage.steps and not stage.init:
      raise ValueError(
        f'{where} trains nothing and starts from nothing. Set steps, or init to'
        ' the stage that it compresses.'
      )
    choices.one_of(
      f'{where}.calibrate', stage.quantize.calibrate, ranges.METHODS
    )
    if len(stage.prune.span) != 2 or stage.prune.span[0] > stage.prune.span[1]:
      raise ValueError(
        f'{where}.prune_span is {stage.prune.span}; two fractions of the steps, the'
        ' first not above the second, are expected.'
      )
    _check_adapters(where, stage)
    penalty.check(where, stage.penalty, stage.init)
    if stage.shrink.asked or stage.grow.asked:
      _check_resized(where, stage)
    elif not (
      stage.steps or stage.prune.rules or stage.quantize.rules or stage.file
    ):
      raise ValueError(
        f'{where} has no steps and nothing to compress. Set steps, prune,'
        ' quantize, shrink or grow.'
      )
    earlier.append(stage.name)
  _check_report(plan, tuple(earlier))


def _check_report(plan, stages):
  """What is exported and compared, and how the run goes."""
  for name in plan.report.export:
    choices.one_of('config.report.export', name, stages)
  if not plan.report.batches:
    raise ValueError(
      'config.report.batches is (); at least one batch size is expected.'
    )
  choices.one_of('config.run.mode', plan.run.mode, step_lib.MODES)
  # With 'jit' there is one replica, and no axis to name.
  axes = (None,) if plan.run.mode == 'jit' else (None, mesh_lib.AXIS)
  for name, said in plan.models.items():
    choices.one_of(
      f'config.models.{name}.axis_name', said.get('axis_name'), axes
    )
  if plan.report.reference:
    choices.one_of('config.report.reference', plan.report.reference, stages)


def _check_adapters(where, stage):
  ready = stage.steps and stage.init and not stage.prune.rules
  if stage.adapters.rules and not ready:
    raise ValueError(
      f'{where} has adapters, which are trained beside the finished parameters'
      ' of another stage. Set steps and init, and prune in a stage before.'
    )


def _check_resized(where, stage):
  if not stage.init:
    word = 'shrink' if stage.shrink.asked else 'grow'
    raise ValueError(
      f'{where}.{word} has no effect without init: channels go from, or come to, what'
      ' another stage has trained. Set init to it.'
    )
  if stage.shrink.asked and stage.grow.asked:
    raise ValueError(
      f'{where} shrinks and grows. Give each a stage of its own: one without steps'
      ' leaves its network as it starts.'
    )
  if stage.shrink.asked:
    shrink.check(f'{where}.shrink', stage.shrink)
  else:
    grow.check(f'{where}.grow', stage.grow)


def _plain(x):
  """ConfigDicts as dicts, lists as tuples."""
  if hasattr(x, 'to_dict'):
    x = x.to_dict()
  if isinstance(x, Mapping):
    return {str(key): _plain(value) for key, value in x.items()}
  if isinstance(x, (list, tuple)):
    return tuple(_plain(y) for y in x)
  return x


def flat(tree, prefix=''):
  """Pairs of ('a.b.c', value) of nested dicts."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
