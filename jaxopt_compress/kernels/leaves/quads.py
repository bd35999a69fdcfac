"""The leaf of convolutions that keep channels apart: `layout.to_quads`.

payload [stack..., quads, width, columns, 4]
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import portable as portable_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QuadArray(array.CompressedArray):
  """Stands for `(number - zero) * scale`: [stack..., *matrix.shape] of `dtype`.

  Its convolutions round the image as those of a `PanelArray` do.

  Attributes:
    payload: [stack..., quads, width, columns, 4] int8.
    scale: [stack..., 1, n] float32, bfloat16 or float8_e8m0fnu.
    zero: None; or the shape of `scale`, int8 or float32.
    act_scale, act_zero: [stack..., 1, 1] or None: a given range of the image.
    plan: what is static.
  """

  payload: jax.Array
  scale: jax.Array
  zero: jax.Array | None
  act_scale: jax.Array | None
  act_zero: jax.Array | None
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
    del plan
    return dict(payload=4, scale=2, zero=2, act_scale=2, act_zero=2)

  def matrices(self) -> portable_lib.Matrices:
    """What the leaf stands for, as matrices."""
    m, quads = self.plan.matrix, plan_lib.part(self, 'payload')
    # Seen with other axes the rows are still height times width.
    height = m.k // quads.shape[-3]
    x = layout.from_quads(quads, height, m.n)
    x = x.reshape(*plan_lib.stack(self), m.k, m.n).astype(jnp.float32)
    unit = np.float32(numbers.LAYOUT[self.plan.format].unit)
    return portable_lib.Matrices(
      x * unit, plan_lib.part(self, 'scale'), plan_lib.part(self, 'zero')
    )

  def describe(self):
    return plan_lib.describe(self, 'packed', bits=8)


def lay_out(
  integers: jax.Array,
  plan: plan_lib.Plan,
  scale: jax.Array,
  zero: jax.Array | None,
  act_scale: jax.Array | None,
  act_zero: jax.Array | None,
) -> QuadArray:
  """The leaf of a kernel seen as matrices.

  Args:
    integers: [stack..., k, n] int32, as `numbers.integers_of` makes them.
    plan: what is static.
    scale, zero: [stack..., 1, n].
    act_scale, act_zero: [stack..., 1, 1].
  """
  stack, m = integers.shape[:-2], plan.matrix
  # Rows are (height, width, one channel).
  windows = integers.astype(jnp.int8).reshape(*stack, *m.rows[-3:-1], m.n)
  parts = layout.to_quads(windows), scale, zero, act_scale, act_zero
  return QuadArray(*(plan_lib.full(p, stack, m) for p in parts), plan)
