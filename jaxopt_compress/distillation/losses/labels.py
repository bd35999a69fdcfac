"""What labels add.

q = softmax(student)

cross_entropy   -log q_label
distill         alpha kl + (1 - alpha) cross_entropy
"""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import softened

SumAndCount = positions.SumAndCount


def cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  mask: jax.Array | None = None,
  *,
  label_smoothing: float | jax.Array = 0.0,
) -> SumAndCount:
  """-(1 - e) log q_label - e mean_i log q_i.

  Label smoothing e: Szegedy et al. 2015, https://arxiv.org/abs/1512.00567,
  section 7.

  Args:
    logits: [..., classes].
    labels: [...], integers. A label outside the classes makes the loss NaN, unless
      its position is masked: mark padding in `mask`, not by a label of -1 or -100.
    mask: [...], weights of positions, bool or number; None: all count.
    label_smoothing: e, in [0, 1); may be traced.

  Returns:
    (sum, count), float32 scalars.

  Raises:
    ValueError: shapes do not fit, or labels are not integers.

  >>> nll, n = cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
  >>> round(float(nll / n), 4)
  1.3863
  """
  _check_labels(logits, labels, mask, label_smoothing)
  return positions.total(_hard(logits, labels, mask, label_smoothing), mask)


def distill(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  *,
  alpha: float | jax.Array,
  temperature: float | jax.Array,
  mask: jax.Array | None = None,
  label_smoothing: float | jax.Array = 0.0,
) -> SumAndCount:
  """alpha T^2 KL(teacher || student) + (1 - alpha) cross entropy.

  Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.

  Args:
    student_logits, teacher_logits: [..., classes].
    labels: [...], integers. With alpha=1 they have no part, so that unlabelled
      examples may have any.
    alpha: weight of the soft targets, in [0, 1]; may be traced.
    temperature: T > 0 of the soft targets; may be traced.
    mask: [...], weights of positions, bool or number; None: all count.
    label_smoothing: of the cross entropy.

  Returns:
    (sum, count), float32 scalars.

  Raises:
    ValueError: as `kl` and `cross_entropy`, or alpha outside of [0, 1].
  """
  if softened.is_known(alpha) and not 0 <= alpha <= 1:
    raise ValueError(f'alpha={alpha}; a weight in [0, 1] is expected.')
  softened.check_pair(student_logits, teacher_logits, temperature, mask)
  _check_labels(student_logits, labels, mask, label_smoothing)

  def soft(student_logits, teacher_logits):
    log_p, log_q = (
      softened.log_softmax(x, temperature, mask)
      for x in (teacher_logits, student_logits)
    )
    return temperature**2 * softened.relative_entropy(log_p, log_q)

  def hard(student_logits):
    return _hard(student_logits, labels, mask, label_smoothing)

  loss = positions.term(alpha, soft, student_logits, teacher_logits)
  loss += positions.term(1 - alpha, hard, student_logits)
  return positions.total(loss, mask)


def _hard(logits, labels, mask, label_smoothing):
  """The cross entropy of each position."""
  log_q = jax.nn.log_softmax(positions.prepared(logits, mask))
  # Out of bounds, take_along_axis would wrap or fill; class 0 is read instead, and
  # the loss becomes NaN below unless the mask drops it.
  is_class = (labels >= 0) & (labels < logits.shape[-1])
  index = jnp.where(is_class, labels, 0)[..., None]
  loss = -jnp.take_along_axis(log_q, index, axis=-1)[..., 0]
  # Of logits with a class that cannot occur, the mean is infinite.
  loss = (1 - label_smoothing) * loss + positions.term(
    label_smoothing, lambda log_q: -jnp.mean(log_q, axis=-1), log_q
  )
  fine = is_class if mask is None else is_class | ~mask.astype(bool)
  return jnp.where(fine, loss, jnp.nan)


def _check_labels(logits, labels, mask, label_smoothing):
  positions.check_mask(logits, mask)
  if softened.is_known(label_smoothing) and not 0 <= label_smoothing < 1:
    raise ValueError(f'label_smoothing={label_smoothing}; [0, 1) is expected.')
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f'Labels are {labels.dtype}; class numbers are expected. For soft labels'
      ' use kl with their logarithms.'
    )
  if labels.shape != logits.shape[:-1]:
    raise ValueError(
      f'Labels have shape {labels.shape}; {logits.shape[:-1]} is expected, one'
      f' for each position of logits {logits.shape}.'
    )
