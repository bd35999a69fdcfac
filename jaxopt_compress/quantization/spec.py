"""What numbers become: one description for training, conversion and activations."""

import dataclasses
import difflib

from jaxopt_compress.quantization import formats

GRANULARITIES = ('tensor', 'channel', 'token', 'group', 'block')
SCALES = ('float32', 'bfloat16', 'e8m0', 'e4m3', 'int8')
RULES = ('floor', 'rceil', 'even', 'compressed-tensors')


@dataclasses.dataclass(frozen=True)
class Spec:
  """How an array becomes codes and scales.

  Attributes:
    format: 'int2' to 'int8', 'binary', 'ternary', 'e4m3', 'e5m2', 'e3m2',
      'e2m3', 'e2m1' or 'nf4'.
    granularity: what shares a scale. 'tensor': one for each matrix, so one for
      each layer of a stack; 'channel', for activations also written 'token': one
      for each entry of the free axes; 'group': `group` entries along the longest
      contracted axis; 'block': `group` x `group` entries (or a pair of sizes)
      along it and the last free axis.
    group: of 'group' and 'block'; 0 otherwise.
    symmetric: without a zero point. With one, the range is made to contain zero.
    scale: how scales are stored. 'float32', 'bfloat16'; 'e8m0', powers of two
      (MX); 'e4m3' with a float32 scale for each matrix (NVFP4); 'int8' with a
      float32 scale for 256 of them and their mean (double quantisation).
    rule: how an 'e8m0' scale follows from the largest magnitude.
    range: 'absmax', or 'mse' to search for the clip of least squared error.
    rounding: 'nearest', or 'stochastic' where a random key is given.
    static: of activations only: a range fixed by calibration, rather than one
      measured at run time.
  """

  format: str = 'int8'
  granularity: str = 'channel'
  group: int | tuple[int, int] = 0
  symmetric: bool = True
  scale: str = 'float32'
  rule: str = 'floor'
  range: str = 'absmax'
  rounding: str = 'nearest'
  static: bool = False

  def __post_init__(self):
    one_of('format', self.format, tuple(formats.FORMATS))
    one_of('granularity', self.granularity, GRANULARITIES)
    one_of('scale', self.scale, SCALES)
    one_of('rule', self.rule, RULES)
    one_of('range', self.range, ('absmax', 'mse'))
    one_of('rounding', self.rounding, ('nearest', 'stochastic'))
    sizes = self.group if isinstance(self.group, tuple) else (self.group,)
    grouped = self.granularity in ('group', 'block')
    if grouped != all(s > 0 for s in sizes) or any(s < 0 for s in sizes):
      raise ValueError(
        "granularity='group' or 'block' and a positive group go together, not"
        f' {self.granularity!r} with group={self.group}.'
      )
    if len(sizes) != 1 and (self.granularity != 'block' or len(sizes) != 2):
      raise ValueError(
        f'group={self.group}: a pair of sizes is for granularity="block".'
      )
    if self.static and self.granularity != 'tensor':
      raise ValueError(
        "A static range is one for the whole tensor: granularity='tensor', not"
        f' {self.granularity!r}.'
      )

  @property
  def numbers(self) -> formats.Format:
    return formats.FORMATS[self.format]

  def describe(self) -> str:
    """In a few words: 'int4 g128 asym'.

    >>> Spec('int4', 'group', 128, symmetric=False).describe()
    'int4 g128 asym'
    """
    sizes = self.group if isinstance(self.group, tuple) else (self.group,) * 2
    how = {
      'group': f'g{self.group}',
      'block': f'{sizes[0]}x{sizes[1]}',
    }.get(self.granularity, self.granularity)
    scale = {'e8m0': ' mx', 'e4m3': ' nv', 'int8': ' dq'}.get(self.scale, '')
    return (
      f'{self.format} {how}{scale}'
      f'{"" if self.symmetric else " asym"}{" static" if self.static else ""}'
    )


def one_of(what, value, choices):
  if value not in choices:
    close = difflib.get_close_matches(str(value), map(str, choices), n=1)
    guess = f' Did you mean {close[0]!r}?' if close else ''
    raise ValueError(f'{what}={value!r}; choose one of {choices}.{guess}')
