"""What a report is made of: plain records of stages and leaves.

Whoever runs an experiment fills them; nothing here knows how. A field that is `None`
was not measured, and is shown as '-'. A record goes to JSON and back without loss:
values that JSON cannot write become 'inf', '-inf' and 'nan'.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis import storage
from jaxopt_compress.core import array
from jaxopt_compress.core import rules


@dataclasses.dataclass(frozen=True)
class Timing:
  """How long one call takes, in milliseconds, and how that compares.

  `speed` is the median over rounds of (time of `against`) / (own time): above 1
  is faster. Fields with `low` and `high` are quartiles.
  """

  median_ms: float
  low_ms: float | None = None
  high_ms: float | None = None
  repeats: int | None = None
  against: str | None = None
  speed: float | None = None
  speed_low: float | None = None
  speed_high: float | None = None


@dataclasses.dataclass(frozen=True)
class StageRecord:
  """One row of the first table: a model after one stage.

  Attributes:
    name: what the stage is called throughout the report.
    value: the metric on held-out data; `metric` names it, `spec` formats it.
    agreement: fraction of held-out examples on which it answers as the teacher does.
    kl: mean KL(teacher || this) in nats.
    difference: of answers that are no classes, root of the mean squared difference to
      the teacher's.
    parameters: how many values the tree stands for.
    bytes_memory: bytes that its arrays occupy (`jc.nbytes`).
    bytes_disk: bytes of the file or directory it was saved to.
    sparsity: fraction of the parameters that are exactly zero.
    flops: operations for one example, counted from the jaxpr.
    latency: `{batch size: Timing}`.
    notes: sentences for the reader.
  """

  name: str
  value: float | None = None
  metric: str = 'accuracy'
  higher_is_better: bool = True
  spec: str = '.2%'
  agreement: float | None = None
  kl: float | None = None
  parameters: int | None = None
  bytes_memory: int | None = None
  bytes_disk: int | None = None
  sparsity: float | None = None
  flops: int | None = None
  latency: Mapping[int, Timing] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()
  difference: float | None = None


@dataclasses.dataclass(frozen=True)
class Answers:
  """One row of the table of answers, all on held-out data.

  Attributes:
    name: of the stage.
    loss: the mean of what it was trained to lower; cross entropy in nats.
    calibration: its calibration error; see `report.calibration`.
    bins: (answers, sum of confidences, right answers) of each bin of confidence.
    against: the stage that it is compared with: its teacher, or the reference.
    against_loss: the cross entropy of that one.
    agreement: `{k: how often that one's first choice is among its first k}`.
    kl: mean KL(that one || this) at temperature 1, in nats.
    difference: of answers that are no classes, root of the mean squared difference.
    loss_name: what the loss is called.
    numbers: all that it was judged by, by name.
    specs: how they are written, for `format`; '.4g' of others.
  """

  name: str
  loss: float | None = None
  calibration: float | None = None
  bins: tuple[tuple[float, float, float], ...] = ()
  against: str | None = None
  against_loss: float | None = None
  agreement: Mapping[int, float] = dataclasses.field(default_factory=dict)
  kl: float | None = None
  difference: float | None = None
  loss_name: str = 'cross entropy'
  numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
  specs: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LeafRecord:
  """One row of the coverage table: a leaf of the parameters.

  Attributes:
    path: name of the leaf.
    shape: of the array that it stands for.
    format: `leaf.describe()`, or the dtype of a plain array.
    compressed: whether it is a compressed leaf.
    bits_per_weight: stored bits, scales included, by the size of `shape`.
    bytes: stored bytes.
    sparsity: fraction of exact zeros.
    error_db: signal to quantisation noise; inf is exact.
    native: whether every operation ran on the compressed form; None for a plain
      array, or if it is not known.
    reason: why it was densified.
    operations: primitives that the leaf met.
  """

  path: str
  shape: tuple[int, ...]
  format: str
  compressed: bool = False
  bits_per_weight: float | None = None
  bytes: int | None = None
  sparsity: float | None = None
  error_db: float | None = None
  native: bool | None = None
  reason: str = ''
  operations: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GroupRecord:
  """One row of the table of channels: a group of them, of which some went.

  Attributes:
    name: of the group: the first leaf and axis that have it.
    before, after: how many channels there were, and are.
    kept: of each channel that there was, 1.0 if it stays and 0.0 if not; where a
      group lies within others, for how many of these it stays.
    asked: the size that was asked for, where it was rounded.
    leaves: how many have these channels.
    inexact: why the network is not the one in which they are masked.
  """

  name: str
  before: int
  after: int
  kept: tuple[float, ...]
  asked: int | None = None
  leaves: int = 0
  inexact: tuple[str, ...] = ()


def stage(name: str, params: Any, **known) -> StageRecord:
  """A StageRecord with everything that follows from the parameters alone.

  >>> r = stage('float', {'w': np.ones((2, 3), np.float32)}, value=0.9)
  >>> r.parameters, r.bytes_memory, r.sparsity, r.value
  (6, 24, 0.0, 0.9)
  """
  own = dict(
    parameters=parameters(params),
    bytes_memory=storage.nbytes(params),
    sparsity=sparsity(params),
  )
  return StageRecord(name, **(own | known))


def parameters(tree: Any) -> int:
  """How many values the leaves of `tree` stand for."""
  return sum(math.prod(x.shape) for _, x in numbers(tree))


def sparsity(tree: Any) -> float | None:
  """Fraction of the values that are exactly zero; None for an empty tree."""
  leaves = [dense(x) for _, x in numbers(tree)]
  size = sum(x.size for x in leaves)
  if not size:
    return None
  return 1.0 - sum(int(np.count_nonzero(x)) for x in leaves) / size


def numbers(tree: Any) -> list[tuple[str, Any]]:
  """The leaves that stand for numbers: no functions, flags or random keys."""
  return [
    (path, x)
    for path, x in rules.named_leaves(tree)
    if hasattr(x, 'dtype')
    and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
  ]


def dense(leaf) -> np.ndarray:
  """The array that a leaf stands for, on the host."""
  return np.asarray(array.materialize(leaf))


def disk_bytes(path: str | os.PathLike) -> int:
  """Bytes of a file, or of all files under a directory."""
  if os.path.isfile(path):
    return os.path.getsize(path)
  if not os.path.isdir(path):
    raise ValueError(f'{path} is neither a file nor a directory. Save first.')
  return sum(
    os.path.getsize(os.path.join(folder, name))
    for folder, _, names in os.walk(path)
    for name in names
  )


# -- JSON ---------------------------------------------------------------------


def to_json(x: Any) -> Any:
  """Records, numpy scalars and containers as what `json.dumps` takes.

  >>> to_json({'error': math.inf, 'size': np.int64(3)})
  {'error': 'inf', 'size': 3}
  """
  if dataclasses.is_dataclass(x):
    x = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
  if isinstance(x, Mapping):
    return {str(k): to_json(v) for k, v in x.items()}
  if isinstance(x, (list, tuple)):
    return [to_json(v) for v in x]
  # numpy and JAX scalars become Python's, which json writes.
  if hasattr(x, 'item') and getattr(x, 'ndim', None) == 0:
    x = x.item()
  if isinstance(x, float) and not math.isfinite(x):
    return str(x)
  if x is None or isinstance(x, (bool, int, float, str)):
    return x
  raise ValueError(
    f'{x!r} of type {type(x).__name__} does not go into a report. Records hold'
    ' numbers, strings, and lists and dicts of them.'
  )


def stage_from_json(x: Mapping[str, Any]) -> StageRecord:
  """The inverse of `to_json` of a StageRecord."""
  # JSON turned the batch sizes, keys of a dict, into strings.
  latency = {int(b): Timing(**_floats(t)) for b, t in x['latency'].items()}
  x = _floats(x) | dict(latency=latency, notes=tuple(x['notes']))
  return StageRecord(**x)


def answers_from_json(x: Mapping[str, Any]) -> Answers:
  """The inverse of `to_json` of an Answers, also of one with fewer fields."""
  x = to_json(Answers(x['name'])) | x
  agreement = {int(k): float(value) for k, value in x['agreement'].items()}
  bins = tuple(tuple(map(float, b)) for b in x['bins'])
  numbers = {k: float(value) for k, value in x['numbers'].items()}
  read = dict(agreement=agreement, bins=bins, numbers=numbers)
  return Answers(**_floats(x) | read)


def leaf_from_json(x: Mapping[str, Any]) -> LeafRecord:
  """The inverse of `to_json` of a LeafRecord."""
  x = _floats(x) | dict(
    shape=tuple(x['shape']), operations=tuple(x['operations'])
  )
  return LeafRecord(**x)


def group_from_json(x: Mapping[str, Any]) -> GroupRecord:
  """The inverse of `to_json` of a GroupRecord."""
  x = dict(x, kept=tuple(x['kept']), inexact=tuple(x['inexact']))
  return GroupRecord(**x)


def _floats(x):
  """Fields with 'inf', '-inf' and 'nan' as floats again."""
  words = ('inf', '-inf', 'nan')
  # A stage may be called 'nan': fields of text keep their words.
  text = ('name', 'path', 'metric', 'format', 'spec', 'reason', 'against')
  text += ('loss_name',)
  return {
    k: float(v) if v in words and k not in text else v
    for k, v in ((k, _hashable(v)) for k, v in x.items())
  }


def _hashable(v):
  return tuple(v) if isinstance(v, list) else v
