"""From a weight laid out for kernels back to a leaf for any machine.

(numbers - zero) * scale        what every layout stands for
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import packing
from jaxopt_compress.quantization import qarray


class Matrices(NamedTuple):
  """What a leaf stands for, as matrices.

  Attributes:
    numbers: [stack..., k, n] float32 numbers of the format; the floats themselves.
    scale, zero: None, or [stack..., groups, n].
    factor: None, or [stack..., 1, 1] of all scales.
  """

  numbers: jax.Array
  scale: jax.Array | None = None
  zero: jax.Array | None = None
  factor: jax.Array | None = None

  def scale_hat(self) -> jax.Array | None:
    """Scales of one level."""
    if self.factor is None:
      return self.scale
    return self.scale.astype(jnp.float32) * self.factor


def materialize(leaf) -> jax.Array:
  """[stack..., *matrix.shape]: the array that a leaf stands for."""
  plan = leaf.plan
  found = leaf.matrices()
  x, scale, zero = found.numbers, found.scale_hat(), found.zero

  def by_row(p):
    return matrix_lib.by_row(p.astype(jnp.float32), plan.group, plan.matrix.k)

  x = x.astype(jnp.float32)
  if zero is not None:
    x = x - by_row(zero)
  if scale is not None:
    x = x * by_row(scale)
  return plan.matrix.from_matrix(x).astype(plan.dtype)


def unpack(
  leaf, stored: bool = False
) -> qarray.QArray | qarray.QDotArray | jax.Array:
  """The leaf of the same numbers for any machine; of floats, the array.

  Scales of two levels are those of NVFP4. `stored`: narrow codes share bytes, to be kept.
  """
  plan = leaf.plan
  if not plan.format:
    return materialize(leaf)
  q = _assembled(plan, leaf.matrices(), stored)
  if plan.act is None:
    return q
  stack, ones = plan_lib.stack(leaf), (1,) * len(plan.matrix.order)

  def given(name):
    p = getattr(leaf, name, None)
    return None if p is None else p.reshape(*stack, *ones)

  return qarray.QDotArray(q, given('act_scale'), given('act_zero'), plan.act)


@jax.jit
def portable(leaf):
  """The leaf for any machine as it is kept in files."""
  return unpack(leaf, stored=True)


def _assembled(
  plan: plan_lib.Plan, matrices: Matrices, stored: bool
) -> qarray.QArray:
  """The weight of these numbers and scales.

  Args:
    plan: of the leaf that it was.
    matrices: with scales.
    stored: pack narrow codes along the longest axis that is contracted, to be
      kept; codes have a byte each otherwise.
  """
  m, fmt = plan.matrix, formats.FORMATS[plan.format]
  # Static fields of a QArray count axes from the end.
  axis_of = {entry: i - len(m.order) for i, entry in enumerate(m.order)}
  if fmt.integer:
    codes = fmt.stored(matrices.numbers.astype(jnp.int32))
  else:
    codes = fmt.round(matrices.numbers)  # each is a number of the format
  codes = m.from_matrix(codes)
  packed, tail = 0, 0
  if stored and fmt.native is None:
    longest = max(range(len(m.rows)), key=lambda i: m.rows[i])
    packed = axis_of[longest]
    tail = -codes.shape[packed] % packing.unit(fmt.bits)[0]
    codes = packing.pack(codes, fmt.bits, packed)
  # Groups of rows lie along the minor row axis; the axes before it have a scale
  # for each of their entries.
  minor = len(m.rows) - 1
  rows = (1,) * len(m.rows)
  if matrices.scale.shape[-2] > 1:
    rows = (*m.rows[:-1], -(-m.rows[-1] // plan.group))

  def along_array(p, sizes=(*rows, *m.columns)):
    return None if p is None else m.from_matrix(p, sizes)

  return qarray.QArray(
    codes,
    along_array(matrices.scale),
    along_array(matrices.zero),
    along_array(matrices.factor, (1,) * len(m.sizes)),
    None,
    plan.format,
    plan.dtype,
    packed=packed,
    tail=tail,
    blocks=((axis_of[minor], plan.group),) if rows[minor] > 1 else (),
  )
