"""DKD: how sure of the label, and what of the others, with weights of their own.

    b = (p_label, 1 - p_label)      r_i = p_i / (1 - p_label),  i not the label

    dkd   T^2 (alpha KL(b_teacher || b_student) + beta KL(r_teacher || r_student))

With alpha = 1 and beta = 1 - p_label of the teacher this is `kl`, which so hardly
sees the other classes where the teacher is sure.
"""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import labels as labels_lib
from jaxopt_compress.distillation.losses import softened

SumAndCount = positions.SumAndCount


def dkd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array | None,
  *,
  alpha: float | jax.Array = 1.0,
  beta: float | jax.Array = 8.0,
  temperature: float | jax.Array = 1.0,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """Decoupled: alpha (target classes) + beta (the other classes).

  Zhao et al. 2022, https://arxiv.org/abs/2203.08679, eq. 7. On CIFAR-100 they use
  T = 4, alpha = 1, beta from 1 to 10, mostly 8, beside a cross entropy of weight 1.

  Args:
    student_logits, teacher_logits: [..., classes].
    labels: [...], integers, outside the classes only where masked, as for
      `cross_entropy`; None: the teacher's first choice, which needs no labels.
    alpha, beta: weights of the two terms; may be traced.
    temperature, mask: as for `kl`.

  Returns:
    (sum, count), float32 scalars.

  Raises:
    ValueError: as `kl` and `cross_entropy`.

  >>> s, t = jnp.zeros((1, 3)), jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  >>> [round(float(dkd(s, t, jnp.array([0]), **term)[0]), 4)
  ...  for term in ({'beta': 0.}, {'alpha': 0., 'beta': 1.})]
  [0.0589, 0.0]
  """
  softened.check_pair(student_logits, teacher_logits, temperature, mask)
  if labels is None:
    labels = labels_lib.first_choice(teacher_logits, mask)
  labels_lib.check_labels(student_logits, labels, mask)
  is_class, index = labels_lib.which(student_logits, labels)
  is_label = jax.nn.one_hot(index[..., 0], student_logits.shape[-1], dtype=bool)

  def parts(logits):
    """log b [..., 2] and log r [..., classes], -inf at the label."""
    log_p = softened.log_softmax(logits, temperature, mask)
    of_label = jnp.sum(jnp.where(is_label, log_p, 0.0), axis=-1)
    of_others = softened.log_sum(log_p, ~is_label)
    binary = jnp.stack([of_label, of_others], axis=-1)
    # Where all others are impossible, theirs is no distribution: its term is 0.
    scale = jnp.where(of_others > -jnp.inf, of_others, 0.0)[..., None]
    return binary, jnp.where(is_label, -jnp.inf, log_p - scale)

  def target(student_logits, teacher_logits):
    b_teacher, b_student = parts(teacher_logits)[0], parts(student_logits)[0]
    return softened.relative_entropy(b_teacher, b_student)

  def non_target(student_logits, teacher_logits):
    r_teacher, r_student = parts(teacher_logits)[1], parts(student_logits)[1]
    return softened.relative_entropy(r_teacher, r_student)

  logits = student_logits, teacher_logits
  loss = positions.term(alpha, target, *logits)
  loss += positions.term(beta, non_target, *logits)
  return labels_lib.total(softened.tempered(loss, temperature), is_class, mask)
