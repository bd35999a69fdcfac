"""What a student is asked to match: functions of logits.

    p = softmax(teacher / T)      q = softmax(student / T)

    kl              T^2 KL(p || q)      = T^2 sum_i p_i (log p_i - log q_i)
    reverse_kl      T^2 KL(q || p)
    mse             mean_i (student_i - teacher_i)^2
    cross_entropy   -log softmax(student)_label
    distill         alpha kl + (1 - alpha) cross_entropy
    agreement       1 where student and teacher have the same argmax

All are pure functions of arrays that return (sum, count) over positions, so that a
mean over padding, microbatches and devices is exact: add sums, add counts, divide
once, by `mean`. `mask` weights positions, alpha the terms of a mixture: what has weight 0 has no
part in the sum or in any gradient, whatever it holds, NaN included. Arithmetic is
float32 even for bfloat16 logits.

A logit may be -inf: a class that cannot occur. It adds 0 where both sides have it.
If only the distribution averaged over (p in KL(p || q)) has mass there, the divergence
is inf, as it should be. A position whose logits are all -inf is no distribution: mask
it.
"""

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions

SumAndCount = positions.SumAndCount
mean = positions.mean


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
  _check_pair(student_logits, teacher_logits, temperature, mask)
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
  _check_pair(student_logits, teacher_logits, temperature, mask)
  loss = _divergence(student_logits, teacher_logits, temperature, mask)
  return positions.total(loss, mask)


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
  if _is_known(alpha) and not 0 <= alpha <= 1:
    raise ValueError(f'alpha={alpha}; a weight in [0, 1] is expected.')
  _check_pair(student_logits, teacher_logits, temperature, mask)
  _check_labels(student_logits, labels, mask, label_smoothing)

  def soft(student_logits, teacher_logits):
    return _divergence(teacher_logits, student_logits, temperature, mask)

  def hard(student_logits):
    return _hard(student_logits, labels, mask, label_smoothing)

  loss = positions.term(alpha, soft, student_logits, teacher_logits)
  loss += positions.term(1 - alpha, hard, student_logits)
  return positions.total(loss, mask)


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


def _divergence(p_logits, q_logits, temperature, mask):
  """T^2 KL(p || q) of each position; entries with p = 0 add 0."""

  def log_softmax(logits):
    x = positions.prepared(logits, mask)
    # The largest becomes 0 first: dividing by a small T could overflow.
    x = x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    return jax.nn.log_softmax(x / temperature)

  log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
  p = jnp.exp(log_p)
  # Both logarithms are replaced where p is 0: 0 * (-inf - -inf) is NaN, and so is
  # its gradient.
  log_ratio = jnp.where(p > 0, log_p, 0.0) - jnp.where(p > 0, log_q, 0.0)
  return temperature**2 * jnp.sum(p * log_ratio, axis=-1)


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


def _check_pair(student_logits, teacher_logits, temperature, mask):
  positions.check_pair(student_logits, teacher_logits, mask)
  if _is_known(temperature) and not temperature > 0:
    raise ValueError(f'temperature={temperature}; T > 0 is expected.')


def _check_labels(logits, labels, mask, label_smoothing):
  positions.check_mask(logits, mask)
  if _is_known(label_smoothing) and not 0 <= label_smoothing < 1:
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


def _is_known(x) -> bool:
  """Whether the value can be checked now: it is not traced."""
  return not isinstance(x, jax.core.Tracer)
