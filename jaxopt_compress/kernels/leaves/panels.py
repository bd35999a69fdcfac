"""The leaf of matrices in panels: `layout.to_panels`, every format, every product.

payload [stack..., panels, units, bytes]
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels.leaves import layers
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import portable as portable_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PanelArray(array.CompressedArray):
  """Stands for `(number(code) - zero) * scale`: [stack..., *matrix.shape] of `dtype`.

  Products with it round the other operand as `plan.act` says; their bound is that of
  `QDotArray`. Without `act` they keep it to 2^-23 of the largest entry of each row
  (2^-15 where it is bfloat16), so results are those of float32 products in another
  order. A row with NaN or infinity gives NaN in all columns.

  Sums of codes are scaled as floats by the weight's scale first, by that of the row
  last. In between they are finite for weights of k rows up to 4e31 / k, and with `act`
  up to 1e36 / k; products of larger ones may be infinite or NaN.

  Where features of a convolution are in groups, all parts but the ranges have an axis
  of these groups after those of the stack.

  Attributes:
    payload: [stack..., panels, units, bytes] uint8; or a `layers.Layer` of a stack.
    scale: [stack..., groups, n] float32, bfloat16, float8_e8m0fnu or float8_e4m3fn.
    zero: None; or the shape of `scale`, int8 or float32.
    totals: None; or [stack..., 1, n] float32, the sums of the columns, for codes of
      the other operand with zero points.
    act_scale, act_zero: [stack..., 1, 1] or None: a given range of the other
      operand.
    global_scale: None; or [stack..., 1, 1] float32, a factor of all scales.
    plan: what is static.
  """

  payload: jax.Array | layers.Layer
  scale: jax.Array
  zero: jax.Array | None
  totals: jax.Array | None
  act_scale: jax.Array | None
  act_zero: jax.Array | None
  global_scale: jax.Array | None
  plan: plan_lib.Plan = dataclasses.field(metadata={'static': True})

  shape = property(plan_lib.shape)
  dtype = property(plan_lib.dtype)
  stored = jnp.uint8  # the payload's own
  dtypes = plan_lib.dtypes
  can_cut = plan_lib.can_cut
  indexed = property(plan_lib.indexed)
  entry = plan_lib.entry
  apart = plan_lib.apart
  materialize = portable_lib.materialize
  portable = portable_lib.portable

  @staticmethod
  def axes(plan: plan_lib.Plan) -> dict[str, int]:
    more = plan.feature_groups > 1
    return dict(
      payload=3 + more,
      scale=2 + more,
      zero=2 + more,
      totals=2 + more,
      act_scale=2,
      act_zero=2,
      global_scale=2,
    )

  def scale_hat(self) -> jax.Array:
    """The scales with the factor of all of them, in the shape of `scale`."""
    scale, factor = plan_lib.part(self, 'scale'), self.global_scale
    if factor is None:
      return scale
    stack = plan_lib.stack(self)
    ones = (1,) * (scale.ndim - len(stack))
    return scale.astype(jnp.float32) * factor.reshape(*stack, *ones)

  def matrices(self) -> portable_lib.Matrices:
    """What the leaf stands for, as matrices."""
    plan = self.plan
    codes = layout.from_panels(
      plan_lib.part(self, 'payload'),
      numbers.LAYOUT[plan.format].name,
      plan.group,
      plan.matrix.k,
      plan.matrix.n // plan.feature_groups,
    )
    codes, scale, zero = (
      join_groups(p, plan.feature_groups)
      for p in (
        codes,
        plan_lib.part(self, 'scale'),
        plan_lib.part(self, 'zero'),
      )
    )
    return portable_lib.Matrices(
      numbers.of_codes(codes, plan.format),
      scale,
      zero,
      plan_lib.part(self, 'global_scale'),
    )

  def describe(self):
    name = numbers.LAYOUT[self.plan.format].name
    return plan_lib.describe(self, 'packed', layout.CODES[name].bits)


def lay_out(
  codes: jax.Array,
  plan: plan_lib.Plan,
  scale: jax.Array,
  zero: jax.Array | None,
  totals: jax.Array | None,
  act_scale: jax.Array | None,
  act_zero: jax.Array | None,
  global_scale: jax.Array | None = None,
) -> PanelArray:
  """The leaf of a weight seen as matrices.

  Args:
    codes: [stack..., k, n] uint8, as `numbers.codes_of` makes them.
    plan: what is static.
    scale, zero: [stack..., groups, n].
    totals: [stack..., 1, n].
    act_scale, act_zero, global_scale: [stack..., 1, 1].
  """
  stack, groups = codes.shape[:-2], plan.feature_groups
  name = numbers.LAYOUT[plan.format].name
  payload = layout.to_panels(by_group(codes, groups), name, plan.group)
  of_columns = [by_group(p, groups) for p in (scale, zero, totals)]
  return PanelArray(
    *(
      plan_lib.full(p, stack, plan.matrix)
      for p in (payload, *of_columns, act_scale, act_zero, global_scale)
    ),
    plan,
  )


def by_group(p: jax.Array | None, groups: int) -> jax.Array | None:
  """[..., rows, n] to [..., groups of features, rows, n / groups]."""
  if p is None or groups == 1:
    return p
  return jnp.swapaxes(p.reshape(*p.shape[:-1], groups, -1), -3, -2)


def join_groups(p: jax.Array | None, groups: int) -> jax.Array | None:
  """The inverse: [..., groups of features, rows, columns] to [..., rows, n]."""
  if p is None or groups == 1:
    return p
  p = jnp.swapaxes(p, -3, -2)
  return p.reshape(*p.shape[:-2], -1)
