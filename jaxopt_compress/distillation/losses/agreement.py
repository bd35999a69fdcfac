"""What is counted and has no gradient: whether student and teacher choose alike."""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions

SumAndCount = positions.SumAndCount


def agreement(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """How often the student's first choice is the teacher's.

  The fidelity of Stanton et al. 2021, https://arxiv.org/abs/2106.05945 ("average
  top-1 agreement"). A position with NaN agrees with nothing. Arguments, result and
  errors as for `kl`.

  >>> s, t = jnp.array([[1., 2.], [2., 1.]]), jnp.array([[0., 5.], [0., 5.]])
  >>> [float(x) for x in agreement(s, t)]
  [1.0, 2.0]
  """
  positions.check_pair(student_logits, teacher_logits, mask)
  s, t = (
    positions.prepared(student_logits, mask),
    positions.prepared(teacher_logits, mask),
  )
  # argmax takes NaN for the largest, so two NaNs would agree.
  known = ~(jnp.isnan(s) | jnp.isnan(t)).any(-1)
  same = known & (jnp.argmax(s, -1) == jnp.argmax(t, -1))
  return positions.total(same.astype(s.dtype), mask)
