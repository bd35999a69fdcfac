"""The leaf: a weight laid out for the products of GPUs and TPUs.

    TiledArray  stands for  (number - zero) * scale

of int8 or int4, seen as matrices [k, n] that products contract over k. For which
rows they beat XLA's form of the same on an H100, `launch/bench/pallas.py` prints;
on other devices, and on TPUs, nothing was timed: `tune` measures there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels import packed
from jaxopt_compress.kernels import transposed
from jaxopt_compress.kernels.pallas import dynamic
from jaxopt_compress.kernels.pallas import weight_only
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import spec as spec_lib

# How W8A8 rounds the other operand: the one way that its kernels know.
ACT = spec_lib.Spec('int8', 'token')
# Up to how many rows GPUs multiply in Pallas, not XLA: it decodes weights in every
# program that reads them, where XLA does it once, and scales of whole columns after.
_MOST_ROWS_OF_GROUPS = 128
_MOST_ROWS = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TiledArray(array.CompressedArray):
  """Stands for `(number - zero) * scale`: [stack..., *matrix.shape] of `dtype`.

  With `act`, int8 per token, its bound is that of `QDotArray`; without, products are
  those of `x` with the exact codes, summed in float32.

  Attributes:
    codes: [stack..., pieces, piece, n'] int8, see `pallas.layout`; of W8A8 on GPUs,
      [stack..., 1, n, k].
    scale: [stack..., ...] as the kernel has it.
    zero: None, or like `scale`.
    format: 'int8' or 'int4'.
    dtype: of the array.
    matrix: how its axes are those of matrices.
    group: rows that share scales; None for all.
    act: how the other operand becomes codes; None for not at all.
    target: 'gpu' or 'tpu', what it was laid out for.
  """

  codes: jax.Array
  scale: jax.Array
  zero: jax.Array | None
  format: str = dataclasses.field(metadata={'static': True})
  dtype: jnp.dtype = dataclasses.field(metadata={'static': True})
  matrix: matrix_lib.Matrix = dataclasses.field(metadata={'static': True})
  group: int | None = dataclasses.field(metadata={'static': True})
  act: spec_lib.Spec | None = dataclasses.field(metadata={'static': True})
  target: str = dataclasses.field(metadata={'static': True})

  feature_groups = 1

  @property
  def stack(self) -> tuple[int, ...]:
    inner = max(len(self.matrix.order), 3)
    return self.codes.shape[: self.codes.ndim - inner]

  @property
  def shape(self):
    return self.stack + self.matrix.shape

  def _bare(self, x, inner):
    return x.reshape(*self.stack, *x.shape[x.ndim - inner :])

  @property
  def _kernel(self):
    return _kernel(self.act, self.target)

  @property
  def _how(self):
    """What the functions of the kernel must be told."""
    if self.act is not None:
      return {}
    return dict(bits=_BITS[self.format], group=self.group)

  def weight(self):
    """What the kernel takes, with the axes of the stack."""
    if self.act is not None:
      scale = self._bare(self.scale, 2)
      return self._kernel.Weight(self._bare(self.codes, 3), scale)
    bare = lambda x: None if x is None else self._bare(x, 3)
    return weight_only.Weight(
      bare(self.codes), bare(self.scale), bare(self.zero)
    )

  def suits(self, rows: int) -> bool:
    """Whether products of so many rows are for the kernel."""
    if self.target != 'gpu' or self._kernel is transposed:
      return True
    return rows <= (_MOST_ROWS_OF_GROUPS if self.group else _MOST_ROWS)

  def multiply(self, x: jax.Array, **options) -> jax.Array:
    """x [stack..., m, k] times the matrices, by the kernels: [stack..., m, n]."""
    if self._kernel is transposed:
      run = transposed.matmul
    else:
      run = functools.partial(
        self._kernel.matmul,
        n=self.matrix.n,
        platform=self.target,
        **self._how,
        **options,
      )
    for _ in self.stack:
      run = jax.vmap(run)
    return run(x, self.weight())

  def seen_as(self, matrix: matrix_lib.Matrix, dtype=None) -> 'TiledArray':
    """The same matrices, seen with other axes, or in another dtype."""
    full = lambda x, inner: _full(self._bare(x, inner), self.stack, matrix)
    return dataclasses.replace(
      self,
      codes=full(self.codes, 3),
      scale=full(self.scale, 2 if self.act else 3),
      zero=None if self.zero is None else full(self.zero, 3),
      matrix=matrix,
      dtype=dtype or self.dtype,
    )

  def as_matrices(self) -> 'TiledArray':
    """The leaf that stands for [stack..., k, n]."""
    m = self.matrix
    return self.seen_as(matrix_lib.Matrix((m.k,), (m.n,), (0, 1)))

  def unpack(self, stored: bool = False) -> qarray.QArray | qarray.QDotArray:
    """The leaf of the same numbers for any machine; `stored`, to be kept."""
    m = self.matrix
    restore = functools.partial(self._kernel.restore, k=m.k, n=m.n, **self._how)
    for _ in self.stack:
      restore = jax.vmap(restore)
    codes, scale, *zero = restore(self.weight())
    zero = zero[0] if zero else None
    return packed.assemble(
      codes,
      scale,
      zero if zero is None else zero.astype(jnp.int8),
      format=self.format,
      dtype=self.dtype,
      matrix=m,
      group=self.group or m.k,
      act=self.act,
      stored=stored,
    )

  def materialize(self):
    return self.unpack().materialize()

  def portable(self):
    return self.unpack(stored=True)

  def can_cut(self, axis, size):
    return self.ndim + axis < len(self.stack)

  def describe(self):
    how = f'g{self.group}' if self.group else 'channel'
    asym = ' asym' if self.zero is not None else ''
    act = f', {self.act.format} activations' if self.act else ''
    return f'{self.format} {how}{asym}{act}, tiled'


_BITS = {name: formats.FORMATS[name].bits for name in ('int4', 'int8')}


def _full(x, stack, matrix):
  inner = x.shape[len(stack) :]
  ones = max(len(matrix.order), 3) - len(inner)
  return x.reshape(*stack, *(1,) * ones, *inner)


def suits(format: str, zero, act) -> str:
  """Why there is no kernel for a weight; '' if there is."""
  if format not in _BITS:
    return f'{format} has no kernel; {list(_BITS)} have'
  if act is not None and (act != ACT or format != 'int8'):
    return (
      'activations are rounded by the kernel of int8 x int8 only, per token'
    )
  if act is not None and zero is not None:
    return 'the kernel of int8 x int8 takes no zero points'
  return ''


def _kernel(act, target):
  """The module whose layout a leaf has."""
  if act is None:
    return weight_only
  return transposed if target == 'gpu' else dynamic


def tile(leaf: packed.PackedArray, target: str) -> TiledArray:
  """Lays a packed weight, of which `suits` says nothing, out for a target."""
  m, stack = leaf.matrix, leaf.stack
  codes = leaf.numbers().astype(jnp.int8)
  scale = leaf.part('scale').astype(jnp.float32)
  group = None if scale.shape[-2] == 1 else leaf.group
  if leaf.act is not None:
    lay_out, parts = _kernel(leaf.act, target).lay_out, (codes, scale)
  else:
    zero = leaf.part('zero')
    parts = (codes, leaf.part('scale')) + (() if zero is None else (zero,))
    lay_out = functools.partial(
      weight_only.lay_out, bits=_BITS[leaf.format], group=group
    )
  for _ in stack:
    lay_out = jax.vmap(lay_out)
  weight = lay_out(*parts)
  full = lambda x: None if x is None else _full(x, stack, m)
  return TiledArray(
    full(weight.codes),
    full(weight.scale),
    full(getattr(weight, 'zero', None)),
    leaf.format,
    leaf.dtype,
    m,
    group,
    leaf.act,
    target,
  )
