"""What numbers become: one description for training, conversion and activations."""

import dataclasses
import re
from typing import Any

from jaxopt_compress.core import choices
from jaxopt_compress.quantization import formats

GRANULARITIES = ('tensor', 'channel', 'token', 'group', 'block')
SCALES = ('float32', 'bfloat16', 'e8m0', 'e4m3', 'int8')
RULES = ('floor', 'rceil', 'even', 'compressed-tensors')
# The rule of least error on weights, as `launch.bench.bits_per_weight` measures it:
# a largest number that is clipped costs formats of few bits less than coarser steps
# do, and costs those of many exponents, whose steps are relative, more.
_BEST_RULE = {
  **dict.fromkeys(formats.FORMATS, 'floor'),
  **dict.fromkeys(('binary', 'ternary', 'e2m3', 'e2m1'), 'even'),
  **dict.fromkeys(('e4m3', 'e5m2', 'e3m2', 'nf4'), 'rceil'),
}


@dataclasses.dataclass(frozen=True)
class Spec:
  """How an array becomes codes and scales.

  Attributes:
    format: 'int2' to 'int8', 'binary', 'ternary', 'e4m3', 'e5m2', 'e3m2',
      'e2m3', 'e2m1' or 'nf4'.
    granularity: what shares a scale. 'tensor': one for each matrix, so one for
      each layer of a stack; 'channel', for activations also written 'token': one
      for each entry of the free axes; 'group': `group` entries along the longest
      contracted axis and, if it is shorter, whole ones beside it; 'block':
      `group` x `group` entries (or a pair of sizes) along it and the last free
      axis.
    group: of 'group' and 'block'; 0 otherwise.
    symmetric: without a zero point. With one, the range is made to contain zero.
    scale: how scales are stored. 'float32', 'bfloat16'; 'e8m0', powers of two
      (MX); 'e4m3' with a float32 scale for each matrix (NVFP4); 'int8' with a
      float32 scale for 256 of them and their mean (double quantisation).
    rule: how an 'e8m0' scale follows from the largest magnitude, one of 'floor',
      'rceil', 'even' and 'compressed-tensors'. '' is the one of least error for
      the format, or, with other scales, none.
    range: 'absmax'; 'mse' to search for the clip of least squared error; 'hqq' to
      improve zero points for a heavy-tailed error, asymmetric only.
    rounding: 'nearest', or 'stochastic' where a random key is given.
    static: of activations only: a range fixed by calibration, or learned, rather
      than one measured at run time.
    learn: how training finds the range. '': as after training; 'lsq': scales are
      learned, and with symmetric=False zero points (LSQ, LSQ+). Of static
      activations only: 'pact', the clip is learned (PACT); 'ema', it follows the
      least and largest entry that each step meets, as a moving average.
  """

  format: str = 'int8'
  granularity: str = 'channel'
  group: int | tuple[int, int] = 0
  symmetric: bool = True
  scale: str = 'float32'
  rule: str = ''
  range: str = 'absmax'
  rounding: str = 'nearest'
  static: bool = False
  learn: str = ''

  def __post_init__(self):
    choices.one_of('format', self.format, tuple(formats.FORMATS))
    choices.one_of('granularity', self.granularity, GRANULARITIES)
    choices.one_of('scale', self.scale, SCALES)
    choices.one_of('rule', self.rule, ('', *RULES))
    choices.one_of('range', self.range, ('absmax', 'mse', 'hqq'))
    choices.one_of('rounding', self.rounding, ('nearest', 'stochastic'))
    choices.one_of('learn', self.learn, ('', 'lsq', 'pact', 'ema'))
    if self.scale == 'e8m0' and not self.rule:
      object.__setattr__(self, 'rule', _BEST_RULE[self.format])
    _check_group(self)
    _check_scale(self)
    _check_range(self)

  @property
  def numbers(self) -> formats.Format:
    return formats.FORMATS[self.format]

  @property
  def keeps_zeros(self) -> bool:
    """Whether what is zero stays zero, exactly.

    Not in binary, which has no zero, nor where the zero point is a number between two
    codes: with 'asym' in formats of floats and in those of up to two bits.
    """
    whole = self.numbers.integer and self.numbers.bits > 2
    return self.format != 'binary' and (self.symmetric or whole)

  def describe(self) -> str:
    """In words that `parse` reads: what differs from the plain float32 scale.

    >>> Spec('int4', 'group', 128, symmetric=False).describe()
    'int4 g128 asym'
    """
    sizes = self.group if isinstance(self.group, tuple) else (self.group,) * 2
    words = [
      self.format,
      {'group': f'g{self.group}', 'block': f'{sizes[0]}x{sizes[1]}'}.get(
        self.granularity, self.granularity
      ),
    ]
    for name, values in _WORDS.items():
      word = next(w for w, v in values.items() if v == getattr(self, name))
      words.append(word)
    return ' '.join(w for w in words if w)


def _check_group(s: Spec) -> None:
  """Raises ValueError for what cannot share a scale."""
  sizes = s.group if isinstance(s.group, tuple) else (s.group,)
  grouped = s.granularity in ('group', 'block')
  if grouped != all(n > 0 for n in sizes) or any(n < 0 for n in sizes):
    raise ValueError(
      "granularity='group' or 'block' and a positive group go together, not"
      f' {s.granularity!r} with group={s.group}.'
    )
  if len(sizes) != 1 and (s.granularity != 'block' or len(sizes) != 2):
    raise ValueError(
      f'group={s.group}: a pair of sizes is for granularity="block".'
    )
  if s.static and s.granularity != 'tensor':
    raise ValueError(
      "A static range is one for the whole tensor: granularity='tensor', not"
      f' {s.granularity!r}.'
    )


def _check_scale(s: Spec) -> None:
  """Raises ValueError for scales that cannot be stored as they are to be."""
  if s.rule and s.scale != 'e8m0':
    raise ValueError(
      f'rule={s.rule!r} is how scales become powers of two, and'
      f" scale={s.scale!r} is none: leave it out, or use scale='e8m0' ('mx')."
    )
  by_gradient = s.learn in ('lsq', 'pact')
  if by_gradient and s.scale not in ('float32', 'bfloat16'):
    raise ValueError(
      f'Scales stored as {s.scale} cannot be learned: they are too coarse to'
      " follow a gradient. Use scale='float32' or 'bfloat16'."
    )
  if s.static and s.scale not in ('float32', 'bfloat16', 'e8m0'):
    raise ValueError(
      f'A static range has one scale, and scale={s.scale!r} is a scale of'
      " several: use 'float32', 'bfloat16' or 'e8m0'."
    )


def _check_range(s: Spec) -> None:
  """Raises ValueError for ways to find a range that exclude each other."""
  if s.range != 'absmax' and s.static:
    raise ValueError(
      f'range={s.range!r} is searched in the array that is rounded, and a'
      ' static range is not: it is calibrated. Leave one of them out, and pass'
      " jc.calibrate(..., method='mse') for the clip of least error."
    )
  if s.rounding == 'stochastic' and (s.static or s.learn):
    raise ValueError(
      'Ranges that are static or learned are rounded to nearest: leave out'
      f" rounding='stochastic', or static={s.static}, learn={s.learn!r}."
    )
  if s.range == 'hqq' and (s.symmetric or s.learn):
    raise ValueError(
      "range='hqq' finds zero points of weights: it goes with symmetric=False"
      " (the word 'asym', as in 'int4 g64 asym hqq') and not with learned ranges."
    )
  if s.learn in ('pact', 'ema') and not s.static:
    raise ValueError(
      f'learn={s.learn!r} is for static activations: static=True.'
    )


# The words of each attribute; its default has none.
_WORDS = {
  'symmetric': {'': True, 'asym': False},
  'scale': {
    '': 'float32',
    'bfloat16': 'bfloat16',
    'mx': 'e8m0',
    'nv': 'e4m3',
    'dq': 'int8',
  },
  'rule': {'': '', **{rule: rule for rule in RULES}},
  'range': {'': 'absmax', 'mse': 'mse', 'hqq': 'hqq'},
  'rounding': {'': 'nearest', 'stochastic': 'stochastic'},
  'static': {'': False, 'static': True},
  'learn': {'': '', 'lsq': 'lsq', 'pact': 'pact', 'ema': 'ema'},
}


def parse(words: str, granularity: str = 'channel') -> Spec:
  """A spec from the words that describe one.

  The format first, then in any order what differs from `Spec(format)`, one word of
  each kind: 'tensor', 'channel', 'token', 'g<size>' or '<size>x<size>'; 'asym';
  'bfloat16', 'mx' (e8m0 scales), 'nv' (e4m3) or 'dq' (int8); with 'mx', 'floor',
  'rceil', 'even' or 'compressed-tensors'; 'mse' or 'hqq'; 'stochastic'; 'static';
  'lsq', 'pact' or 'ema'.

  Args:
    words: as above.
    granularity: where the words name none.

  >>> parse('int4 g128 asym').describe()
  'int4 g128 asym'
  """
  first, *rest = words.split() or ['']
  choices.one_of('format', first, tuple(formats.FORMATS))
  options, said = {'granularity': granularity}, {}
  for word in (first, *rest):
    name, values = _meaning(word, words)
    if name in said:
      raise ValueError(
        f'{words!r} says {name} twice, {said[name]!r} and {word!r}: leave one of'
        ' them out. Commas part weights, activations and gradients.'
      )
    said[name] = word
    options |= values
  return Spec(**options)


def _meaning(word: str, words: str) -> tuple[str, dict[str, Any]]:
  """The attribute of a `Spec` that a word of `words` sets, and all it says."""
  if match := re.fullmatch(r'g(\d+)', word):
    return 'granularity', {'granularity': 'group', 'group': int(match[1])}
  if match := re.fullmatch(r'(\d+)x(\d+)', word):
    sizes = (int(match[1]), int(match[2]))
    return 'granularity', {'granularity': 'block', 'group': sizes}
  kinds = {
    'format': {f: f for f in formats.FORMATS},
    'granularity': {g: g for g in ('tensor', 'channel', 'token')},
    **_WORDS,
  }
  known = {
    word: (name, {name: value})
    for name, values in kinds.items()
    for word, value in values.items()
    if word
  }
  choices.one_of(f'a word of {words!r}', word, (*known, 'g32', '32x32'))
  return known[word]


def act_words(act: Spec) -> str:
  """How the other operand is rounded, as `describe` of a leaf says it.

  >>> act_words(Spec('int8', 'token', symmetric=False))
  'int8 asym activations'
  """
  asym = '' if act.symmetric else ' asym'
  return f'{act.format}{asym}{" static" if act.static else ""} activations'
