"""What a rule of pruning says: how sparse, in what form, and when."""

import dataclasses

import jax

from jaxopt_compress.core import choices
from jaxopt_compress.pruning import schedules

KINDS = ('unstructured', 'n_m', 'neurons')
SCORES = ('magnitude', 'soft_threshold')
SCHEDULES = ('cubic', 'constant')
SCOPES = ('leaf', 'global')


@dataclasses.dataclass(frozen=True)
class Sparsity:
  """How sparse the leaves of a rule become.

  Attributes:
    target: final fraction of zeros, in [0, 1); for 'neurons', of neurons. For
      'n_m' it is 1 - n / m, and may be left out.
    kind: 'unstructured', 'n_m' (n kept of each m along the contracted axis) or
      'neurons' (whole output channels of the kernel; their biases stay).
    n, m: of 'n_m'.
    score: 'magnitude', or 'soft_threshold': max(0, |w| - k).
    k: of 'soft_threshold', in the units of the weights. Weights and neurons of which
      nothing is above it are ranked among themselves by magnitude.
    begin: the step, counted in finished optimizer steps, of the first masks.
    end: the step at which `target` is reached; masks are fixed from then on.
      With `begin` = `end` the target is reached at once.
    every: steps between updates of the masks, counted from `begin`.
    schedule: 'cubic' (from nothing to `target`), or 'constant' (`target` from
      `begin` on, while masks still change until `end`). For N:M the schedule sets
      the fraction of groups that are masked.
    scope: 'leaf' (each layer has its own threshold) or 'global' (all leaves of the
      rule share one).
    floor: where layers share a threshold, what each keeps in any case: this fraction
      of what it would keep by its own, in [0, 1], and one weight or neuron at least.

  >>> Sparsity(kind='n_m', n=2, m=4).target
  0.5
  """

  target: float | None = None
  kind: str = 'unstructured'
  n: int = 0
  m: int = 0
  score: str = 'magnitude'
  k: float = 0.0
  begin: int = 0
  end: int = 0
  every: int = 1
  schedule: str = 'cubic'
  scope: str = 'leaf'
  floor: float = 0.1

  def __post_init__(self):
    choices.one_of('kind', self.kind, KINDS, '=')
    choices.one_of('score', self.score, SCORES, '=')
    choices.one_of('schedule', self.schedule, SCHEDULES, '=')
    choices.one_of('scope', self.scope, SCOPES, '=')
    _check_n_m(self)
    if self.target is None:
      object.__setattr__(self, 'target', 1 - self.n / self.m)
    _check_numbers(self)

  def ramp(self, step: jax.Array | int) -> jax.Array:
    """How far `step` is on the way to the target: in [0, 1], 1 from `end` on."""
    schedule = getattr(schedules, self.schedule)
    return schedule(step, target=1.0, begin=self.begin, end=self.end)

  def updates(self, step: jax.Array | int) -> jax.Array:
    """How many times masks have been computed by `step`."""
    return schedules.updates(
      step, begin=self.begin, end=self.end, every=self.every
    )


def _check_n_m(s):
  if s.kind != 'n_m':
    if s.n or s.m:
      raise ValueError(
        f"n={s.n} and m={s.m} are for kind='n_m', but kind={s.kind!r}."
      )
    if s.target is None:
      raise ValueError(f'kind={s.kind!r} needs a target, such as target=0.5.')
    return
  if not 1 <= s.n < s.m:
    raise ValueError(
      f"kind='n_m' keeps n of each m; 1 <= n < m is expected, not n={s.n},"
      f' m={s.m}. For 2:4, n=2, m=4.'
    )
  # 1 - n / m is rounded, so a target written in decimals is compared loosely.
  if s.target is not None and abs(s.target - (1 - s.n / s.m)) > 1e-6:
    raise ValueError(
      f'{s.n}:{s.m} makes {1 - s.n / s.m:.4g} of zeros, not target={s.target}.'
      ' Leave target out, or choose other n and m.'
    )
  if s.scope == 'global':
    raise ValueError(
      "N:M keeps n of every m in every leaf, so scope='global' has no meaning; use"
      " scope='leaf'."
    )


def _check_numbers(s):
  if not 0 <= s.target < 1:
    # A target above 1 is most likely a percentage.
    guess = f' Did you mean {s.target / 100}?' if 1 < s.target < 100 else ''
    raise ValueError(
      f'target={s.target}; a fraction of zeros in [0, 1) is expected.{guess}'
    )
  if not 0 <= s.k < float('inf'):
    raise ValueError(f'k={s.k}; a magnitude, k >= 0, is expected.')
  if s.k and s.score != 'soft_threshold':
    raise ValueError(
      f"k={s.k} is for score='soft_threshold', but score={s.score!r}."
    )
  if not 0 <= s.floor <= 1:
    raise ValueError(
      f'floor={s.floor}; a fraction of what a layer keeps by itself, in [0, 1], is'
      ' expected.'
    )
  if not 0 <= s.begin <= s.end:
    raise ValueError(
      f'begin={s.begin} and end={s.end}; 0 <= begin <= end is expected.'
    )
  if s.every < 1:
    raise ValueError(f'every={s.every}; at least 1 step is expected.')
