"""The leaf: a weight laid out for the kernels of CPUs.

    PackedArray  stands for  (number - zero) * scale

as a `QArray` does, seen as matrices [k, n] that products contract over k. Its codes
lie as `layout` says; everything else is the QArray's, so that `unpack` gives the same
numbers back.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels import sparse_layout
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import packing
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import spec as spec_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PackedArray(array.CompressedArray):
  """Stands for `(number(code) - zero) * scale`: [stack..., *matrix.shape] of `dtype`.

  Or, of a pruned weight of floats, for the floats. Products with it round the other
  operand as `act` says; their bound is that of `QDotArray`. Without `act` they keep
  it to 2^-23 of the largest entry of each row (2^-15 where it is bfloat16), so
  results are those of float32 products in another order. A row with NaN or infinity
  gives NaN in all columns.

  The trailing axes of every part are those of matrices, with axes of size one
  before them so that no part has fewer axes than the array.

  Attributes:
    payload: [stack..., panels, units, bytes] uint8; [stack..., bytes] where zeros
      are left out; [stack..., quads, width, columns, 4] int8 of a convolution that
      keeps channels apart.
    offsets: None; or [stack..., panels + 1] int32, where the panels begin.
    scale: [stack..., groups, n] float32, bfloat16 or float8_e8m0fnu; None for
      floats.
    zero: None; or the shape of `scale`, int8 or float32.
    totals: None; or [stack..., 1, n] float32, the sums of the columns, for codes of
      the other operand with zero points.
    act_scale, act_zero: [stack..., 1, 1] or None: a given range of the other
      operand.
    format: name of the number format, in `quantization.formats`; '' for floats.
    dtype: of the array.
    matrix: how its axes are those of matrices.
    group: rows that share scales.
    act: how the other operand becomes codes; None for not at all.
    sparse: how zeros are left out, see `sparse_layout`; None where they are not.
    feature_groups: of the convolution that it is the kernel of. Where there are
      several, and channels are not kept apart, parts have an axis of them after
      those of the stack.
    paths: ((rows, instruction path), ...) as `tune` measured them; empty for the
      library's own choice.
  """

  payload: jax.Array
  offsets: jax.Array | None
  scale: jax.Array | None
  zero: jax.Array | None
  totals: jax.Array | None
  act_scale: jax.Array | None
  act_zero: jax.Array | None
  format: str = dataclasses.field(metadata={'static': True})
  dtype: jnp.dtype = dataclasses.field(metadata={'static': True})
  matrix: matrix_lib.Matrix = dataclasses.field(metadata={'static': True})
  group: int = dataclasses.field(metadata={'static': True})
  act: spec_lib.Spec | None = dataclasses.field(
    default=None, metadata={'static': True}
  )
  sparse: sparse_layout.Sparse | None = dataclasses.field(
    default=None, metadata={'static': True}
  )
  feature_groups: int = dataclasses.field(default=1, metadata={'static': True})
  paths: tuple[tuple[int, str], ...] = dataclasses.field(
    default=(), metadata={'static': True}
  )

  @property
  def depthwise(self) -> bool:
    """Whether it is the kernel of a convolution that keeps channels apart."""
    return self.feature_groups > 1 and self.matrix.rows[-1] == 1

  def _inner(self, name: str) -> int:
    """How many axes of a part are not those of the stack."""
    if self.depthwise:
      return {'payload': 4}.get(name, 2)
    payload = 3 if self.sparse is None else 1
    inner = {'payload': payload, 'offsets': 1}.get(name, 2)
    given = name in ('act_scale', 'act_zero')
    return inner + (self.feature_groups > 1 and not given)

  @property
  def stack(self) -> tuple[int, ...]:
    inner = max(len(self.matrix.order), self._inner('payload'))
    return self.payload.shape[: self.payload.ndim - inner]

  @property
  def shape(self):
    return self.stack + self.matrix.shape

  def part(self, name: str) -> jax.Array | None:
    """A part without the axes of size one: [stack..., and those of matrices]."""
    x = getattr(self, name)
    if x is None:
      return None
    return x.reshape(*self.stack, *x.shape[x.ndim - self._inner(name) :])

  def whole(self, name: str) -> jax.Array | None:
    """[stack..., groups or 1, n]: a part, groups of features joined."""
    p = self.part(name)
    return p if p is None else self._joined(p)

  def _joined(self, p):
    """[..., features' groups, rows, columns] to [..., rows, n]."""
    if self.feature_groups == 1 or self.depthwise:
      return p
    p = jnp.swapaxes(p, -3, -2)
    return p.reshape(*p.shape[:-2], -1)

  def seen_as(self, matrix: matrix_lib.Matrix, dtype=None) -> 'PackedArray':
    """The same matrices, seen with other axes, or in another dtype."""
    ndim = len(matrix.order)

    def full(name):
      p = self.part(name)
      if p is None:
        return None
      inner = p.shape[len(self.stack) :]
      return p.reshape(*self.stack, *(1,) * (ndim - len(inner)), *inner)

    parts = {name: full(name) for name in _PARTS}
    return dataclasses.replace(
      self, matrix=matrix, dtype=dtype or self.dtype, **parts
    )

  def as_matrices(self) -> 'PackedArray':
    """The leaf that stands for [stack..., k, n]."""
    return self.seen_as(
      matrix_lib.Matrix((self.matrix.k,), (self.matrix.n,), (0, 1))
    )

  def numbers(self) -> jax.Array:
    """[stack..., k, n] float32 numbers of the format; the floats themselves."""
    m = self.matrix
    if self.sparse is not None:
      x = sparse_layout.from_streams(
        self.part('payload'),
        self.part('offsets'),
        self.sparse,
        self.group,
        m.k,
        m.n,
      ).astype(jnp.float32)
      return x * np.float32(LAYOUT[self.format].unit) if self.format else x
    if self.depthwise:
      x = layout.from_quads(self.part('payload'), m.rows[0], m.n)
      x = x.reshape(*self.stack, m.k, m.n).astype(jnp.float32)
      return x * np.float32(LAYOUT[self.format].unit)
    name = LAYOUT[self.format].name
    codes = layout.from_panels(
      self.part('payload'), name, self.group, m.k, m.n // self.feature_groups
    )
    return numbers(self._joined(codes), self.format)

  def materialize(self):
    x = self.numbers()
    rows = lambda p: matrix_lib.by_row(
      p.astype(jnp.float32), self.group, self.matrix.k
    )
    if self.zero is not None:
      x = x - rows(self.whole('zero'))
    if self.scale is not None:
      x = x * rows(self.whole('scale'))
    return self.matrix.from_matrix(x).astype(self.dtype)

  def can_cut(self, axis, size):
    # Panels join columns, units join rows: only stacks come apart.
    return self.ndim + axis < len(self.stack)

  def describe(self):
    words = [self.format or self.sparse.type]
    if self.scale is not None:
      grouped = self.scale.shape[-2] > 1
      words += [f'g{self.group}' if grouped else 'channel']
      words += ['mx'] * (self.scale.dtype == jnp.float8_e8m0fnu)
    words += ['asym'] * (self.zero is not None)
    said = ' '.join(words)
    if self.act is not None:
      static = ' static' if self.act.static else ''
      said += f', {self.act.format}{static} activations'
    return f'{said}, packed' + ' without zeros' * (self.sparse is not None)

  def path_for(self, rows: int) -> str:
    """The instruction path for that many rows; '' for the library's choice."""
    if not self.paths:
      return ''
    far = lambda measured: abs(math.log(measured[0] / max(rows, 1)))
    return min(self.paths, key=far)[1]

  def unpack(
    self, stored: bool = False
  ) -> qarray.QArray | qarray.QDotArray | jax.Array:
    """The leaf of the same numbers for any machine; of floats, the array.

    Scales are of one level. `stored`: narrow codes share bytes, to be kept.
    """
    if not self.format:
      return self.materialize()
    return assemble(
      self.numbers(),
      self.whole('scale'),
      self.whole('zero'),
      format=self.format,
      dtype=self.dtype,
      matrix=self.matrix,
      group=self.group,
      act=self.act,
      act_scale=self.part('act_scale'),
      act_zero=self.part('act_zero'),
      stored=stored,
    )

  def portable(self):
    return self.unpack(stored=True)


_PARTS = (
  'payload',
  'offsets',
  'scale',
  'zero',
  'totals',
  'act_scale',
  'act_zero',
)


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


def codes_of(q: qarray.QArray) -> jax.Array:
  """Codes as they are laid out, uint8, the shape of `q`."""
  how = LAYOUT[q.format]
  if how.name in ('e2m1', 'nf4'):
    return q.codes
  offset = layout.CODES[how.name].offset
  return (integers_of(q) + offset).astype(jnp.uint8)


def integers_of(q: qarray.QArray) -> jax.Array:
  """Its numbers in units of its layout: int32."""
  if q.integer:
    return q.numbers.astype(jnp.int32)
  return jnp.round(q.numbers / LAYOUT[q.format].unit).astype(jnp.int32)


def numbers(codes: jax.Array, format: str) -> jax.Array:
  """float32 numbers of codes as they are laid out."""
  how = LAYOUT[format]
  if how.name in ('e2m1', 'nf4'):
    return formats.FORMATS[format].numbers(codes)
  integers = codes.astype(jnp.float32) - layout.CODES[how.name].offset
  return integers * np.float32(how.unit)


def assemble(
  numbers: jax.Array,
  scale: jax.Array,
  zero: jax.Array | None,
  *,
  format: str,
  dtype,
  matrix: matrix_lib.Matrix,
  group: int,
  act: spec_lib.Spec | None = None,
  act_scale: jax.Array | None = None,
  act_zero: jax.Array | None = None,
  stored: bool = False,
) -> qarray.QArray | qarray.QDotArray:
  """The leaf for any machine that has these numbers and scales.

  Args:
    numbers: [stack..., k, n] of the format.
    scale, zero: [stack..., groups, n].
    format, dtype, matrix, group, act: as for `PackedArray`.
    act_scale, act_zero: [stack..., 1, 1] or None.
    stored: pack narrow codes along the longest axis that is contracted, to be
      kept; codes have a byte each otherwise.
  """
  m, fmt = matrix, formats.FORMATS[format]
  stack = numbers.shape[:-2]
  place = {entry: i - len(m.order) for i, entry in enumerate(m.order)}
  if fmt.integer:
    codes = fmt.stored(numbers.astype(jnp.int32))
  else:
    codes = fmt.round(numbers)  # each is a number of the format
  codes = m.from_matrix(codes)
  packed, tail = 0, 0
  if stored and fmt.native is None:
    longest = max(range(len(m.rows)), key=lambda i: m.rows[i])
    packed = place[longest]
    tail = -codes.shape[packed] % packing.unit(fmt.bits)[0]
    codes = packing.pack(codes, fmt.bits, packed)
  minor = len(m.rows) - 1
  rows = (1,) * len(m.rows)
  if scale.shape[-2] > 1:
    rows = (*m.rows[:-1], -(-m.rows[-1] // group))
  whole = lambda p: None if p is None else m.from_matrix(p, (*rows, *m.columns))
  q = qarray.QArray(
    codes,
    whole(scale),
    whole(zero),
    None,
    None,
    format,
    dtype,
    packed=packed,
    tail=tail,
    blocks=((place[minor], group),) if rows[minor] > 1 else (),
  )
  if act is None:
    return q
  one = lambda p: None if p is None else p.reshape(*stack, *(1,) * len(m.order))
  return qarray.QDotArray(q, one(act_scale), one(act_zero), act)
