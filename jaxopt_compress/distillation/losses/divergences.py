"""How far the student's distribution is from the teacher's.

p = softmax(teacher / T)      q = softmax(student / T)

kl              T^2 KL(p || q)      = T^2 sum_i p_i (log p_i - log q_i)
reverse_kl      T^2 KL(q || p)
"""

import jax

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import softened

SumAndCount = positions.SumAndCount


def kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """Soft targets: T^2 KL(teacher || student).

  The gradient falls as 1 / T^2; the factor T^2 keeps its size. Hinton et al. 2015,
  https://arxiv.org/abs/1503.02531, section 2; their cross entropy with soft targets
  differs by the teacher's entropy, a constant.

  Args:
    student_logits, teacher_logits: [..., classes].
    temperature: T > 0; may be traced, such as a schedule's value.
    mask: [...], weights of positions, bool or number; None: all count.

  Returns:
    (sum, count), float32 scalars.

  Raises:
    ValueError: shapes differ, or T is not positive.

  >>> total, count = kl(jax.numpy.zeros((1, 2)), jax.numpy.array([[9., 9.]]))
  >>> float(total), float(count)
  (0.0, 1.0)
  """
  softened.check_pair(student_logits, teacher_logits, temperature, mask)
  loss = _divergence(teacher_logits, student_logits, temperature, mask)
  return positions.total(loss, mask)


def reverse_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """T^2 KL(student || teacher): it seeks one mode rather than covering all.

  Gu et al. 2023, https://arxiv.org/abs/2306.08543, section 2.1. Arguments, result
  and errors as for `kl`.
  """
  softened.check_pair(student_logits, teacher_logits, temperature, mask)
  loss = _divergence(student_logits, teacher_logits, temperature, mask)
  return positions.total(loss, mask)


def _divergence(p_logits, q_logits, temperature, mask):
  """T^2 KL(p || q) of each position."""
  log_p, log_q = (
    softened.log_softmax(x, temperature, mask) for x in (p_logits, q_logits)
  )
  return temperature**2 * softened.relative_entropy(log_p, log_q)
