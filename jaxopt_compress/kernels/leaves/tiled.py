"""The leaf of matrices laid out for GPUs and TPUs: `pallas.layout`, `transposed`.

    codes [stack..., pieces, piece, n']

of int8 or int4. For which rows they beat XLA's form of the same on an H100,
`launch/bench/pallas.py` prints; on other devices, and on TPUs, nothing was timed:
`tune` measures there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.kernels import transposed
from jaxopt_compress.kernels.leaves import panels
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import portable as portable_lib
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import spec as spec_lib

# How the kernels of W8A8 can round the other operand, with a zero point and without.
ACTS = tuple(spec_lib.Spec('int8', 'token', symmetric=s) for s in (False, True))
# Up to how many rows GPUs multiply in Pallas, not XLA: it decodes weights in every
# program that reads them, where XLA does it once, and scales of whole columns after.
_MOST_ROWS_OF_GROUPS = 128
_MOST_ROWS = 4
_BITS = {name: formats.FORMATS[name].bits for name in ('int4', 'int8')}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TiledArray(array.CompressedArray):
  """Stands for `(number - zero) * scale`: [stack..., *matrix.shape] of `dtype`.

  With `plan.act`, int8 per token, its bound is that of `QDotArray`; without, products
  are those of `x` with the exact codes, summed in float32.

  Attributes:
    codes: [stack..., pieces, piece, n'] int8, see `pallas.layout`; of W8A8 on GPUs,
      [stack..., 1, n, k].
    scale: [stack..., ...] as the kernel has it.
    zero: None, or like `scale`.
    totals: None, or [stack..., 1, n'] int32 sums of the codes, for activations with
      zero points.
    plan: what is static; `plan.format` is 'int8' or 'int4', `plan.target` 'gpu' or
      'tpu'.
  """

  codes: jax.Array
  scale: jax.Array
  zero: jax.Array | None
  totals: jax.Array | None
  plan: plan_lib.Plan = dataclasses.field(metadata={'static': True})

  shape = property(plan_lib.shape)
  dtype = property(plan_lib.dtype)
  stored = jnp.int8  # the payload's own
  dtypes = plan_lib.dtypes
  can_cut = plan_lib.can_cut
  materialize = portable_lib.materialize
  portable = portable_lib.portable

  @staticmethod
  def axes(plan: plan_lib.Plan) -> dict[str, int]:
    return dict(codes=3, scale=3 if plan.act is None else 2, zero=3, totals=2)

  def weight(self):
    """What the kernel takes, with the axes of the stack."""
    codes, scale, zero, totals = (
      plan_lib.part(self, name) for name in self.axes(self.plan)
    )
    kernel = _kernel(self.plan)
    if self.plan.act is None:
      return kernel.Weight(codes, scale, zero)
    return kernel.Weight(codes, scale, totals)

  def suits(self, rows: int) -> bool:
    """Whether products of so many rows are for the kernel."""
    if self.plan.target != 'gpu' or _kernel(self.plan) is transposed:
      return True
    return rows <= (_MOST_ROWS_OF_GROUPS if self.plan.grouped else _MOST_ROWS)

  def multiply(self, x: jax.Array, **options) -> jax.Array:
    """x [stack..., m, k] times the matrices, by the kernels: [stack..., m, n]."""
    plan, kernel = self.plan, _kernel(self.plan)
    run = kernel.matmul
    if kernel is not transposed:
      run = functools.partial(
        run,
        n=plan.matrix.n,
        platform=plan.target,
        **_numbers(plan),
        **options,
      )
    return _over_stack(run, plan_lib.stack(self))(x, self.weight())

  def matrices(self) -> portable_lib.Matrices:
    """What the leaf stands for, as matrices."""
    plan = self.plan
    restore = functools.partial(
      _kernel(plan).restore, k=plan.matrix.k, n=plan.matrix.n, **_numbers(plan)
    )
    codes, scale, *zero = _over_stack(restore, plan_lib.stack(self))(
      self.weight()
    )
    # Of products that round the other operand there are no zero points.
    zero = None if not zero or zero[0] is None else zero[0].astype(jnp.int8)
    return portable_lib.Matrices(codes, scale, zero)

  def describe(self):
    return plan_lib.describe(self, 'tiled')


def suits(plan: plan_lib.Plan, zero) -> str:
  """Why there is no kernel for a weight with these zero points; '' if there is."""
  format, act = plan.format, plan.act
  if format not in _BITS:
    return f'{format} has no kernel; {list(_BITS)} have'
  if act is None:
    return ''
  if act not in ACTS or format != 'int8':
    return (
      'activations are rounded by the kernel of int8 x int8 only, per token'
    )
  if zero is not None:
    return 'the kernel of int8 x int8 takes no zero points of weights'
  # Pallas takes time to import.
  from jaxopt_compress.kernels.pallas import dynamic

  most = dynamic.most_k(act.symmetric)
  if plan.matrix.k > most:
    return f'32 bits do not hold sums of more than {most} products'
  return ''


def tile(leaf: panels.PanelArray, target: str) -> TiledArray:
  """Lays a packed weight, of which `suits` says nothing, out for a target."""
  plan, stack = leaf.plan._replace(target=target), plan_lib.stack(leaf)
  found = leaf.matrices()
  codes, scale, zero = found.numbers, found.scale_hat(), found.zero
  codes = codes.astype(jnp.int8)
  lay_out = functools.partial(_kernel(plan).lay_out, **_numbers(plan))
  if plan.act is not None:
    parts = codes, scale.astype(jnp.float32)
    lay_out = functools.partial(lay_out, symmetric=plan.act.symmetric)
  else:
    parts = (codes, scale) + (() if zero is None else (zero,))
  weight = _over_stack(lay_out, stack)(*parts)
  parts = weight.codes, weight.scale
  parts += tuple(getattr(weight, name, None) for name in ('zero', 'totals'))
  return TiledArray(
    *(plan_lib.full(p, stack, plan.matrix) for p in parts), plan
  )


def _kernel(plan):
  """The module whose layout a leaf has."""
  if plan.act is not None and plan.target == 'gpu':
    return transposed
  # Pallas takes time to import, and CPUs have no use for it.
  from jaxopt_compress.kernels.pallas import dynamic
  from jaxopt_compress.kernels.pallas import weight_only

  return weight_only if plan.act is None else dynamic


def _numbers(plan):
  """What the functions of the kernel must be told of the numbers."""
  if plan.act is not None:
    return {}
  group = plan.group if plan.grouped else None
  return dict(bits=_BITS[plan.format], group=group)


def _over_stack(f, stack):
  """A function of matrices for stacks of them."""
  for _ in stack:
    f = jax.vmap(f)
  return f
