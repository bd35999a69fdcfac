"""A config, checked and turned into plain frozen dataclasses.

A config (`configs/*.py`) is a ConfigDict of ints, floats, strings and tuples:

    seed                  of everything random
    data                  Data: which examples
    models.<name>         keywords of `models.build`
    stages                the names of the stages, in the order they run
    stage.<name>          Stage: what is trained, from what, and how it is compressed
    report                Report: what is exported and compared
    run                   Run: how it runs; no part of a checkpoint's identity

The ConfigDict stops here: everything below gets these dataclasses or keywords.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
from typing import Any
import zlib

from jaxopt_compress import quantization
from jaxopt_compress.parallel import step as step_lib

METRICS = ('accuracy', 'bits per byte')
_COUNTS = ('log_every', 'save_every', 'keep')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Examples to train on, and held-out examples to be judged by."""

  name: str  # a module of jaxopt_compress.data
  train: str = 'train'
  test: str = 'test'
  input: str = 'image'
  target: str = 'label'
  eval_batch_size: int = 256
  window: int = 256  # of a text, in bytes
  files: str = ''  # of a text: those whose path this regex matches; '': all
  # Evaluate on that many held-out examples; of a text, bytes in excerpts from all
  # over it. 0: on all.
  limit: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One step of the plan: a model, trained or only compressed."""

  name: str
  model: str
  init: str = ''  # the stage whose parameters it starts from; '': from scratch
  teacher: str = ''  # the stage that it is distilled from
  steps: int = 0  # 0: nothing is trained, `init` is compressed as it is
  batch_size: int = 128
  augment: bool = False
  files: str = ''  # to train on, of a text; '': those of the data
  # Optimizer.
  optimizer: str = 'adamw'
  learning_rate: float = 1e-3
  warmup: float = 0.0  # fraction of the steps
  decay: str = 'cosine'
  weight_decay: float = 0.0
  clip: float = 0.0  # largest norm of a gradient; 0: any
  # Of what is learned beside the weights (steps of LSQ), by Adam without decay: a
  # fraction of the learning rate, as Adam moves a step of 0.01 as far as a weight.
  learned_rate: float = 0.1
  label_smoothing: float = 0.0
  # Distillation: alpha * T^2 KL + (1 - alpha) * cross entropy.
  alpha: float = 0.9
  temperature: float = 4.0
  # Compression: rules of (regex, value), see `train.stages`.
  prune: tuple = ()
  prune_score: str = 'magnitude'
  prune_scope: str = 'leaf'
  prune_k: float = 0.0
  prune_span: tuple[float, float] = (0.0, 0.7)  # fractions of the steps
  prune_every: int = 10
  quantize: tuple = ()
  # Where `quantize` says static, ranges of activations are found before the first
  # step: on so many batches of the training data, not augmented, by this method.
  calibrate: str = 'mse'
  calibrate_batches: int = 8
  # Adapters: only they are trained, beside the frozen parameters of `init`, which
  # are stored as `quantize` says. Rules of (regex, rank).
  lora: tuple = ()
  lora_alpha: float = 16.0
  lora_rank_stabilized: bool = False

  @property
  def compresses(self) -> bool:
    return bool(self.prune or self.quantize or self.lora)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What the run ends with."""

  reference: str = (
    ''  # fidelity and speed are relative to this stage; '': first
  )
  metric: str = 'accuracy'  # or 'bits per byte'
  export: tuple[str, ...] = ()  # stages that are exported and checked
  batches: tuple[int, ...] = (1, 256)  # at which latency is measured
  seconds: float = 0.5  # spent on latency at each batch size
  plots: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """How it runs. None of these is part of a checkpoint's identity."""

  mode: str = 'shard_map'  # or 'pmap', 'jit'
  devices: int = 0  # 0: all
  log_every: int = 50
  save_every: int = 200
  keep: int = 2
  tensorboard: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
  """A whole config."""

  seed: int
  data: Data
  models: Mapping[str, Mapping[str, Any]]
  stages: Sequence[Stage]
  report: Report
  run: Run

  def stage(self, name: str) -> Stage:
    return next(s for s in self.stages if s.name == name)

  def fingerprint(self, stage: Stage) -> dict[str, Any]:
    """Flat dict of all that the result of a stage depends on.

    That is the seed, the data, the stage and the stages that it starts from or
    learns from, and their models. Later stages may change, and so may `run`.
    """
    needed = self.needed(stage)
    parts = {'seed': self.seed, 'data': dataclasses.asdict(self.data)}
    parts['models'] = {s.model: dict(self.models[s.model]) for s in needed}
    parts['stage'] = {s.name: dataclasses.asdict(s) for s in needed}
    return dict(_flat(parts))

  def needed(self, stage: Stage) -> list[Stage]:
    """The stage after all that it depends on."""
    before = [self.stage(n) for n in (stage.init, stage.teacher) if n]
    found = [s for b in before for s in self.needed(b)] + [stage]
    return list({s.name: s for s in found}.values())


def stage_seed(seed: int, name: str) -> int:
  """A seed of the stage's own, which does not depend on the other stages."""
  return (seed + zlib.crc32(name.encode())) % 2**31


def parse(config: Mapping[str, Any]) -> Plan:
  """Checks a config and returns the plan.

  Raises:
    ValueError: a key that is not known (with a guess), a value of another type, a
      stage that names a model or a stage that is not there.
  """
  config = _plain(config)
  known = ('seed', 'data', 'models', 'stages', 'stage', 'report', 'run')
  _check_keys('config', config, known)
  for key in ('data', 'models', 'stages', 'stage'):
    if not config.get(key):
      raise ValueError(f'The config has no {key}. See configs/digits.py.')
  names = tuple(config['stages'])
  _check_keys('config.stage', dict.fromkeys(names), tuple(config['stage']))
  stages = [
    _build(Stage, f'config.stage.{n}', {'name': n, **config['stage'][n]})
    for n in names
  ]
  plan = Plan(
    seed=int(config.get('seed', 0)),
    data=_build(Data, 'config.data', config['data']),
    models=config['models'],
    stages=tuple(stages),
    report=_build(Report, 'config.report', config.get('report', {})),
    run=_build(Run, 'config.run', config.get('run', {})),
  )
  _check_references(plan)
  return plan


def complete(config: Any) -> Any:
  """Fills in the defaults, so that every option can be given as a flag.

  Args:
    config: a ConfigDict, changed in place and returned.
  """
  for key, cls in (('data', Data), ('report', Report), ('run', Run)):
    _fill(config, key, cls)
  for name in config.stage:
    config.stage[name].name = name
    _fill(config.stage, name, Stage)
  return config


def _fill(config, key, cls):
  if key not in config:
    config[key] = {}
  for field in dataclasses.fields(cls):
    missing = field.name not in config[key]
    if missing and field.default is not dataclasses.MISSING:
      config[key][field.name] = field.default


def _check_references(plan):
  earlier = []
  for stage in plan.stages:
    where = f'config.stage.{stage.name}'
    _one_of(f'{where}.model', stage.model, plan.models)
    for key in ('init', 'teacher'):
      if name := getattr(stage, key):
        _one_of(f'{where}.{key}', name, earlier, 'an earlier stage')
    if not stage.steps and not stage.init:
      raise ValueError(
        f'{where} trains nothing and starts from nothing. Set steps, or init to'
        ' the stage that it compresses.'
      )
    if stage.lora and not (stage.steps and stage.init and not stage.prune):
      raise ValueError(
        f'{where} has adapters, which are trained beside the finished parameters'
        ' of another stage. Set steps and init, and prune in a stage before.'
      )
    if not stage.steps and not (stage.prune or stage.quantize):
      raise ValueError(
        f'{where} has no steps and nothing to compress. Set steps, prune or'
        ' quantize.'
      )
    earlier.append(stage.name)
  for name in plan.report.export:
    _one_of('config.report.export', name, earlier)
  _one_of('config.report.metric', plan.report.metric, METRICS)
  _one_of('config.run.mode', plan.run.mode, step_lib.MODES)
  _check_numbers(plan)
  if plan.report.reference:
    _one_of('config.report.reference', plan.report.reference, earlier)


def _check_numbers(plan):
  least = [
    *((f'config.run.{k}', getattr(plan.run, k), 1) for k in _COUNTS),
    *(('config.report.batches', batch, 1) for batch in plan.report.batches),
  ]
  for stage in plan.stages:
    where = f'config.stage.{stage.name}'
    least += [(f'{where}.batch_size', stage.batch_size, 1)]
    least += [(f'{where}.steps', stage.steps, 0)]
    least += [(f'{where}.calibrate_batches', stage.calibrate_batches, 1)]
    methods = quantization.ranges.METHODS
    _one_of(f'{where}.calibrate', stage.calibrate, methods)
    if not 0 <= stage.warmup < 1:
      raise ValueError(
        f'{where}.warmup is {stage.warmup}; a fraction of the steps in [0, 1) is'
        ' expected.'
      )
  for where, value, smallest in least:
    if value < smallest:
      raise ValueError(f'{where} is {value}; at least {smallest} is expected.')


def _build(cls, where, values):
  fields = {f.name: f for f in dataclasses.fields(cls)}
  _check_keys(where, values, tuple(fields))
  for name, field in fields.items():
    if field.default is dataclasses.MISSING and name not in values:
      raise ValueError(f'{where} needs a {name!r}.')
  return cls(
    **{k: _typed(f'{where}.{k}', v, fields[k]) for k, v in values.items()}
  )


def _typed(where, value, field):
  """The value as the type of the field's default; ints pass for floats."""
  default = '' if field.default is dataclasses.MISSING else field.default
  if isinstance(default, float) and type(value) is int:
    value = float(value)
  if isinstance(default, bool) and type(value) is int:
    value = bool(value)
  if type(value) is not type(default):
    raise ValueError(
      f'{where} is {value!r}, a {type(value).__name__}; a'
      f' {type(default).__name__} such as {default!r} is expected.'
    )
  return value


def _check_keys(where, values, known):
  for key in values:
    if key not in known:
      raise ValueError(
        f'{where} has no {key!r}.{_guess(key, known)} It has'
        f' {", ".join(sorted(known))}.'
      )


def _one_of(where, value, choices, what='one'):
  if value not in choices:
    raise ValueError(
      f'{where} is {value!r}, which is not {what} of'
      f' {", ".join(choices) or "none"}.{_guess(value, choices)}'
    )


def _guess(word, words) -> str:
  close = difflib.get_close_matches(str(word), [str(w) for w in words], n=1)
  return f' Did you mean {close[0]!r}?' if close else ''


def _plain(x):
  """ConfigDicts as dicts, lists as tuples."""
  if hasattr(x, 'to_dict'):
    x = x.to_dict()
  if isinstance(x, Mapping):
    return {str(key): _plain(value) for key, value in x.items()}
  if isinstance(x, (list, tuple)):
    return tuple(_plain(y) for y in x)
  return x


def _flat(tree, prefix=''):
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
