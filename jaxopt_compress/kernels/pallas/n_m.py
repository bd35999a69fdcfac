"""N:M sparse weights: of every M rows of a column, N are kept.

    dense[M g + j] = sum_i values[g, i] [indices[g, i] = j]
    y = x @ dense * scale = sum_j x[:, j::M] @ dense[j::M] * scale

The kernel reads the values and small indices and makes the dense tile itself, for
each j on its own, so that nothing is interleaved: x is cut into its M phases before.
It saves bytes, not operations: the product is dense.
"""

import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.kernels.pallas import contract as contract_lib
from jaxopt_compress.kernels.pallas import layout
from jaxopt_compress.kernels.pallas import tiles as tiles_lib


class Weight(NamedTuple):
  """A weight as the kernel reads it; n' is n up to a multiple of 128.

  Attributes:
    values: [pieces, N, piece, n'] float32, bfloat16, float16 or int8; a piece is
      of groups of M rows, see `layout`.
    indices: [bundles, bytes, piece, n'] int8. A bundle is so many pieces that its
      indices end with a byte: index i of piece p has ceil(log2 M) bits, at place
      p * N + i, the first ones lowest; bytes are not straddled. 2:4 has two
      pieces, in one byte.
    scale: None; or [1, n'].
  """

  values: jax.Array
  indices: jax.Array
  scale: jax.Array | None


def lay_out(
  values: jax.Array,
  indices: jax.Array,
  scale: jax.Array | None = None,
  *,
  k: int,
  kept: int,
  of: int,
) -> Weight:
  """The layout of an N:M weight.

  Args:
    values: [ceil(k / M) * N, n], the N of a group after each other.
    indices: the same shape, integers in [0, M), no two of a group the same.
    scale: [1, n] that values are multiplied with, or None.
    k: rows of the dense weight.
    kept, of: N and M.
  """
  groups, n = _groups(k, kept, of), values.shape[1]
  if not values.shape == indices.shape == (groups * kept, n):
    raise ValueError(
      f'values are {list(values.shape)}, indices {list(indices.shape)};'
      f' {kept}:{of} of {k} rows has {groups * kept} rows of both.'
    )
  if scale is not None and scale.shape != (1, n):
    raise ValueError(f'scale is {list(scale.shape)}; expected {[1, n]}.')
  c = layout.cut(groups)
  slots = lambda a: _by_slot(a, c, kept, of)
  scale = None if scale is None else layout.columns(scale)
  packed = _packed(slots(indices.astype(jnp.uint8)), kept, of)
  return Weight(slots(values), packed, scale)


def restore(
  weight: Weight, *, k: int, n: int, kept: int, of: int
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """The inverse of `lay_out`: values, int8 indices, scale."""
  c = layout.cut(_groups(k, kept, of))
  pieces, _ = _bundle(kept, of)
  bundles, _, piece, columns = weight.indices.shape
  places = [
    _index(lambda byte: weight.indices[:, byte], place, of)
    for place in range(pieces * kept)
  ]
  shape = bundles * pieces, kept, piece, columns
  indices = jnp.stack(places, axis=1).reshape(shape).astype(jnp.int8)

  def rows(a):
    a = a[: c.count, ..., :n].swapaxes(1, 2).reshape(c.count, piece, kept * n)
    return layout.whole(a, c).reshape(c.k * kept, n)

  scale = None if weight.scale is None else weight.scale[:, :n]
  return rows(weight.values), rows(indices), scale


def matmul(
  x: jax.Array,
  weight: Weight,
  *,
  n: int,
  kept: int,
  of: int,
  platform: str | None = None,
  interpret: bool = False,
  tiles: tiles_lib.Tiles | None = None,
) -> jax.Array:
  """x @ dense(values, indices) * scale. No derivatives.

  Args:
    x: [m, k] float32, bfloat16 or float16.
    weight: made by `lay_out` with the same `kept` and `of`.
    n: columns of the weight.
    kept, of: N and M.
    platform: 'gpu' or 'tpu'; None for where it runs.
    interpret: run it in plain JAX, on any device, slowly; or parameters of
      Pallas's interpreter for TPU.
    tiles: blocks; None to choose them by shape.

  Returns:
    [m, n]; of the dtype of `x` for integer values, else of the wider of both.

  >>> values, indices = jnp.array([[2.], [3.]]), jnp.array([[1], [3]])
  >>> w = lay_out(values, indices, k=4, kept=2, of=4)
  >>> x = jnp.array([[1., 10., 100., 1000.]])
  >>> matmul(x, w, n=1, kept=2, of=4, interpret=True).tolist()
  [[3020.0]]
  """
  layout.matrix(x)
  platform = tiles_lib.on(platform, interpret)
  m, k = x.shape
  c = layout.cut(_groups(k, kept, of))
  pieces, _ = _bundle(kept, of)
  bundles = -(-c.count // pieces)
  expected = (bundles * pieces, kept, c.piece, -(-n // 128) * 128)
  if weight.values.shape != expected:
    raise ValueError(
      f'values are {list(weight.values.shape)}; x {[m, k]} with {n} columns of'
      f' {kept}:{of} meets {list(expected)}. Make them with n_m.lay_out.'
    )
  dtype = x.dtype
  if jnp.issubdtype(weight.values.dtype, jnp.floating):
    dtype = jnp.promote_types(dtype, weight.values.dtype)
  if 0 in (m, k, n):
    return jnp.zeros((m, n), dtype)
  inside = dtype
  if platform == 'tpu' and dtype == jnp.float16:
    inside = jnp.dtype(jnp.float32)  # Mosaic has no float16.
    if weight.values.dtype == jnp.float16:
      raise ValueError(
        'Kernels on TPU read no float16 values. Lay them out as float32 or'
        ' bfloat16.'
      )
  rows = tiles.rows if tiles else tiles_lib.rows_of(m, platform)
  if tiles is None and platform == 'gpu':
    # It makes dense tiles in registers: more columns do not fit.
    columns, warps = (32, 4) if rows < 64 else (64, 8)
    steps = tiles_lib.split(m, weight.values.shape[-1], rows, columns, bundles)
    tiles = tiles_lib.Tiles(rows, columns, steps, warps, stages=4)
  x = _phases(x.astype(inside), c, of, bundles * pieces, -(-m // rows) * rows)
  operand = contract_lib.Operand
  precision = contract_lib.float32_on(platform, interpret)
  y = contract_lib.contract(
    _term(kept, of, pieces, precision, unroll=platform == 'tpu'),
    lambda total, *scale: (
      total * scale[0].astype(jnp.float32) if scale else total
    ),
    [
      operand(x, True, pieces),
      operand(weight.values, False, pieces),
      operand(weight.indices, False, 1),
    ],
    [] if weight.scale is None else [operand(weight.scale, False)],
    bundles=bundles,
    acc=jnp.float32,
    out=inside,
    tiles=tiles,
    platform=platform,
    interpret=interpret,
    name=f'n{kept}m{of}',
  )
  return y[:m, :n].astype(dtype)


def _term(kept, of, pieces, precision, unroll):
  """sum over the pieces of a bundle, and over j, of x[:, j::M] @ dense[j::M]."""

  def term(b, x_ref, values_ref, indices_ref):
    total = 0.0
    for q in range(pieces):
      p = b * pieces + q
      # 16- and 8-bit numbers are selected as float32: masks have 32 bits.
      values = [values_ref[p, i].astype(jnp.float32) for i in range(kept)]
      places = [
        _index(lambda byte: indices_ref[b, byte], q * kept + i, of)
        for i in range(kept)
      ]

      def phase(j, total, p=p, values=values, places=places):
        x = x_ref[p, j]
        dense = _dense(values, places, j).astype(x.dtype)
        return total + contract_lib.dot(x, dense, precision)

      zeros = jnp.zeros((x_ref.shape[2], values[0].shape[1]), jnp.float32)
      total += lax.fori_loop(0, of, phase, zeros, unroll=unroll)
    return total

  return term


def _dense(values, places, j):
  """Row j of every group: [piece, n] float32."""
  rows = jnp.zeros_like(values[0])
  for value, place in zip(values, places, strict=True):
    rows = jnp.where(place == j, value, rows)
  return rows


# ---------------------------------------------------------------------- indices


def _bits(of):
  return max(1, (of - 1).bit_length())


def _bundle(kept, of) -> tuple[int, int]:
  """Pieces of a bundle, and bytes of its indices: `bytes` of [piece, n].

  >>> _bundle(2, 4), _bundle(1, 4), _bundle(4, 8)
  ((2, 1), (4, 1), (1, 2))
  """
  per_byte = 8 // _bits(of)
  pieces = per_byte // math.gcd(per_byte, kept)
  return pieces, pieces * kept // per_byte


def _index(byte, place, of):
  """int32 indices at a place; `byte` gives int8 bytes by number."""
  bits = _bits(of)
  at, rank = divmod(place, 8 // bits)
  return (byte(at).astype(jnp.int32) >> (bits * rank)) & (2**bits - 1)


def _packed(indices, kept, of):
  """[pieces, N, piece, n] uint8 to [bundles, bytes, piece, n] int8."""
  pieces, num_bytes = _bundle(kept, of)
  count, _, piece, n = indices.shape
  shape = count // pieces, num_bytes, 8 // _bits(of), piece, n
  places = indices.reshape(shape)
  byte = jnp.zeros((*shape[:2], piece, n), jnp.uint8)
  for rank in range(shape[2]):
    byte |= places[:, :, rank] << (_bits(of) * rank)
  return lax.bitcast_convert_type(byte, jnp.int8)


# ----------------------------------------------------------------------- pieces


def _by_slot(a, c, kept, of):
  """[groups * N, n] to [pieces, N, piece, n'], whole bundles."""
  n = a.shape[1]
  a = layout.rows(a.reshape(c.k, kept * n), c)
  a = a.reshape(c.count, c.piece, kept, n).swapaxes(1, 2)
  fill = -c.count % _bundle(kept, of)[0]
  a = jnp.pad(a, ((0, fill), (0, 0), (0, 0), (0, 0)))
  return layout.columns(a)


def _phases(x, c, of, count, rows):
  """[m, k] to [count, M, rows, piece]: phase j has the entries j, j + M, ..."""
  m, k = x.shape
  x = jnp.pad(x, ((0, rows - m), (0, c.k * of - k)))
  x = layout.rows(x.T.reshape(c.k, of * rows), c)
  x = x.reshape(c.count, c.piece, of, rows).transpose(0, 2, 3, 1)
  return jnp.pad(x, ((0, count - c.count), (0, 0), (0, 0), (0, 0)))


def _groups(k, kept, of) -> int:
  """Groups of M rows; the last may have fewer."""
  if not 1 <= kept <= of <= 16:
    raise ValueError(
      f'{kept}:{of} is not N:M with 1 <= N <= M <= 16, as the kernel takes it.'
    )
  return -(-k // of)
