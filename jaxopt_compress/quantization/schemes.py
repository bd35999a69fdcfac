"""What to make of a weight, in the field's words.

W8A16 says weights of 8 bits, activations of 16: as they are. W8A8, W4A8, W4A4 and
FP8_DYNAMIC also round the activations at run time; FP8 in ranges that were
calibrated. MXFP8, MXFP4 and NVFP4 are the block formats of those names.

Activations of W8A8 and W4A8 have a zero point for each token: what comes out of a
norm or a gelu is far from centred, and its steps become up to half as wide. A range
that is centred loses nothing by it. Without: 'int8, int8 token'.
"""

import dataclasses
import functools
from typing import Any

from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import spec as spec_lib

Spec = spec_lib.Spec


@dataclasses.dataclass(frozen=True)
class Scheme:
  """How a weight, the operand that it meets, and gradients become codes.

  Each is a `Spec`, or the name of a format for `Spec(format)`.

  Attributes:
    weight: how the weight is stored.
    act: how the other operand is rounded in products; None to leave it.
    grad: while training, how the incoming gradient and the operands of the two
      products of the backward pass are rounded; None for float.
  """

  weight: Spec = Spec('int8')
  act: Spec | None = None
  grad: Spec | None = None

  def __post_init__(self):
    for name, default in (
      ('weight', 'channel'),
      ('act', 'token'),
      ('grad', 'token'),
    ):
      value = getattr(self, name)
      if isinstance(value, str):
        object.__setattr__(self, name, Spec(value, default))
      elif not isinstance(value, Spec) and (
        value is not None or name == 'weight'
      ):
        raise ValueError(
          f'{name}={value!r}; give a jc.schemes.Spec or the name of a format.'
        )
    if self.weight.learn in ('pact', 'ema'):
      raise ValueError(
        f"learn={self.weight.learn!r} is for activations; weights have 'lsq'."
      )
    if self.weight.static:
      raise ValueError('static=True is for activations; a weight is always.')
    if self.act is not None and self.act.learn and not self.act.static:
      raise ValueError(
        f'Activations {self.act.describe()!r}: a range that is learned is not'
        " measured at run time. Say 'static', too:"
        f" '{self.act.format} tensor static {self.act.learn}'."
      )
    if self.grad is not None and self.grad not in (
      dataclasses.replace(
        Spec(self.grad.format, granularity),
        symmetric=self.grad.symmetric,
        rounding=self.grad.rounding,
      )
      for granularity in ('token', 'channel')
    ):
      raise ValueError(
        f'Gradients {self.grad.describe()!r}: they have one measured float32 scale'
        " a token. Only 'asym' and 'stochastic' go with their format."
      )
    if self.grad is not None and (
      self.act is None or self.act.numbers.integer != self.grad.numbers.integer
    ):
      raise ValueError(
        'Gradients are multiplied with activations and weights in the format of'
        f' `act`, integers with integers, floats with floats; {self.grad.format}'
        f' does not go with {self.act.format if self.act else None}.'
      )

  def describe(self) -> str:
    """In a few words."""
    words = [self.weight.describe()]
    if self.act:
      words.append(f'{self.act.describe()} activations')
    if self.grad:
      words.append(f'{self.grad.describe()} gradients')
    return ', '.join(words)


_INT8_ACT = Spec('int8', 'token', symmetric=False)
_W4 = Spec('int4', 'group', 128, scale='bfloat16')
_MX = functools.partial(Spec, granularity='group', group=32, scale='e8m0')
_NV = Spec('e2m1', 'group', 16, scale='e4m3')

W8A16 = Scheme(Spec('int8'))
W8A8 = Scheme(Spec('int8'), act=_INT8_ACT)
W4A16 = Scheme(_W4)
W4A8 = Scheme(_W4, act=_INT8_ACT)
W4A4 = Scheme(Spec('int4'), act=Spec('int4', 'token'))
W2A16 = Scheme(Spec('int2', 'group', 64, symmetric=False, scale='bfloat16'))
FP8 = Scheme(Spec('e4m3', 'tensor'), act=Spec('e4m3', 'tensor', static=True))
FP8_DYNAMIC = Scheme(Spec('e4m3'), act=Spec('e4m3', 'token'))
NF4 = Scheme(Spec('nf4', 'group', 64, scale='int8'))
MXFP8 = Scheme(_MX('e4m3'), act=_MX('e4m3'))
MXFP6 = Scheme(_MX('e2m3'), act=_MX('e2m3'))
MXFP4 = Scheme(_MX('e2m1'), act=_MX('e2m1'))
MXINT8 = Scheme(_MX('int8'), act=_MX('int8'))
NVFP4 = Scheme(_NV, act=_NV)

PRESETS = {
  'W8A16': W8A16,
  'W8A8': W8A8,
  'W4A16': W4A16,
  'W4A8': W4A8,
  'W4A4': W4A4,
  'W2A16': W2A16,
  'FP8': FP8,
  'FP8_DYNAMIC': FP8_DYNAMIC,
  'NF4': NF4,
  'MXFP8': MXFP8,
  'MXFP6': MXFP6,
  'MXFP4': MXFP4,
  'MXINT8': MXINT8,
  'NVFP4': NVFP4,
}


def scheme(value: Scheme | Spec | str | None) -> Scheme | None:
  """A scheme from itself, the spec of a weight, words, or None.

  Words are the name of a preset; or those of a spec (`jc.schemes.Spec.describe`) for the
  weight, then after commas for activations and for gradients: 'int4 g128',
  'int4 tensor, int8 token', 'e4m3, e4m3, e5m2'.
  """
  if value is None or isinstance(value, Scheme):
    return value
  if isinstance(value, Spec):
    return Scheme(value)
  text = value.strip() if isinstance(value, str) else ''
  words = [w.strip() for w in text.split(',')]
  first, *_ = words[0].split() or ['']
  if text in PRESETS:
    return PRESETS[text]
  if first in PRESETS:
    preset = PRESETS[first]
    parts = [preset.weight, *([preset.act] if preset.act else ())]
    raise ValueError(
      f'{value!r}: presets are whole schemes, which stand alone. Say {first!r}, or'
      f' change its words: {", ".join(s.describe() for s in parts)!r}.'
    )
  if first not in formats.FORMATS:
    named = (*PRESETS, *formats.FORMATS)
    raise ValueError(
      f'{value!r} is no scheme.{choices.guess(first, named)} Presets, which stand'
      f' alone: {list(PRESETS)}; or words that begin with a format, as in'
      f" 'int4 g128' (formats: {list(formats.FORMATS)}); or write a"
      ' jc.Scheme(...).'
    )
  if '' in words:
    raise ValueError(
      f'{value!r} has nothing before or after a comma. Leave out the comma, or say'
      " what follows it: 'int8, int8' rounds activations, too."
    )
  if len(words) > 3:
    raise ValueError(
      f'{value!r} has {len(words)} parts; weight, activations and gradients are'
      ' expected.'
    )
  weight, *others = words
  return Scheme(
    spec_lib.parse(weight), *(spec_lib.parse(w, 'token') for w in others)
  )


def words(scheme: Scheme) -> str:
  """What `scheme` reads as this scheme.

  >>> words(W8A8), words(W4A16)
  ('int8 channel, int8 token asym', 'int4 g128 bfloat16')
  """
  parts = scheme.weight, scheme.act, scheme.grad
  return ', '.join(part.describe() for part in parts if part is not None)


def by_leaf(rules, params: Any) -> dict[str, Scheme | None]:
  """The scheme of each leaf, by its path."""
  if isinstance(rules, dict) and any(
    isinstance(v, tuple) for v in rules.values()
  ):
    raise ValueError(
      'The rules are what jc.uses(apply)(params, x) returned: they come second, and'
      " uses third, as in jc.quantize(params, [(r'.*/kernel', 'W8A16'), (r'.*',"
      ' None)], uses). jc.rules_for(uses, ...) makes rules of uses.'
    )
  return {p: scheme(s) for p, s in rules_lib.match(rules, params).items()}
