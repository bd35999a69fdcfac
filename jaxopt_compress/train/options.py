"""What a config may say: frozen records, and the default of every field.

`fields` reads them from a config and writes them back; `plan` checks that they fit
together.
"""

import dataclasses

from jaxopt_compress.train import fields


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
class Optimizer:
  """How parameters are moved; see `train.optimizer`."""

  name: str = 'adamw'
  learning_rate: float = 1e-3
  warmup: float = 0.0  # fraction of the steps
  decay: str = 'cosine'
  weight_decay: float = 0.0
  clip: float = 0.0  # largest norm of a gradient; 0: any
  # Of what is learned beside the weights (steps of LSQ), by Adam without decay: a
  # fraction of the learning rate, as Adam moves a step of 0.01 as far as a weight.
  learned_rate: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distil:
  """alpha * T^2 KL(teacher || student) + (1 - alpha) * cross entropy."""

  teacher: str = ''  # the stage that it is distilled from; '': labels alone
  alpha: float = 0.9
  temperature: float = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
  """What is masked, and when; see `train.words`."""

  rules: tuple = ()  # of (regex, sparsity)
  score: str = 'magnitude'
  scope: str = 'leaf'
  k: float = 0.0
  span: tuple[float, float] = (0.0, 0.7)  # fractions of the steps
  every: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize:
  """What is rounded, and in which ranges; see `train.words`.

  Where the rules say static, ranges of activations are found before the first step,
  on training data that is not augmented.
  """

  rules: tuple = ()  # of (regex, scheme)
  calibrate: str = 'mse'  # the method
  calibrate_batches: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
  """Low-rank factors: only they are trained, beside frozen parameters.

  Those are the parameters of `init`, stored as the rules of `Quantize` say.
  """

  rules: tuple = ()  # of (regex, rank)
  alpha: float = 16.0
  rank_stabilized: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One step of the plan: a model, trained or only compressed.

  A config writes it flat: `prune_scope` is `prune.scope` here, `lora` is
  `adapters.rules`.
  """

  name: str
  model: str
  init: str = ''  # the stage whose parameters it starts from; '': from scratch
  steps: int = 0  # 0: nothing is trained, `init` is compressed as it is
  batch_size: int = 128
  augment: bool = False
  files: str = ''  # to train on, of a text; '': those of the data
  label_smoothing: float = 0.0
  optimizer: Optimizer = fields.record(Optimizer, name='optimizer')
  distil: Distil = fields.record(Distil)
  prune: Prune = fields.record(Prune, prefix='prune_', rules='prune')
  quantize: Quantize = fields.record(Quantize, rules='quantize')
  adapters: Adapters = fields.record(Adapters, prefix='lora_', rules='lora')

  @property
  def compresses(self) -> bool:
    parts = (self.prune, self.quantize, self.adapters)
    return any(part.rules for part in parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What the run ends with."""

  # Fidelity and speed are relative to this stage; '': to the first.
  reference: str = ''
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
