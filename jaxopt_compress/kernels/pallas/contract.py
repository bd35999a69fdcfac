"""The loop that the kernels share: a sum over k, in tiles of the result.

    out[i, j] = finish(sum_b term(b, operands[i, j]), fixed[i, j])

One body for both devices. On a GPU each program sums its part of k in registers; if
k is split among programs, their sums go out unfinished and XLA adds and finishes
them. On a TPU the parts of k are the last axis of the grid, run in order, and are
summed in VMEM.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from jaxopt_compress.kernels.pallas import layout
from jaxopt_compress.kernels.pallas import tiles as tiles_lib


@dataclasses.dataclass(frozen=True)
class Operand:
  """An array, and how a block of it follows the tile of the result.

  Attributes:
    array: [..., m, p] by row, [..., q, n] by column.
    by_row: whether it follows the rows of the result, or its columns.
    per: entries of its first axis in one bundle of k; 0 if it does not run with k.
    piece: of x as it lies, [m, k]: how many of its columns stand for one entry of
      that axis. 0 for arrays that have the axis.
  """

  array: jax.Array
  by_row: bool
  per: int = 0
  piece: int = 0

  def spec(self, t: tiles_lib.Tiles) -> pl.BlockSpec:
    shape = list(self.array.shape)
    if self.per and not self.piece:
      shape[0] = self.per * t.steps
    shape[-2 if self.by_row else -1] = t.rows if self.by_row else t.columns
    return pl.BlockSpec(tuple(shape), self._place)

  def _place(self, i, j, s):
    place = [0] * self.array.ndim
    if self.per and not self.piece:
      place[0] = s
    place[-2 if self.by_row else -1] = i if self.by_row else j
    return tuple(place)

  @property
  def bytes(self) -> int:
    """Bytes of one row or column in one bundle, as they lie in VMEM."""
    if not self.per:
      return 0
    *leading, q, p = self.array.shape
    size = self.array.dtype.itemsize * math.prod((self.per, *leading[1:]))
    # The last axis fills 128 lanes.
    return size * (max(p, 128) if self.by_row else q)


class _Pieces:
  """Reads x where it lies as if it had been cut: [rows, piece] of a number."""

  def __init__(self, operand: Operand, ref, first, inside):
    self._ref, self._first, self._inside = ref, first, inside
    self._piece = operand.piece

  def __getitem__(self, p):
    start = pl.multiple_of((self._first + p) * self._piece, self._piece)
    here = self._ref.at[:, pl.ds(start, self._piece)]
    if self._inside is None:
      return here[...]
    mask = jnp.broadcast_to(self._inside, (self._inside.shape[0], self._piece))
    return _triton().load(here, mask=mask, other=0)


def rows(
  x: jax.Array, c: layout.Cut, count: int, per: int, each: int, platform: str
) -> Operand:
  """The other operand [m, k], as `contract` takes it.

  Args:
    x: [m, k].
    c: how the weight is cut.
    count: pieces of the weight, filled up to whole bundles.
    per: pieces in a bundle.
    each: rows of a block.
    platform: 'gpu' or 'tpu'.
  """
  if platform == 'gpu' and c.count == count and c.k == count * c.piece:
    return Operand(x, True, per, c.piece)
  m = -(-x.shape[0] // each) * each
  return Operand(layout.features(x, c, count, m), True, per)


def contract(
  term: Callable,
  finish: Callable,
  operands: list[Operand],
  fixed: list[Operand],
  *,
  bundles: int,
  acc: jnp.dtype,
  out: jnp.dtype,
  tiles: tiles_lib.Tiles | None,
  platform: str,
  interpret: bool,
  name: str,
) -> jax.Array:
  """Sums `term` over the bundles of k.

  Args:
    term: (b, *refs of operands) -> [rows, columns], of bundle b of the block.
    finish: (sum, *fixed) -> [rows, columns], on values.
    operands: what runs with k, x first, then at least one by column.
    fixed: what does not.
    bundles: steps along k.
    acc, out: dtypes of the sum and of the result.
    tiles: blocks; None to choose them.
    platform: 'gpu' or 'tpu'.
    interpret: whether to run it in plain JAX.
    name: of the kernel, in profiles.

  Returns:
    [m, n], rows and columns as the operands have.
  """
  x = operands[0]
  m = x.array.shape[-2]
  n = next(o.array.shape[-1] for o in operands if not o.by_row)
  t = tiles or _tiles(operands, m, n, bundles, platform)
  tiles_lib.check(t, m if not x.piece else t.rows, n)
  splits = -(-bundles // t.steps)
  addressable(operands, platform)
  apart = platform == 'gpu' and splits > 1
  in_vmem = platform == 'tpu' and splits > 1
  everything = [*operands, *fixed]
  out_spec = pl.BlockSpec((t.rows, t.columns), lambda i, j, s: (i, j))
  out_shape = jax.ShapeDtypeStruct((m, n), out)
  if apart:  # each part of k has a sum of its own
    out_spec = pl.BlockSpec(
      (None, t.rows, t.columns), lambda i, j, s: (s, i, j)
    )
    out_shape = jax.ShapeDtypeStruct((splits, m, n), acc)
  body = functools.partial(
    _body,
    term=term,
    finish=(lambda total, *_: total) if apart else finish,
    operands=operands,
    fixed=len(fixed),
    bundles=bundles,
    acc=acc,
    t=t,
  )
  vmem = [pltpu.VMEM((t.rows, t.columns), acc)] if in_vmem else []
  result = pl.pallas_call(
    body,
    grid=(-(-m // t.rows), n // t.columns, splits),
    in_specs=[o.spec(t) for o in everything],
    out_specs=out_spec,
    out_shape=out_shape,
    scratch_shapes=vmem,
    compiler_params=params(platform, t),
    interpret=interpret,
    name=name,
  )(*(o.array for o in everything))
  if not apart:
    return result
  total = jnp.sum(result, axis=0, dtype=acc)
  whole = (o.array[:m] if o.by_row else o.array for o in fixed)
  return finish(total, *whole).astype(out)


def _tiles(operands, m, n, bundles, platform):
  """Blocks by what the rows and columns of the operands take."""
  by_row, by_column = (
    sum(o.bytes for o in operands if o.by_row is b) for b in (True, False)
  )
  x = operands[0]
  size = x.array.dtype.itemsize
  return tiles_lib.choose(
    m, n, bundles, by_row, by_column, size, x.per, platform
  )


def _body(*refs, term, finish, operands, fixed, bundles, acc, t):
  x, streamed = operands[0], len(operands)
  read, refs = list(refs[:streamed]), refs[streamed:]
  fixed, (out_ref, *vmem) = refs[:fixed], refs[fixed:]
  s = pl.program_id(2)
  inside = None
  if x.piece:
    m = x.array.shape[0]
    if m % t.rows:
      row = lax.broadcasted_iota(jnp.int32, (t.rows, 1), 0)
      inside = pl.program_id(0) * t.rows + row < m
    read[0] = _Pieces(x, read[0], s * t.steps * x.per, inside)
  count = t.steps
  if bundles % t.steps:
    # What the last block holds beyond the end is never read.
    count = jnp.minimum(t.steps, bundles - s * t.steps)
  total = lax.fori_loop(
    0,
    count,
    lambda b, total: total + term(b, *read),
    jnp.zeros((t.rows, t.columns), acc),
  )

  def write(total):
    done = finish(total, *(ref[...] for ref in fixed)).astype(out_ref.dtype)
    if inside is None:
      out_ref[...] = done
    else:
      mask = jnp.broadcast_to(inside, done.shape)
      _triton().store(out_ref.at[...], done, mask=mask)

  if not vmem:
    return write(total)
  (sum_ref,) = vmem

  @pl.when(s == 0)
  def begin():
    sum_ref[...] = total

  @pl.when(s > 0)
  def add():
    sum_ref[...] += total

  @pl.when(s == pl.num_programs(2) - 1)
  def end():
    write(sum_ref[...])


def dot(a: jax.Array, b: jax.Array, precision=None) -> jax.Array:
  """a @ b inside a kernel: float32 sums, int32 for integers.

  Args:
    a: [m, k].
    b: [k, n] of the dtype of `a`.
    precision: that of float32 operands, see `float32_on`.
  """
  integer = jnp.issubdtype(a.dtype, jnp.integer)
  return lax.dot_general(
    a,
    b,
    (((1,), (0,)), ((), ())),
    precision=precision if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.int32 if integer else jnp.float32,
  )


def float32_on(platform: str, interpret: bool):
  """How float32 is multiplied: by default it would drop to TF32 or bfloat16.

  Three TF32 products on tensor cores keep 22 bits of x, and all of an integer code;
  a true float32 product in Triton is scalar code, a minute to compile.
  """
  if platform == 'gpu' and not interpret:
    return lax.DotAlgorithmPreset.TF32_TF32_F32_X3
  return lax.Precision.HIGHEST


def params(platform: str, t: tiles_lib.Tiles):
  """Compiler parameters of a kernel over the grid (rows, columns, k)."""
  if platform == 'tpu':
    semantics = ('parallel', 'parallel', 'arbitrary')
    return pltpu.CompilerParams(dimension_semantics=semantics)
  return _triton().CompilerParams(num_warps=t.warps, num_stages=t.stages)


def _triton():
  # JAX means to part with it; what does not need it must not fail with it then.
  from jax.experimental.pallas import triton

  return triton


def addressable(operands: list[Operand], platform: str) -> None:
  """Raises ValueError where Triton's 32-bit offsets would wrap."""
  for o in operands:
    if platform == 'gpu' and o.array.size >= 2**31:
      raise ValueError(
        f'An operand has {o.array.size} entries, {list(o.array.shape)}; Triton'
        ' kernels address fewer than 2^31. Cut the columns of the weight, or the'
        ' rows of x, in parts.'
      )
