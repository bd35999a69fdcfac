"""What is counted and has no gradient: whether student and teacher choose alike."""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions

SumAndCount = positions.SumAndCount


def agreement(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  k: int = 1,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """How often the teacher's first choice is among the first k of the student.

  With k=1, the fidelity of Stanton et al. 2021, https://arxiv.org/abs/2106.05945
  ("average top-1 agreement"). Of equal logits the first comes first. A position with
  NaN agrees with nothing. Other arguments, result and errors as for `kl`.

  >>> s, t = jnp.array([[1., 2.], [2., 1.]]), jnp.array([[0., 5.], [0., 5.]])
  >>> [float(x) for x in agreement(s, t)]
  [1.0, 2.0]
  """
  positions.check_pair(student_logits, teacher_logits, mask)
  if k < 1:
    raise ValueError(f'k={k}; at least one choice is expected.')
  s, t = (
    positions.prepared(student_logits, mask),
    positions.prepared(teacher_logits, mask),
  )
  # argmax takes NaN for the largest, so two NaNs would agree.
  known = ~(jnp.isnan(s) | jnp.isnan(t)).any(-1)
  chosen = jnp.argmax(t, -1)[..., None]
  at_choice = jnp.take_along_axis(s, chosen, -1)
  earlier = (
    jnp.arange(s.shape[-1]).reshape((1,) * (s.ndim - 1) + (-1,)) < chosen
  )
  before = (s > at_choice) | ((s == at_choice) & earlier)
  same = known & (before.sum(-1) < k)
  return positions.total(same.astype(s.dtype), mask)
