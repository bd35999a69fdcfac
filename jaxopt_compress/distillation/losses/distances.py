"""How far the student's logits are from the teacher's, as points.

mse             mean_i (student_i - teacher_i)^2
"""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions

SumAndCount = positions.SumAndCount


def mse(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """Mean over classes of (student - teacher)^2: `kl` as T -> inf, up to scale.

  Ba and Caruana 2014, https://arxiv.org/abs/1312.6184, eq. 1. Entries that are
  -inf on both sides add 0. Arguments, result and errors as for `kl`.
  """
  positions.check_pair(student_logits, teacher_logits, mask)
  s, t = (
    positions.prepared(student_logits, mask),
    positions.prepared(teacher_logits, mask),
  )
  # -inf - -inf is NaN, in the value and in the gradient, so equal entries are
  # replaced before they are subtracted.
  same = s == t
  difference = jnp.where(same, 0.0, s) - jnp.where(same, 0.0, t)
  return positions.total(jnp.mean(jnp.square(difference), -1), mask)
