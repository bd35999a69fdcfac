"""How the numbers of each format become the codes that kernels know.

    number = (code - offset) * unit     integers, and multiples of a unit
    number = table[code]                e2m1, nf4

`offset` is that of `layout.CODES`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import layout
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import qarray


class Layout(NamedTuple):
  """How the numbers of a format are laid out.

  Attributes:
    name: in `layout.CODES`.
    unit: what the integer one stands for.
  """

  name: str
  unit: float = 1.0


# Formats that the kernels know. Those of five bits and more take eight.
LAYOUT = {
  **{f'int{b}': Layout('int8') for b in (5, 6, 7, 8)},
  **{f'int{b}': Layout(f'int{b}') for b in (2, 3, 4)},
  'binary': Layout('ternary'),
  'ternary': Layout('ternary'),
  'e2m3': Layout('int8', 1 / 8),
  'e2m1': Layout('e2m1'),
  'nf4': Layout('nf4'),
}
# Codes that are entries of a table, not integers.
TABLES = ('e2m1', 'nf4')


def codes_of(q: qarray.QArray) -> jax.Array:
  """Codes as they are laid out, uint8, the shape of `q`."""
  how = LAYOUT[q.format]
  if how.name in TABLES:
    return q.codes
  offset = layout.CODES[how.name].offset
  return (integers_of(q) + offset).astype(jnp.uint8)


def integers_of(q: qarray.QArray) -> jax.Array:
  """Its numbers in units of its layout: int32."""
  if q.integer:
    return q.numbers.astype(jnp.int32)
  return jnp.round(q.numbers / LAYOUT[q.format].unit).astype(jnp.int32)


def of_codes(codes: jax.Array, format: str) -> jax.Array:
  """float32 numbers of codes as they are laid out."""
  how = LAYOUT[format]
  if how.name in TABLES:
    return formats.FORMATS[format].numbers(codes)
  integers = codes.astype(jnp.float32) - layout.CODES[how.name].offset
  return integers * np.float32(how.unit)
