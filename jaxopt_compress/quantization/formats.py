"""Number formats: which numbers a code can stand for.

    Int       codes are the integers lowest, lowest + step, ..., highest
    Float     sign, exponent, mantissa: e4m3, e5m2, e3m2, e2m3, e2m1
    Codebook  code i is the i-th number of a table: nf4

A format knows nothing of scales: `round` takes numbers in its own units to stored
codes, `numbers` takes stored codes back. Eight-bit codes are stored in their own
dtype (int8, float8), narrower ones as unsigned bit patterns, in uint8.
"""

import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Int:
  """Integers `lowest, lowest + step, ..., highest`; stored as their index.

  Attributes:
    name: as users write it.
    bits: bits of one code.
    lowest, highest: the range.
    step: 1; 2 for binary, whose numbers are -1 and 1.
  """

  name: str
  bits: int
  lowest: int
  highest: int
  step: int = 1
  integer = True

  @property
  def bound(self) -> float:
    """The number that the largest magnitude is mapped to.

    For two's complement codes (2^bits - 1) / 2, half a step outside the positive
    end, as compressed-tensors and AQT do: a step is 255/254 (int8) or 15/14
    (int4) smaller than with `highest`, and the largest error stays half a step.
    """
    return (self.highest - self.lowest) / 2

  @property
  def native(self):
    return jnp.dtype(jnp.int8) if self.bits == 8 else None

  def round(self, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
    """Stored codes of the nearest numbers, ties to even, clipped.

    Args:
      x: [...] float32, in units of the scale.
      noise: [...] uniform in [0, 1) for stochastic rounding, or None.
    """
    steps = x if self.step == 1 else (x - self.lowest) / self.step
    steps = jnp.round(steps) if noise is None else jnp.floor(steps + noise)
    if self.step != 1:
      steps = steps * self.step + self.lowest
    number = jnp.clip(steps, self.lowest, self.highest)
    # XLA's conversion of NaN is arbitrary: scales have it, measured or given.
    return self.stored(number.astype(jnp.int32))

  def stored(self, number: jax.Array) -> jax.Array:
    """Stored codes of integers in range."""
    if self.native:
      return number.astype(jnp.int8)
    return ((number - self.lowest) // self.step).astype(jnp.uint8)

  def numbers(self, stored: jax.Array) -> jax.Array:
    """int8 numbers of stored codes."""
    if self.native:
      return stored
    return stored.astype(jnp.int8) * self.step + self.lowest


@dataclasses.dataclass(frozen=True)
class Float:
  """Sign, exponent and mantissa, with subnormals and without infinities.

  With e the exponent of |x|, at least `smallest`, the code of the magnitude is
      (e - smallest) * 2^mantissa + round(|x| * 2^(mantissa - e))
  which a carry out of the rounding turns into that of the next exponent. OCP
  Microscaling Formats v1.0, table 1; OCP 8-bit Floating Point v1.0.

  Attributes:
    name: e<exponent bits>m<mantissa bits>.
    exponent, mantissa: how many bits each has.
    last: code of the largest magnitude, past which are infinities and NaN.
    dtype: name of JAX's own dtype, for those of eight bits.
  """

  name: str
  exponent: int
  mantissa: int
  last: int
  dtype: str = ''
  integer = False

  @property
  def bits(self) -> int:
    return 1 + self.exponent + self.mantissa

  @property
  def smallest(self) -> int:
    """Exponent of the smallest normal number."""
    return 2 - 2 ** (self.exponent - 1)

  @property
  def highest(self) -> float:
    return float(self.table()[self.last])

  @property
  def lowest(self) -> float:
    return -self.highest

  @property
  def bound(self) -> float:
    return self.highest

  @property
  def native(self):
    return jnp.dtype(self.dtype) if self.dtype else None

  def table(self) -> np.ndarray:
    """[2^bits] float32, the number of each bit pattern; NaN past `last`."""
    magnitude = np.arange(2 ** (self.bits - 1))
    e = np.maximum(magnitude >> self.mantissa, 1)
    implicit = (magnitude >> self.mantissa > 0) * 2**self.mantissa
    m = magnitude % 2**self.mantissa + implicit
    numbers = m * 2.0 ** (e - 1 + self.smallest - self.mantissa)
    numbers[self.last + 1 :] = np.nan
    return np.concatenate([numbers, -numbers]).astype(np.float32)

  def round(self, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
    """Stored codes of the nearest numbers, ties to even, clipped."""
    if self.native and noise is None:
      return jnp.clip(x, self.lowest, self.highest).astype(self.native)
    magnitude = jnp.minimum(jnp.abs(x), self.highest)
    e = (lax.bitcast_convert_type(magnitude, jnp.int32) >> 23) - 127
    e = jnp.maximum(e, self.smallest)
    ulps = magnitude * _power_of_two(self.mantissa - e)
    ulps = jnp.round(ulps) if noise is None else jnp.floor(ulps + noise)
    code = (e - self.smallest) * 2**self.mantissa + ulps.astype(jnp.int32)
    code = jnp.minimum(code, self.last)
    sign = jnp.signbit(x).astype(jnp.int32)
    code = code + sign * 2 ** (self.bits - 1)
    return self.stored(code)

  def stored(self, code: jax.Array) -> jax.Array:
    """Stored codes of bit patterns."""
    code = code.astype(jnp.uint8)
    if self.native:
      return lax.bitcast_convert_type(code, self.native)
    return code

  def numbers(self, stored: jax.Array) -> jax.Array:
    """float32 numbers of stored codes."""
    if self.native:
      return stored.astype(jnp.float32)
    return jnp.asarray(self.table())[stored]


@dataclasses.dataclass(frozen=True)
class Codebook:
  """Code i stands for the i-th of some rising numbers."""

  name: str
  table: tuple[float, ...]
  integer = False
  native = None

  @property
  def bits(self) -> int:
    return math.ceil(math.log2(len(self.table)))

  @property
  def lowest(self) -> float:
    return self.table[0]

  @property
  def highest(self) -> float:
    return self.table[-1]

  @property
  def bound(self) -> float:
    return self.highest

  def round(self, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
    """Stored codes of the nearest numbers, clipped."""
    x = jnp.clip(x, self.lowest, self.highest)
    code = jnp.zeros(x.shape, jnp.uint8)
    # One comparison for each boundary fuses; a binary search would not.
    for low, high in zip(self.table, self.table[1:], strict=False):
      share = 0.5 if noise is None else 1 - noise
      code += (x > low + (high - low) * share).astype(jnp.uint8)
    return code

  def numbers(self, stored: jax.Array) -> jax.Array:
    """float32 numbers of stored codes."""
    return jnp.asarray(np.asarray(self.table, np.float32))[stored]


Format = Int | Float | Codebook


def _power_of_two(e: jax.Array) -> jax.Array:
  """2^e for int32 e of normal numbers, exactly."""
  return lax.bitcast_convert_type((e + 127) << 23, jnp.float32)


# Quantiles of a normal distribution, with an exact zero: Dettmers et al. 2023,
# QLoRA, https://arxiv.org/abs/2305.14314, appendix E.
_NF4 = (
  -1.0,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0.0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1.0,
)

FORMATS: dict[str, Format] = {
  f.name: f
  for f in (
    Int('binary', 1, -1, 1, step=2),
    Int('ternary', 2, -1, 1),
    *(
      Int(f'int{b}', b, -(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in range(2, 9)
    ),
    Float('e4m3', 4, 3, 0x7E, 'float8_e4m3fn'),
    Float('e5m2', 5, 2, 0x7B, 'float8_e5m2'),
    Float('e3m2', 3, 2, 0x1F),
    Float('e2m3', 2, 3, 0x1F),
    Float('e2m1', 2, 1, 0x7),
    Codebook('nf4', _NF4),
  )
}
