"""What a config may say: frozen records, and the default of every field.

`fields` reads them from a config and writes them back; `plan` checks that they fit
together.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from jaxopt_compress.train import fields

EMA = 'ema'  # the teacher that is the moving average of its student


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Examples to train on, and held-out examples to be judged by."""

  # A module of jaxopt_compress.data, or the user's function: 'my_pkg.data:load'.
  name: str
  train: str = 'train'
  test: str = 'test'
  # What stages are judged by while they are trained: a split, or the share of the
  # training examples that is held back for it. The split `test` decides nothing.
  validation: str = fields.option('', also=float)
  input: str = 'image'
  target: str = 'label'
  # Made harder to learn from: of the examples of each class so many are there, and of
  # the labels so many are wrong; see `data.labels`. Not for a text.
  labels: float = fields.option(1.0, '(0, 1]')
  label_noise: float = fields.option(0.0, '[0, 1]')
  # The examples without a label stay, for stages with a teacher.
  unlabelled: bool = False
  eval_batch_size: int = fields.option(256, '[1, inf)')
  window: int = fields.option(256, '[1, inf)')  # of a text, in bytes
  files: str = ''  # of a text: those whose path this regex matches; '': all
  # Evaluate on that many held-out examples; of a text, bytes in excerpts from all
  # over it. 0: on all.
  limit: int = fields.option(0, '[0, inf)')
  # What else is said are keywords of its function `load`; see `train.sources`.
  keywords: Mapping[str, Any] = fields.rest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What networks are asked for; see `train.tasks.read`."""

  # '': what the data is for. 'classification', 'regression', or the user's own,
  # 'my_pkg.tasks:my_task'.
  name: str = ''
  # Of labels; '': that of the task. Of regression 'mse', 'mae' or 'huber, delta 0.5', or
  # the user's own, 'my_pkg.losses:focal, gamma 2.0'.
  loss: str = ''
  # Whether targets of regression have mean 0 and deviation 1 for the network.
  standardize: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """How parameters are moved; see `train.optimizer`."""

  name: str = 'adamw'
  learning_rate: float = fields.option(1e-3, '[0, inf)')
  warmup: float = fields.option(0.0, '[0, 1)')  # fraction of the steps
  decay: str = 'cosine'
  weight_decay: float = fields.option(0.0, '[0, inf)')
  # The largest norm of a gradient; 0: any.
  clip: float = fields.option(0.0, '[0, inf)')
  # Of what is learned beside the weights (steps of LSQ), by Adam without decay: a
  # fraction of the learning rate, as Adam moves a step of 0.01 as far as a weight.
  learned_rate: float = fields.option(0.1, '[0, inf)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
  """What a stage is judged by while it is trained; see `train.validation`."""

  # Steps between two evaluations on `data.validation`; 0: at its end alone.
  every: int = fields.option(0, '[0, inf)')
  # 'best': the stage leaves the parameters of its best evaluation, not of its last
  # step.
  keep: str = fields.option('last', needs='eval_every')
  # By which metric; '': by that of the report.
  metric: str = fields.option('', needs='eval_every')
  # After so many evaluations in a row without an improvement of more than
  # `min_delta`, the stage ends; 0: never.
  patience: int = fields.option(0, '[0, inf)', needs='eval_every')
  min_delta: float = fields.option(0.0, '[0, inf)', needs='patience')

  @property
  def decides(self) -> bool:
    """Whether what the stage leaves depends on its evaluations."""
    return self.keep != 'last' or self.patience > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distil:
  """alpha * loss(student, teacher) + (1 - alpha) * cross entropy; see `train.distil`.

  alpha, the temperature and the numbers of the loss may be schedules, in words: see
  `train.schedules`.
  """

  # The stage that it is distilled from; '': labels alone; 'ema': the moving average
  # of the student itself. Of several, pairs of each and its share.
  teacher: str = fields.option('', also=tuple)
  # See `train.soft_loss`; '': that of the task, 'kl' or 'mse'.
  loss: str = fields.option('', needs='teacher')
  alpha: float = fields.option(0.9, '[0, 1]', needs='teacher', also=str)
  temperature: float = fields.option(4.0, '(0, inf)', needs='teacher', also=str)
  # Mean 0 and variance 1 over the classes, of the logits on both sides.
  standardize: bool = fields.option(False, needs='teacher')
  # Of several teachers, the mean of their distributions is one teacher.
  ensemble: bool = fields.option(False, needs='teacher')
  ema_decay: float = fields.option(0.999, '[0, 1)', needs='teacher')
  # The share of batches that the student continues itself, each window after so many
  # tokens: see `train.on_policy`.
  on_policy: float = fields.option(0.0, '[0, 1]', needs='teacher', also=str)
  prompt: int = fields.option(16, '[1, inf)', needs='on_policy')
  # In which teachers are kept and compute; '': as they were trained.
  teacher_dtype: str = fields.option('', needs='teacher')
  # Of (student regex, teacher regex, loss, weight), see `train.features`; which of the
  # teacher's layers each of the student's imitates, see `distillation.layers`; where
  # widths differ, or always, by what: '', 'random', 'identity' or 'none'.
  features: tuple = fields.option((), needs='teacher')
  layer_map: str = fields.option('uniform', needs='features')
  connector: str = fields.option('', needs='features')

  @property
  def teachers(self) -> tuple[tuple[str, float], ...]:
    """(name, share) of each; the moving average is the last."""
    said = self.teacher
    if isinstance(said, str):
      said = ((said, 1.0),) if said else ()
    return tuple(sorted(said, key=lambda pair: pair[0] == EMA))

  @property
  def stages(self) -> tuple[str, ...]:
    """Those that are stages."""
    return tuple(name for name, _ in self.teachers if name != EMA)

  @property
  def follows(self) -> bool:
    """Whether a teacher is the moving average of the student."""
    return any(name == EMA for name, _ in self.teachers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
  """A teacher that is asked once, before the first step; see `train.cached`.

  Either `k` or `draws` says what is kept of each answer.
  """

  # The likeliest entries; of the others together, their mass.
  k: int = fields.option(0, '[0, inf)')
  draws: int = fields.option(0, '[0, inf)')  # entries drawn from the answer

  @property
  def asked(self) -> bool:
    return bool(self.entries)

  @property
  def entries(self) -> int:
    return self.k or self.draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
  """What is masked, and when; see `train.words`."""

  # Of (regex, sparsity), or the keywords of `jc.rules_for`.
  rules: tuple | dict = fields.option((), also=dict)
  score: str = fields.option('magnitude', needs='prune')
  scope: str = fields.option('', needs='prune')  # '': what the score asks for
  k: float = fields.option(
    0.0, '[0, inf)', needs='prune prune_score=soft_threshold'
  )
  # Fractions of the steps.
  span: tuple[float, float] = fields.option(
    (0.0, 0.7), '[0, 1]', needs='prune steps'
  )
  every: int = fields.option(10, '[1, inf)', needs='prune steps')
  method: str = fields.option('gradual', needs='prune steps')
  schedule: str = fields.option('cubic', needs='prune steps')
  allocation: str = fields.option('uniform', needs='prune')
  # The stage whose masks these are, on the weights of `init`: rewinding.
  masks: str = fields.option('', needs='prune steps init')
  # Of the methods that take them: see `pruning.methods`.
  drop: float = fields.option(0.3, '[0, 1]', needs='prune steps')
  threshold: float = fields.option(0.1, '(0, 0.5)', needs='prune steps')
  penalty: float = fields.option(10.0, '[0, inf)', needs='prune steps')
  decay: float = fields.option(2e-4, '[0, inf)', needs='prune steps')
  # Of training data, for a score of data in a stage without steps.
  batches: int = fields.option(8, '[1, inf)', needs='prune')
  # Of masks that are random; -1: that of the run, of which each stage has its own.
  seed: int = fields.option(-1, '[-1, inf)', needs='prune')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize:
  """What is rounded, and in which ranges; see `train.words`.

  Where the rules say static, ranges of activations are found before the first step,
  on training data that is not augmented.
  """

  # Of (regex, scheme), or the keywords of `jc.rules_for`.
  rules: tuple | dict = fields.option((), also=dict)
  calibrate: str = 'mse'  # the method
  calibrate_batches: int = fields.option(8, '[1, inf)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
  """Low-rank factors: only they are trained, beside frozen parameters.

  Those are the parameters of `init`, stored as the rules of `Quantize` say.
  """

  # Of (regex, rank), or the keywords of `jc.rules_for`.
  rules: tuple | dict = fields.option((), also=dict)
  alpha: float = fields.option(16.0, '(0, inf)', needs='lora')
  rank_stabilized: bool = fields.option(False, needs='lora')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty:
  """weight * R(parameters), added to the loss; see `train.penalty`."""

  rules: tuple = ()  # of (regex, word)
  weight: float = fields.option(0.0, '[0, inf)', needs='penalty')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grow:
  """What comes before the stage begins: channels and layers; see `train.grow`."""

  # As many times the channels of every group that can have more.
  factor: float = fields.option(0.0, '[0, inf)')
  # Of (name of a group, number of its channels): see `jc.widen`.
  sizes: tuple = ()
  multiple: int = fields.option(1, '[1, inf)', needs='factor')
  how: str = fields.option('net2net')  # a start of `distillation.growth.starts`
  # As many times the layers that pass one value on, of one shape.
  depth: float = fields.option(0.0, '[0, inf)')
  where: str = fields.option('uniform', needs='depth')
  layers: str = fields.option('identity', needs='depth')
  # Whether to refuse what does not keep the function.
  exact: bool = True

  @property
  def asked(self) -> bool:
    return self != Grow()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shrink:
  """Which channels go before the stage begins; see `train.shrink`.

  Either `keep` says how many of each group stay, or a limit says what the network may
  cost: up to 1 it is a fraction of what there is, above a number. `layers` may stand
  beside them, or alone.
  """

  keep: float = fields.option(0.0, '[0, 1]')
  # Of the layers that pass one value on, whole.
  layers: float = fields.option(0.0, '[0, 1]')
  layer_score: str = fields.option('cosine', needs='layers')
  flops: float = fields.option(0.0, '[0, inf)')
  params: float = fields.option(0.0, '[0, inf)')
  bytes: float = fields.option(0.0, '[0, inf)')
  # In milliseconds, of a batch of `eval_batch_size`, predicted from what is measured
  # on this machine once in a workdir.
  latency: float = fields.option(0.0, '[0, inf)')
  score: str = 'magnitude'
  k: float = fields.option(0.0, '[0, inf)', needs='score=soft_threshold')
  # Instead of k: of the magnitudes of each weight.
  quantile: float = fields.option(0.0, '[0, 1]', needs='score=soft_threshold')
  # Of (regex over the names of groups, fraction, 'keep' or None): see `jc.select`.
  by: tuple = ()
  # Groups ranked together: 'local', each by itself; 'alike', as layers are; 'global'.
  scope: str = 'local'
  # Of each group stay so many in any case; below 1, that fraction.
  at_least: float = fields.option(1.0, '(0, inf)')
  multiple: int = fields.option(1, '[1, inf)')
  rounding: str = 'down'
  # Whether the weights behind them are fitted to what stays; see `jc.pruning.compensate`.
  compensate: bool = False
  # Of training data, for scores and fits.
  batches: int = fields.option(8, '[1, inf)')

  @property
  def limits(self) -> dict[str, float]:
    """{'flops', 'params', 'bytes' or 'latency': the limit}."""
    names = 'flops', 'params', 'bytes', 'latency'
    return {name: getattr(self, name) for name in names if getattr(self, name)}

  @property
  def asked(self) -> bool:
    return self != Shrink()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One step of the plan: a model, trained or only compressed.

  A config writes it flat: `prune_scope` is `prune.scope` here, `lora` is
  `adapters.rules`.
  """

  name: str
  model: str
  # The stage whose parameters it starts from, or the path of a file, of a folder or of
  # a finished workdir, see `train.imported`; '': from scratch.
  init: str = ''
  # Of (regex over the model's names, name in the file of `init` or None).
  init_map: tuple = fields.option((), needs='init')
  # 0: nothing is trained, `init` is compressed as it is. Steps are counted in int32.
  steps: int = fields.option(0, '[0, 2147483648)')
  batch_size: int = fields.option(128, '[1, inf)')
  # In how many parts a batch is computed, one after the other, for less memory.
  accumulate: int = fields.option(1, '[1, inf)', needs='steps')
  augment: bool = fields.option(False, needs='steps')
  files: str = ''  # to train on, of a text; '': those of the data
  label_smoothing: float = fields.option(0.0, '[0, 1)', needs='steps')
  # Inputs are mixtures of two; 1 draws shares evenly: see `train.mixup`.
  mixup: float = fields.option(0.0, '[0, inf)', needs='steps')
  optimizer: Optimizer = fields.record(
    Optimizer, needs='steps', name='optimizer'
  )
  validation: Validation = fields.record(
    Validation, needs='steps', every='eval_every'
  )
  distil: Distil = fields.record(Distil, needs='steps')
  penalty: Penalty = fields.record(
    Penalty, prefix='penalty_', needs='steps', rules='penalty'
  )
  cache: Cache = fields.level(Cache)
  shrink: Shrink = fields.level(Shrink)
  grow: Grow = fields.level(Grow)
  prune: Prune = fields.record(Prune, prefix='prune_', rules='prune')
  quantize: Quantize = fields.record(Quantize, rules='quantize')
  adapters: Adapters = fields.record(Adapters, prefix='lora_', rules='lora')

  @property
  def parent(self) -> str:
    """The stage that it starts from, or ''."""
    return '' if self.file else self.init

  @property
  def file(self) -> str:
    """The path that it starts from, or ''; no stage has such a name."""
    return '' if re.fullmatch(r'[A-Za-z0-9_-]*', self.init) else self.init

  @property
  def sources(self) -> list[tuple[str, str]]:
    """(key, the stage that it names) of each that there is."""
    named = [('init', self.parent), ('prune_masks', self.prune.masks)]
    named += [('teacher', name) for name in self.distil.stages]
    return [(key, name) for key, name in named if name]

  @property
  def compresses(self) -> bool:
    parts = (self.prune, self.quantize, self.adapters)
    return any(part.rules for part in parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What the run ends with."""

  # Fidelity and speed are relative to this stage; '': to the first.
  reference: str = ''
  # A number of the task, or the user's own, 'my_pkg.metrics:f1'; '': the first.
  metric: str = ''
  export: tuple[str, ...] = ()  # stages that are exported and checked
  # At which latency is measured, and the seconds spent at each.
  batches: tuple[int, ...] = fields.option((1, 256), '[1, inf)')
  seconds: float = fields.option(0.5, '[0, inf)')
  plots: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """How it runs. None of these is part of a checkpoint's identity."""

  mode: str = 'shard_map'  # or 'pmap', 'jit'
  devices: int = fields.option(0, '[0, inf)')  # 0: all
  log_every: int = fields.option(50, '[1, inf)')
  save_every: int = fields.option(200, '[1, inf)')
  keep: int = fields.option(2, '[1, inf)')  # of the last checkpoints
  tensorboard: bool = False
