"""How far the student's distribution is from the teacher's.

    p = softmax(teacher / T)      q = softmax(student / T)

    kl                T^2 KL(p || q)  = T^2 sum_i p_i (log p_i - log q_i)
    reverse_kl        T^2 KL(q || p)
    jsd               T^2 (beta KL(p || m) + (1 - beta) KL(q || m)),
                      m = beta p + (1 - beta) q
    skew_kl           T^2 KL(p || s p + (1 - s) q)
    skew_reverse_kl   T^2 KL(q || (1 - s) p + s q)
    total_variation   T 1/2 sum_i |p_i - q_i|

The powers of T keep the size of the gradient: it falls as 1 / T^2 for those that are
quadratic where p and q are close, as 1 / T for the last.
"""

import jax
import jax.numpy as jnp

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

  >>> float(kl(jnp.zeros((1, 2)), jnp.array([[0., -jnp.inf]]))[0]).__round__(4)
  0.6931
  """
  log_p, log_q = _log_softmax(student_logits, teacher_logits, temperature, mask)
  loss = softened.relative_entropy(log_p, log_q)
  return positions.total(softened.tempered(loss, temperature), mask)


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
  log_p, log_q = _log_softmax(student_logits, teacher_logits, temperature, mask)
  loss = softened.relative_entropy(log_q, log_p)
  return positions.total(softened.tempered(loss, temperature), mask)


def jsd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  beta: float | jax.Array = 0.5,
  temperature: float | jax.Array = 1.0,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """Generalised Jensen-Shannon divergence, from `kl` (0) to `reverse_kl` (1).

      T^2 (beta KL(p || m) + (1 - beta) KL(q || m)),   m = beta p + (1 - beta) q

  Agarwal et al. 2023, https://arxiv.org/abs/2306.13649, eq. 1; p is the teacher. At
  both ends the equation gives 0, so that there, as in TRL, the limits of
  JSD / beta and JSD / (1 - beta) are taken. They are `kl` and `reverse_kl`, and a step
  up: JSD at 0.01 is about 0.01 kl. A schedule of beta has to stay clear of the ends
  or to start there.

  Args:
    student_logits, teacher_logits: [..., classes].
    beta: weight of the teacher in the mixture, in [0, 1]; may be traced.
    temperature, mask: as for `kl`.

  Returns:
    (sum, count), float32 scalars.

  Raises:
    ValueError: as `kl`, or beta outside of [0, 1].

  >>> s, t = jnp.zeros((1, 2)), jnp.array([[0., -jnp.inf]])
  >>> [round(float(jsd(s, t, beta=b)[0]), 4) for b in (0., 0.5)]
  [0.6931, 0.2158]
  """
  softened.check_weight('beta', beta)
  log_p, log_q = _log_softmax(student_logits, teacher_logits, temperature, mask)
  log_m = softened.log_mixture(log_p, log_q, beta)
  # At an end the mixture is one of the two, whose term is 0; the weight of the other
  # term becomes 1.
  beta = jnp.asarray(beta, log_m.dtype)
  of_teacher = jnp.where(beta == 0, 1.0, beta)
  of_student = jnp.where(beta == 1, 1.0, 1 - beta)
  loss = of_teacher * softened.relative_entropy(log_p, log_m)
  loss += of_student * softened.relative_entropy(log_q, log_m)
  return positions.total(softened.tempered(loss, temperature), mask)


def skew_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  skew: float | jax.Array = 0.1,
  temperature: float | jax.Array = 1.0,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """T^2 KL(p || s p + (1 - s) q): bounded by -log s, where `kl` may be infinite.

  Ko et al. 2024, https://arxiv.org/abs/2402.03898, section 3.1 (their alpha is s).
  Arguments, result and errors as for `kl`, and:

  Args:
    skew: s in [0, 1], the teacher's part of the student's mixture; may be traced.

  >>> impossible = jnp.array([[0., -jnp.inf]]), jnp.array([[-jnp.inf, 0.]])
  >>> round(float(skew_kl(*impossible, skew=0.1)[0]), 4)  # -log 0.1
  2.3026
  """
  softened.check_weight('skew', skew)
  log_p, log_q = _log_softmax(student_logits, teacher_logits, temperature, mask)
  log_m = softened.log_mixture(log_p, log_q, skew)
  loss = softened.relative_entropy(log_p, log_m)
  return positions.total(softened.tempered(loss, temperature), mask)


def skew_reverse_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  skew: float | jax.Array = 0.1,
  temperature: float | jax.Array = 1.0,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """T^2 KL(q || (1 - s) p + s q): bounded by -log s, as `skew_kl`.

  Ko et al. 2024, https://arxiv.org/abs/2402.03898, section 3.1. Arguments, result
  and errors as for `skew_kl`; here s is the student's part of the teacher's mixture.
  """
  softened.check_weight('skew', skew)
  log_p, log_q = _log_softmax(student_logits, teacher_logits, temperature, mask)
  log_m = softened.log_mixture(log_q, log_p, skew)
  loss = softened.relative_entropy(log_q, log_m)
  return positions.total(softened.tempered(loss, temperature), mask)


def total_variation(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """T 1/2 sum_i |p_i - q_i|: at T = 1, in [0, 1].

  Wen et al. 2023, https://arxiv.org/abs/2307.15190, as an f-divergence of sequence
  models. Where p_i = q_i the derivative is taken to be 0. Arguments, result and
  errors as for `kl`.
  """
  log_p, log_q = _log_softmax(student_logits, teacher_logits, temperature, mask)
  loss = 0.5 * jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1)
  return positions.total(temperature * loss, mask)


def _log_softmax(student_logits, teacher_logits, temperature, mask):
  """(log p, log q) of teacher and student, checked."""
  softened.check_pair(student_logits, teacher_logits, temperature, mask)
  return tuple(
    softened.log_softmax(x, temperature, mask)
    for x in (teacher_logits, student_logits)
  )
