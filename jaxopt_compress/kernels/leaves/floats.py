"""The leaf of kernels of convolutions that stay floats, laid out for CPUs.

    payload  [stack..., panels, k, 16]     layout.to_float_panels
             [stack..., taps, columns]     layout.to_float_taps, channels kept apart

XLA multiplies those that keep channels apart, or have few of them, several times slower;
large ones take it about as long.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels.leaves import panels
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import portable as portable_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class FloatArray(array.CompressedArray):
  """Stands for [stack..., *matrix.shape] float32, the numbers that it holds.

  Its convolutions are those of the array, in another order of sums.

  Attributes:
    payload: float32, as above; where features are in groups of several channels, with
      an axis of these groups after those of the stack.
    plan: what is static.
  """

  payload: jax.Array
  plan: plan_lib.Plan = dataclasses.field(metadata={'static': True})

  shape = property(plan_lib.shape)
  dtype = property(plan_lib.dtype)
  can_cut = plan_lib.can_cut
  materialize = portable_lib.materialize
  portable = portable_lib.portable

  def dtypes(self) -> dict[str, jnp.dtype]:
    return dict(payload=jnp.dtype(jnp.float32))

  @staticmethod
  def axes(plan: plan_lib.Plan) -> dict[str, int]:
    return dict(payload=2 if plan.depthwise else 3 + (plan.feature_groups > 1))

  def matrices(self) -> portable_lib.Matrices:
    """What the leaf stands for, as matrices."""
    plan, payload = self.plan, plan_lib.part(self, 'payload')
    if plan.depthwise:
      return portable_lib.Matrices(payload[..., : plan.matrix.n])
    n = plan.matrix.n // plan.feature_groups
    w = layout.from_float_panels(payload, n)
    return portable_lib.Matrices(panels.join_groups(w, plan.feature_groups))

  def describe(self):
    return 'float32, packed'


def lay_out(w: jax.Array, plan: plan_lib.Plan) -> FloatArray:
  """The leaf of a kernel seen as matrices: [stack..., k, n] float32."""
  stack = w.shape[:-2]
  if plan.depthwise:
    payload = layout.to_float_taps(w)
  else:
    payload = layout.to_float_panels(panels.by_group(w, plan.feature_groups))
  return FloatArray(plan_lib.full(payload, stack, plan.matrix), plan)


def times_columns(leaf: FloatArray, factor: jax.Array) -> jax.Array:
  """The payload with each column multiplied by its factor, [n] or one for all."""
  n, groups = leaf.plan.matrix.n, leaf.plan.feature_groups
  factor = jnp.broadcast_to(factor, (n,)).reshape(1, n)
  payload = plan_lib.part(leaf, 'payload')
  if leaf.plan.depthwise:
    return payload * layout.to_float_taps(factor)
  return payload * layout.to_float_panels(panels.by_group(factor, groups))
