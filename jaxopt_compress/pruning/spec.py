"""What a rule of pruning says: how sparse, in what form, by what, and when.

    score        how much a weight matters                   a name in `scores`
    kind         what stays or goes as one                   a name in `units`
    scope        what is ranked against what                 'leaf', 'row', 'global', a regex
    allocation   how the zeros are shared among leaves       a name in `allocate`
    schedule     how sparse at which step                    a name in `schedules`

A function of the same form does in place of a name. What else they take are fields of
the same names here; a field that none of those chosen takes is refused.
"""

from collections.abc import Callable
import dataclasses
import inspect
import re
from typing import Any

import jax

from jaxopt_compress.core import choices
from jaxopt_compress.pruning import allocate
from jaxopt_compress.pruning import schedules
from jaxopt_compress.pruning import scores
from jaxopt_compress.pruning import units

# How the functions behind each name begin.
_FORMS = {
  'score': (scores, ('x',)),
  'kind': (units, ('scores', 'axes')),
  'allocation': (allocate, ('layers', 'target')),
  'schedule': (schedules, ('step', 'target')),
}
SCOPES = ('leaf', 'row', 'global')


@dataclasses.dataclass(frozen=True)
class Sparsity:
  """How sparse the leaves of a rule become.

  Attributes:
    target: final fraction of zeros, in [0, 1); for blocks, neurons and heads, of
      those. For 'n_m' it is 1 - n / m, and may be left out.
    kind: 'unstructured', 'n_m' (n kept of each m along the contracted axis),
      'block', 'neurons' (whole channels of the kernel; their biases stay), 'heads'.
    n, m: of 'n_m'.
    block: of 'block', (height, width) over the contracted and the free axis.
    pool: of 'block', 'mean' or 'max' of its scores.
    axis: of 'neurons' and 'heads', counted from the end; see there.
    size: of 'heads', how many channels one has.
    score: 'magnitude', 'soft_threshold', 'taylor', 'first_order', 'fisher',
      'movement', 'wanda' or 'random'. What one takes beside weights is passed to
      `prune` and `prune_now` by name.
    k, quantile: of 'soft_threshold': in the units of the weights, or a fraction of
      them. Weights and neurons of which nothing is above it are ranked among
      themselves by magnitude, as all that score 0 are.
    memory: what counts of the scores of steps before, in [0, 1]: 0 ranks by a step
      alone, 0.9 by a running mean, 1 by the sum of all.
    begin: the step, counted in finished optimizer steps, of the first masks.
    end: the step at which `target` is reached; masks are fixed from then on.
      With `begin` = `end` the target is reached at once.
    every: steps between updates of the masks, counted from `begin`.
    schedule: 'cubic' or 'cosine' (from nothing to `target`), 'constant' (`target` from
      `begin` on, while masks still change until `end`), 'one_shot' (at `end`) or
      'cyclic'. For N:M the schedule sets the fraction of groups that are masked.
    periods: of 'cyclic'.
    scope: 'leaf' (each layer has its own threshold), 'row' (each output of a layer
      has), 'global' (all leaves of the rule share one), or a regular expression over
      whole paths: leaves for which its groups are the same share one, as
      r'(layers/\\d+)/.*'. None is what the score asks for: 'row' for Wanda's, else
      'leaf'.
    floor: where layers share a threshold, what each keeps in any case: this fraction
      of what it would keep by its own, in [0, 1], rounded down, and one unit at
      least.
    cap: where layers share a threshold, what each keeps at most, 1 or more times what
      it would keep by its own, rounded up; before the target is reached, up to two
      more. Which axes of a convolution are layers is known from `uses` alone.
    allocation: 'uniform', 'erk', 'er', 'owl' or 'lamp', where they do not share one.
    power: of 'erk' and 'er'.
    outlier, spread: of 'owl'.

  >>> Sparsity(kind='n_m', n=2, m=4).target
  0.5
  """

  target: float | None = None
  kind: str | Callable = 'unstructured'
  n: int = 0
  m: int = 0
  score: str | Callable = 'magnitude'
  k: float = 0.0
  begin: int = 0
  end: int = 0
  every: int = 1
  schedule: str | Callable = 'cubic'
  scope: str | None = None
  floor: float = 0.1
  cap: float = float('inf')
  allocation: str | Callable = 'uniform'
  quantile: float | None = None
  memory: float = 0.0
  block: tuple[int, int] = ()
  pool: str = 'mean'
  axis: int | None = None
  size: int | None = None
  periods: int = 4
  power: float = 1.0
  outlier: float = 5.0
  spread: float = 0.08

  def __post_init__(self):
    if not isinstance(self.block, tuple):
      object.__setattr__(self, 'block', tuple(self.block))
    for what in _FORMS:
      self.function(what)
    if self.scope is None:
      scope = getattr(self.function('score'), 'scope', 'leaf')
      object.__setattr__(self, 'scope', scope)
    _check_fields(self)
    _check_n_m(self)
    _check_scope(self)
    _check_numbers(self)

  def __repr__(self):
    said = [
      f'{name}={value!r}'
      for name, default in _DEFAULTS.items()
      if (value := getattr(self, name)) != default
    ]
    return f'Sparsity({", ".join(said)})'

  def describe(self) -> str:
    """The words that say the same (`words`); functions by their names.

    >>> Sparsity(0.5, kind='neurons', score='wanda', end=9).describe()
    'neurons 0.5 wanda end=9'
    """
    form = [] if self.kind == 'unstructured' else [_said(self.kind)]
    if self.kind == 'n_m':
      form = [f'{self.n}:{self.m}']
    elif self.block:
      form += ['x'.join(map(str, self.block))]
    if self.kind != 'n_m':
      form += [repr(self.target)]
    own_scope = getattr(self.function('score'), 'scope', 'leaf')
    for name, default in (_DEFAULTS | {'scope': own_scope}).items():
      value = getattr(self, name)
      if value == default or name in ('target', 'kind', 'n', 'm', 'block'):
        continue
      named = name in _FORMS or name == 'scope'
      form.append(_said(value) if named else f'{name}={value}')
    return ' '.join(form)

  def function(self, what: str) -> Callable:
    """What a name stands for: `what` is 'score', 'kind', 'allocation' or 'schedule'.

    >>> Sparsity(0.5).function('score').__name__
    'magnitude'
    """
    named = getattr(self, what)
    if callable(named):
      return named
    choices.one_of(what, named, names(what), '=')
    return getattr(_FORMS[what][0], named)

  def call(self, what: str, *args: Any, **others: Any) -> Any:
    """Calls that function with the fields that it takes."""
    f, fields = self.function(what), {}
    for name in _takes(f) & _OPTIONS:
      value, default = getattr(self, name), _parameters(f)[name].default
      # What was not said here may be said by a functools.partial.
      if default is inspect.Parameter.empty or value != _DEFAULTS[name]:
        fields[name] = value
    return f(*args, **others, **fields)

  def inputs(self) -> tuple[str, ...]:
    """What the score takes beside weights, by name.

    >>> Sparsity(0.5, score='taylor').inputs()
    ('gradient',)
    """
    found = list(inspect.signature(self.function('score')).parameters.values())
    return tuple(
      p.name
      for p in found[1:]
      if p.default is p.empty and p.name not in _OPTIONS
    )

  def ramp(self, step: jax.Array | int) -> jax.Array:
    """How far `step` is on the way to the target: in [0, 1], 1 from `end` on."""
    return self.call(
      'schedule', step, target=1.0, begin=self.begin, end=self.end
    )

  def updates(self, step: jax.Array | int) -> jax.Array:
    """How many times masks have been computed by `step`."""
    return schedules.updates(
      step, begin=self.begin, end=self.end, every=self.every
    )


_ALWAYS = set('target kind score schedule allocation scope'.split())
_ALWAYS |= set('begin end every floor cap memory'.split())
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Sparsity)}
_OPTIONS = set(_DEFAULTS) - _ALWAYS


def names(what: str) -> list[str]:
  """The words for 'score', 'kind', 'allocation' or 'schedule'.

  >>> names('allocation')
  ['uniform', 'erk', 'er', 'owl', 'lamp']
  """
  # The functions of a module that begin as those of a kind do.
  module, form = _FORMS[what]
  found = []
  for name, f in vars(module).items():
    if name[0] == '_' or getattr(f, '__module__', '') != module.__name__:
      continue
    if inspect.isfunction(f) and tuple(_parameters(f))[: len(form)] == form:
      found.append(name)
  return found


def _said(named) -> str:
  return getattr(named, '__name__', str(named))


def _parameters(f):
  return inspect.signature(f).parameters


def _takes(f) -> set[str]:
  return set(_parameters(f))


def _check_fields(s):
  """A field that differs from what it is by default has an effect."""
  taken = set().union(*(_takes(s.function(what)) for what in _FORMS))
  for name, default in _DEFAULTS.items():
    value = getattr(s, name)
    if name not in _OPTIONS - taken or value == default:
      continue
    for what, (module, _) in _FORMS.items():
      of = [n for n in names(what) if name in _takes(getattr(module, n))]
      if of:
        raise ValueError(
          f'{name}={value} is for {what}={" or ".join(map(repr, of))}, but'
          f' {what}={getattr(s, what)!r}.'
        )


def _check_n_m(s):
  if s.kind != 'n_m':
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
  object.__setattr__(s, 'target', 1 - s.n / s.m)
  if s.scope == 'row':
    # Groups lie within rows, and what decides within a group is the same.
    object.__setattr__(s, 'scope', 'leaf')
  if s.scope != 'leaf' or s.allocation != 'uniform':
    raise ValueError(
      f'N:M keeps n of every m in every leaf, so scope={s.scope!r} and'
      f" allocation={s.allocation!r} have no meaning; use scope='leaf'."
    )


def _check_scope(s):
  if s.kind == 'block' and not s.block:
    raise ValueError("kind='block' needs its size, such as block=(4, 4).")
  if s.scope not in SCOPES:
    try:
      groups = re.compile(s.scope).groups
    except (re.error, TypeError):
      groups = 0
    if not groups:
      raise ValueError(
        f'scope={s.scope!r}; choose one of {SCOPES}, or a regular expression with'
        rf" a group, as '(layers/\d+)/.*'.{choices.guess(s.scope, SCOPES)}"
      )
  shared = s.scope not in ('leaf', 'row')
  if shared and s.allocation != 'uniform':
    raise ValueError(
      f'allocation={s.allocation!r} says what each leaf keeps, and scope='
      f"{s.scope!r} that one threshold does. Use scope='leaf'."
    )
  if not s.cap >= 1:
    raise ValueError(
      f'cap={s.cap}; how many times what a layer keeps by itself, 1 at least, is'
      ' expected.'
    )
  if not shared and s.cap != float('inf'):
    raise ValueError(
      f'cap={s.cap} is for layers that share a threshold, but scope={s.scope!r}.'
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
  if s.quantile is not None and (s.k or not 0 <= s.quantile <= 1):
    raise ValueError(
      f'quantile={s.quantile} and k={s.k}; a fraction in [0, 1] in place of k is'
      ' expected.'
    )
  if not 0 <= s.memory <= 1:
    raise ValueError(
      f'memory={s.memory}; what counts of the scores before, in [0, 1], is expected.'
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
