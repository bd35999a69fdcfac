"""W4A16 and W8A16: floating x times integer weights with a scale a group of rows.

    y = sum_g scale_g * (x_g @ codes_g - sum(x_g) * zero_g)

Codes are exact in every floating type that x may have, so products lose nothing;
sums, scales and zeros are float32. The weight never becomes floating in memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.kernels.pallas import contract as contract_lib
from jaxopt_compress.kernels.pallas import layout
from jaxopt_compress.kernels.pallas import tiles as tiles_lib


class Weight(NamedTuple):
  """A weight as the kernel reads it; n' is n up to a multiple of 128.

  Attributes:
    codes: int8. 8 bits: [pieces, piece, n'], see `layout`. 4 bits: two pieces in
      one, [ceil(pieces / 2), piece, n'], even pieces in the low nibbles.
    scale: [pieces, 1, n'], as many for 4 bits as there are nibbles; [1, 1, n']
      where one group has all rows. float32 or bfloat16.
    zero: None; or the shape of `scale`, bfloat16 if it was integer.
  """

  codes: jax.Array
  scale: jax.Array
  zero: jax.Array | None


def lay_out(
  codes: jax.Array,
  scale: jax.Array,
  zero: jax.Array | None = None,
  *,
  bits: int,
  group: int | None,
) -> Weight:
  """The layout of a weight (codes - zero) * scale.

  Args:
    codes: [k, n] int8, in [-8, 7] for 4 bits.
    scale: [ceil(k / group), n] floating; [1, n] for group=None.
    zero: the shape of `scale`, or None.
    bits: 4 or 8.
    group: rows that share a scale; None for all.
  """
  _known(bits)
  k, n = codes.shape
  c = layout.cut(k, group)
  groups = 1 if group is None else c.groups
  for name, a in (('scale', scale), ('zero', zero)):
    if a is not None and a.shape != (groups, n):
      raise ValueError(
        f'{name} is {list(a.shape)}; codes {[k, n]} in groups of {group} have'
        f' {[groups, n]} of them.'
      )
  if zero is not None and jnp.issubdtype(zero.dtype, jnp.integer):
    zero = zero.astype(jnp.bfloat16)  # Exact up to 256.
  pieces = layout.columns(layout.rows(codes, c))
  if bits == 4:
    pieces = layout.nibbles(pieces)
  how = c, bits, group
  zero = None if zero is None else _spread(zero, *how)
  return Weight(pieces, _spread(scale, *how), zero)


def restore(
  weight: Weight, *, k: int, n: int, bits: int, group: int | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """The inverse of `lay_out`: codes [k, n], scale and zero [groups, n]."""
  c = layout.cut(k, group)
  pieces = weight.codes
  if bits == 4:
    pieces = layout.from_nibbles(pieces, c.count)
  codes = layout.whole(pieces, c)[:, :n]
  each = 1 if group is None else c.per_group
  count = 1 if group is None else c.count
  # Every piece of a group has the group's row: the first of them is kept.
  first = (slice(0, count, each), 0, slice(0, n))
  zero = None if weight.zero is None else weight.zero[first]
  return codes, weight.scale[first], zero


def matmul(
  x: jax.Array,
  weight: Weight,
  *,
  n: int,
  bits: int,
  group: int | None,
  platform: str | None = None,
  interpret: bool = False,
  tiles: tiles_lib.Tiles | None = None,
) -> jax.Array:
  """x @ ((codes - zero) * scale). No derivatives.

  Args:
    x: [m, k] float32, bfloat16 or float16.
    weight: made by `lay_out` with the same `bits` and `group`.
    n: columns of the weight.
    bits: 4 or 8.
    group: rows that share a scale; None for all.
    platform: 'gpu' or 'tpu'; None for where it runs.
    interpret: run it in plain JAX, on any device, slowly; or parameters of
      Pallas's interpreter for TPU.
    tiles: blocks; None to choose them by shape.

  Returns:
    [m, n] of the dtype of `x`.

  >>> x, codes = jnp.ones((2, 40)), jnp.full((40, 3), -7, jnp.int8)
  >>> w = lay_out(codes, jnp.full((2, 3), 0.5), bits=4, group=32)
  >>> matmul(x, w, n=3, bits=4, group=32, interpret=True)
  Array([[-140., -140., -140.],
         [-140., -140., -140.]], dtype=float32)
  """
  layout.matrix(x)
  _known(bits)
  platform = tiles_lib.on(platform, interpret)
  (m, k), dtype = x.shape, x.dtype
  c = layout.cut(k, group)
  per = 8 // bits
  bundles = -(-c.count // per)
  expected = (bundles, c.piece, -(-n // 128) * 128)
  if weight.codes.shape != expected:
    raise ValueError(
      f'codes are {list(weight.codes.shape)}; x {[m, k]} with {n} columns of'
      f' {bits} bits in groups of {group} meets {list(expected)}. Make them with'
      ' weight_only.lay_out.'
    )
  if 0 in (m, k, n):
    return jnp.zeros((m, n), dtype)
  if platform == 'tpu' and dtype == jnp.float16:
    x = x.astype(jnp.float32)  # Mosaic has no float16.
  rows = tiles.rows if tiles else tiles_lib.rows_of(m, platform)
  x = contract_lib.rows(x, c, per * bundles, per, rows, platform)
  codes = contract_lib.Operand(weight.codes, False, 1)
  whole = group is None
  # One scale for all of k is applied once, at the end.
  scale = contract_lib.Operand(
    weight.scale[0] if whole else weight.scale, False, 0 if whole else per
  )
  operands = [x, codes]
  fixed = [scale] if whole else []
  operands += [] if whole else [scale]
  if weight.zero is not None:
    zero = contract_lib.Operand(weight.zero, False, 0 if whole else per)
    operands.append(zero)
  precision = contract_lib.float32_on(platform, interpret)
  y = contract_lib.contract(
    _term(bits, whole, weight.zero is not None, precision),
    _scaled,
    operands,
    fixed,
    bundles=bundles,
    acc=jnp.float32,
    out=x.array.dtype,
    tiles=tiles,
    platform=platform,
    interpret=interpret,
    name=f'w{bits}a16',
  )
  return y[:m, :n].astype(dtype)


def _scaled(total, scale=None):
  """Sums with the one scale of each column; scales of groups are in them already."""
  return total if scale is None else total * scale.astype(jnp.float32)


def _term(bits, whole, shifted, precision):
  """sum over the pieces in a byte of scale * (x @ codes - sum(x) * zero)."""

  def term(b, x_ref, codes_ref, *refs):
    pieces = layout.of_nibbles(codes_ref[b], bits)
    total = None
    for i, codes in enumerate(pieces):
      p = b * len(pieces) + i
      x = x_ref[p]
      # Through float32: the only way from integers on every device.
      codes = codes.astype(jnp.float32).astype(x.dtype)
      y = contract_lib.dot(x, codes, precision)
      if shifted:
        zero = refs[-1][0 if whole else p].astype(jnp.float32)
        y -= jnp.sum(x.astype(jnp.float32), axis=1, keepdims=True) * zero
      if not whole:
        y *= refs[0][p].astype(jnp.float32)
      total = y if total is None else total + y
    return total

  return term


def _spread(a, c, bits, group):
  """[groups, n] to one row a piece, [pieces, 1, n']."""
  a = layout.columns(a)
  if group is not None:
    a = jnp.repeat(a, c.per_group, axis=0)
    if bits == 4 and c.count % 2:
      a = jnp.pad(a, ((0, 1), (0, 0)))
  return a[:, None]


def _known(bits):
  if bits not in (4, 8):
    raise ValueError(f'Codes have 4 or 8 bits, not {bits}.')
