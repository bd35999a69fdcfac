"""What labels add, the data's own or the teacher's.

q = softmax(student)

cross_entropy   -log q_label
hard            -log q_c,  c = argmax(teacher)
distill         alpha soft + (1 - alpha) cross_entropy
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import divergences
from jaxopt_compress.distillation.losses import softened
from jaxopt_compress.distillation.losses import weighting

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
  check_labels(logits, labels, mask, label_smoothing)
  log_q = jax.nn.log_softmax(positions.prepared(logits, mask))
  is_class, index = which(logits, labels)
  loss = -jnp.take_along_axis(log_q, index, axis=-1)[..., 0]
  # Of logits with a class that cannot occur, the mean is infinite.
  loss = (1 - label_smoothing) * loss + positions.term(
    label_smoothing, lambda log_q: -jnp.mean(log_q, axis=-1), log_q
  )
  return total(loss, is_class, mask)


def hard(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  mask: jax.Array | None = None,
  label_smoothing: float | jax.Array = 0.0,
) -> SumAndCount:
  """Cross entropy with the teacher's first choice: labels where there are none.

  Beyer et al. 2021, https://arxiv.org/abs/2106.05237, call it hard distillation.
  Arguments, result and errors as for `kl` and `cross_entropy`.
  """
  positions.check_pair(student_logits, teacher_logits, mask)
  labels = first_choice(teacher_logits, mask)
  return cross_entropy(
    student_logits, labels, mask, label_smoothing=label_smoothing
  )


def distill(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  *,
  alpha: float | jax.Array,
  temperature: float | jax.Array,
  mask: jax.Array | None = None,
  label_smoothing: float | jax.Array = 0.0,
  soft: Callable[..., SumAndCount] = divergences.kl,
) -> SumAndCount:
  """alpha T^2 KL(teacher || student) + (1 - alpha) cross entropy.

  Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2. For other sums,
  such as those of several teachers or of losses that know no temperature, see
  `weighted`.

  Args:
    student_logits, teacher_logits: [..., classes].
    labels: [...], integers. With alpha=1 they have no part, so that unlabelled
      examples may have any.
    alpha: weight of the soft targets, in [0, 1]; may be traced.
    temperature: T > 0 of the soft targets; may be traced.
    mask: [...], weights of positions, bool or number; None: all count.
    label_smoothing: of the cross entropy.
    soft: another loss in the place of `kl`, called as it is:
      `functools.partial(jsd, beta=0.1)`.

  Returns:
    (sum, count), float32 scalars.

  Raises:
    ValueError: as `kl` and `cross_entropy`, or alpha outside of [0, 1].
  """
  softened.check_weight('alpha', alpha)
  check_labels(student_logits, labels, mask, label_smoothing)

  def softly(student_logits, teacher_logits, *, mask):
    return soft(
      student_logits, teacher_logits, temperature=temperature, mask=mask
    )

  def hardly(student_logits, *, mask):
    return cross_entropy(
      student_logits, labels, mask, label_smoothing=label_smoothing
    )

  return weighting.weighted(
    (alpha, softly, student_logits, teacher_logits),
    (1 - alpha, hardly, student_logits),
    mask=mask,
  )


def first_choice(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
  """argmax of logits [..., classes]; -1, which is no class, where one is NaN."""
  x = positions.prepared(logits, mask)
  return jnp.where(jnp.isnan(x).any(-1), -1, jnp.argmax(x, axis=-1))


def which(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Labels [...] that are one of the classes, and an index of one for each.

  Out of bounds, take_along_axis would wrap or fill: class 0 is read instead, and
  `total` says NaN unless the mask drops it.
  """
  is_class = (labels >= 0) & (labels < logits.shape[-1])
  return is_class, jnp.where(is_class, labels, 0)[..., None]


def total(
  loss: jax.Array, is_class: jax.Array, mask: jax.Array | None
) -> SumAndCount:
  """`positions.total`, NaN where a position counts whose label is no class."""
  fine = is_class if mask is None else is_class | ~mask.astype(bool)
  return positions.total(jnp.where(fine, loss, jnp.nan), mask)


def check_labels(
  logits: jax.Array,
  labels: jax.Array,
  mask: jax.Array | None,
  label_smoothing: float | jax.Array = 0.0,
) -> None:
  """Raises unless labels are integers, one for each position."""
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
