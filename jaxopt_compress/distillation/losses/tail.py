"""A teacher of which k log-probabilities and the mass of the others are kept.

    ids, log_probs   the k likeliest classes and their log p
    log_tail         log of the mass of all other classes, the tail
    p_b, q_b         k + 1 numbers that add up to 1: those of the k classes, and the tail's

    topk_kl          KL(p_b || q_b)
    topk_reverse_kl  KL(q_b || p_b)
    topk_jsd         the generalised Jensen-Shannon divergence of p_b and q_b

Of sums, KL(p_b || q_b) <= KL(p || q): nothing is said of what lies inside the tail, but
its mass is right. Losses without the last number are blind to it. Renormalised over
the k classes, they are 0 for a student that has nearly all of its mass elsewhere; with
a tail of 0 they draw all of it to the k classes.

Log-probabilities of temperature 1 say nothing of the tail at another temperature, so
these losses have none. For temperature T keep `compress(teacher_logits / T, k)`, give
the losses `student_logits / T`, and the sum a factor T^2.
"""

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import divergences

SumAndCount = positions.SumAndCount


def compress(
  logits: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What is kept of a teacher's logits.

  Args:
    logits: [..., classes].
    k: how many classes, in [1, classes].

  Returns:
    ids: int32 [..., k], the likeliest first.
    log_probs: float32 [..., k].
    log_tail: float32 [...], -inf if no other class has mass.

  Raises:
    ValueError: k is not in [1, classes].

  >>> ids, _, log_tail = compress(jnp.log(jnp.array([0.2, 0.7, 0.1])), 1)
  >>> ids.tolist(), round(float(jnp.exp(log_tail)), 4)
  ([1], 0.3)
  """
  logits = jnp.asarray(logits)
  classes = logits.shape[-1] if logits.ndim else 0
  if not 1 <= k <= classes:
    raise ValueError(
      f'k={k} of the {classes} classes of logits {logits.shape};'
      f' a number in [1, {classes}] is expected.'
    )
  log_p = jax.nn.log_softmax(positions.prepared(logits, None))
  log_probs, ids = lax.top_k(log_p, k)
  return ids, log_probs, _log_sum_exp(_without(log_p, ids))


def topk_kl(
  student_logits: jax.Array,
  ids: jax.Array,
  log_probs: jax.Array,
  log_tail: jax.Array,
  *,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """KL(teacher || student) over the k classes and the tail.

  Args:
    student_logits: [..., classes].
    ids, log_probs, log_tail: [..., k], [..., k] and [...], see `compress`. They are
      scaled to a sum of 1, from which rounding may have taken them. An entry with a
      log-probability of -inf is none, and its id may be any.
    mask: [...], weights of positions, bool or number; None: all count.

  Returns:
    (sum, count), float32 scalars. NaN where an id is not one of the classes.

  Raises:
    ValueError: shapes do not fit, or ids are not integers.

  >>> student = jnp.log(jnp.array([[0.2, 0.7, 0.1]]))
  >>> total, count = topk_kl(student, *compress(student, 1))
  >>> abs(round(float(total), 4)), float(count)
  (0.0, 1.0)
  """
  log_q, log_p = buckets(student_logits, ids, log_probs, log_tail, mask=mask)
  return divergences.kl(log_q, log_p, mask=mask)


def topk_reverse_kl(
  student_logits: jax.Array,
  ids: jax.Array,
  log_probs: jax.Array,
  log_tail: jax.Array,
  *,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """KL(student || teacher) over the k classes and the tail, as `topk_kl`."""
  log_q, log_p = buckets(student_logits, ids, log_probs, log_tail, mask=mask)
  return divergences.reverse_kl(log_q, log_p, mask=mask)


def topk_jsd(
  student_logits: jax.Array,
  ids: jax.Array,
  log_probs: jax.Array,
  log_tail: jax.Array,
  *,
  beta: float | jax.Array = 0.5,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """`jsd` over the k classes and the tail; `beta` as there, the rest as `topk_kl`."""
  log_q, log_p = buckets(student_logits, ids, log_probs, log_tail, mask=mask)
  return divergences.jsd(log_q, log_p, beta=beta, mask=mask)


def buckets(
  student_logits: jax.Array,
  ids: jax.Array,
  log_probs: jax.Array,
  log_tail: jax.Array,
  *,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Student and teacher over k + 1 classes: the k, and the tail as one.

  Both are logits that any loss takes, such as `total_variation(*buckets(...))`.
  Arguments and errors as for `topk_kl`.

  Returns:
    log q_b of the student and log p_b of the teacher, float32 [..., k + 1].
  """
  student_logits = jnp.asarray(student_logits)
  ids, log_probs, log_tail = map(jnp.asarray, (ids, log_probs, log_tail))
  _check(student_logits, ids, log_probs, log_tail, mask)
  log_p = jnp.concatenate([log_probs, log_tail[..., None]], -1)
  log_p = positions.prepared(log_p, mask)
  log_p = lax.stop_gradient(jax.nn.log_softmax(log_p))
  logits = positions.prepared(student_logits, mask)
  # What is no entry is moved out of bounds, where `_without` takes nothing away.
  given = log_p[..., :-1] > -jnp.inf
  ids = jnp.where(given, ids.astype(jnp.int32), logits.shape[-1])
  log_z = _log_sum_exp(logits)
  kept = jnp.take_along_axis(logits, jnp.where(given, ids, 0), axis=-1)
  kept = jnp.where(given, kept - log_z[..., None], -jnp.inf)
  # The sum of what is left, and not 1 - sum(kept): it is exact however small.
  tail = _log_sum_exp(_without(logits, ids)) - log_z
  log_q = jnp.concatenate([kept, tail[..., None]], -1)
  wrong = given & ((ids < 0) | (ids >= logits.shape[-1]))
  if mask is not None:
    wrong &= mask.astype(bool)[..., None]
  return jnp.where(wrong.any(-1, keepdims=True), jnp.nan, log_q), log_p


def _without(x: jax.Array, ids: jax.Array) -> jax.Array:
  """x [..., classes], -inf at the ids [..., k] that are in bounds."""
  rows = x.reshape(-1, x.shape[-1])
  at = jnp.arange(len(rows))[:, None], ids.reshape(len(rows), -1)
  return rows.at[at].set(-jnp.inf, mode='drop').reshape(x.shape)


def _log_sum_exp(x: jax.Array) -> jax.Array:
  """log sum exp over the last axis; -inf, with a derivative of 0, of nothing."""
  some = jnp.max(x, axis=-1) > -jnp.inf
  # NaN counts as something, so that it is seen.
  some |= jnp.isnan(x).any(-1)
  safe = jnp.where(some[..., None], x, 0.0)
  return jnp.where(some, jax.nn.logsumexp(safe, axis=-1), -jnp.inf)


def _check(student_logits, ids, log_probs, log_tail, mask):
  positions.check_mask(student_logits, mask)
  lead = student_logits.shape[:-1]
  k = ids.shape[-1:]
  if not (
    len(k) == 1
    and ids.shape == log_probs.shape == (*lead, *k)
    and log_tail.shape == lead
  ):
    raise ValueError(
      f'A teacher of ids {ids.shape}, log_probs {log_probs.shape} and log_tail'
      f' {log_tail.shape} does not fit student logits {student_logits.shape}:'
      f' {(*lead, "k")}, {(*lead, "k")} and {lead} are expected, as'
      ' losses.tail.compress gives them.'
    )
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise ValueError(f'ids are {ids.dtype}; class numbers are expected.')
