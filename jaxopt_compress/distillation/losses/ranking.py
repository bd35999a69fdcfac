"""The teacher's k first choices, in its order.

    i before j: two of the k that the teacher tells apart, p_i > p_j > 0

    hinge_ranking      mean over i before j of  max(0, margin - (q_i - q_j))
    logistic_ranking   mean over i before j of  log(1 + exp(s_j - s_i))
    list_mle           -log P(the student draws the k in order, without putting back)
                       = sum_{r < k} (log sum_{not drawn before r} exp s - s_(r))

s are the student's logits, q = softmax(s) and p = softmax(teacher). None asks for the
teacher's probabilities themselves: they go well with a loss that does, see
`weighted`.
"""

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import softened

SumAndCount = positions.SumAndCount


def hinge_ranking(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  k: int,
  margin: float | jax.Array | None = None,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """Probabilities in the teacher's order, a margin apart.

  As DistillKit's loss of this name, which pools the pairs of all positions where this
  takes the mean of each position's: the same where all have as many.

  Args:
    student_logits, teacher_logits: [..., classes].
    k: how many of the teacher's first choices, 2 <= k <= classes.
    margin: what q_i - q_j has to reach; None: p_i - p_j, so that the teacher itself
      has loss 0.
    mask: [...], weights of positions, bool or number; None: all count.

  Returns:
    (sum, count), float32 scalars. A position without two classes to tell apart adds
    0 to the sum.

  Raises:
    ValueError: shapes differ, or k does not fit.

  >>> s, t = jnp.zeros((1, 3)), jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
  >>> round(float(hinge_ranking(s, t, k=2)[0]), 4)
  0.5
  """
  t, chosen = _first_choices(student_logits, teacher_logits, k, mask, least=2)
  p, q = (
    jnp.take_along_axis(
      jnp.exp(softened.log_softmax(x, mask=mask)), chosen, axis=-1
    )
    for x in (teacher_logits, student_logits)
  )
  wanted = _differences(p) if margin is None else margin
  return _of_pairs(jax.nn.relu(wanted - _differences(q)), t, mask)


def logistic_ranking(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  k: int,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """Logits in the teacher's order: the cross entropy of each pair's comparison.

  Burges et al. 2005 (RankNet), https://doi.org/10.1145/1102351.1102363, eq. 3 with
  a certain target; as DistillKit's loss of this name, with the mean of each position's
  pairs. Arguments, result and errors as for `hinge_ranking`.

  >>> s, t = jnp.zeros((1, 3)), jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
  >>> round(float(logistic_ranking(s, t, k=3)[0]), 4)  # log 2
  0.6931
  """
  t, chosen = _first_choices(student_logits, teacher_logits, k, mask, least=2)
  s = positions.prepared(student_logits, mask)
  s = jnp.take_along_axis(s, chosen, axis=-1)
  return _of_pairs(jax.nn.softplus(-_differences(s)), t, mask)


def list_mle(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  k: int,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """-log of the chance that the student draws the teacher's first k in order.

  Xia et al. 2008 (ListMLE), https://doi.org/10.1145/1390156.1390306, cut after k
  draws as in Xia et al. 2009, https://papers.nips.cc/paper/3708, section 4. With
  k = 1 it is `hard`. All classes compete in each draw, so that it also says what
  should not be among the k. Arguments, result and errors as for `hinge_ranking`, with
  k from 1. Classes that the teacher gives no probability are not drawn.

  >>> s, t = jnp.zeros((1, 3)), jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
  >>> round(float(list_mle(s, t, k=2)[0]), 4)  # log 3 + log 2
  1.7918
  """
  t, chosen = _first_choices(student_logits, teacher_logits, k, mask, least=1)
  s = positions.prepared(student_logits, mask)
  rest = jnp.put_along_axis(s, chosen, -jnp.inf, axis=-1, inplace=False)
  rest = softened.log_sum(rest, rest != -jnp.inf)[..., None]
  s = jnp.take_along_axis(s, chosen, axis=-1)
  # Row r: what is left before draw r, those of the k from r on and the rest.
  left = jnp.concatenate([s, rest], axis=-1)[..., None, :]
  is_left = jnp.arange(k + 1)[None, :] >= jnp.arange(k)[:, None]
  is_left = jnp.broadcast_to(is_left, (*s.shape, k + 1))
  all_left = softened.log_sum(jnp.broadcast_to(left, is_left.shape), is_left)
  loss = _minus(all_left, s)
  loss = jnp.sum(jnp.where(t > -jnp.inf, loss, 0.0), axis=-1)
  return positions.total(_known(loss, t), mask)


def _first_choices(student_logits, teacher_logits, k, mask, least):
  """(teacher's logits [..., k] from the largest on, their classes [..., k])."""
  positions.check_pair(student_logits, teacher_logits, mask)
  classes = teacher_logits.shape[-1]
  if not isinstance(k, int) or not least <= k <= classes:
    raise ValueError(
      f'k={k!r}: an int from {least} to {classes}, the number of classes, is'
      " expected: how many of the teacher's first choices are ranked."
    )
  t, chosen = lax.top_k(positions.prepared(teacher_logits, mask), k)
  return lax.stop_gradient(t), chosen


def _minus(a, b):
  """a - b, 0 where they are equal: -inf - -inf is NaN, and so is its gradient."""
  same = a == b
  return jnp.where(same, 0.0, a) - jnp.where(same, 0.0, b)


def _differences(x):
  """[..., k] to [..., k, k]: entry (i, j) is x_i - x_j."""
  shape = (*x.shape, x.shape[-1])
  return _minus(
    jnp.broadcast_to(x[..., :, None], shape),
    jnp.broadcast_to(x[..., None, :], shape),
  )


def _of_pairs(loss, t, mask):
  """The mean over pairs that the teacher tells apart, of each position."""
  pairs = (t[..., :, None] > t[..., None, :]) & (t > -jnp.inf)[..., None, :]
  n = jnp.sum(pairs, axis=(-2, -1))
  loss = jnp.sum(jnp.where(pairs, loss, 0.0), axis=(-2, -1))
  return positions.total(_known(loss / jnp.maximum(n, 1), t), mask)


def _known(loss, t):
  # NaN is above and below nothing: such a teacher would seem to want nothing.
  return jnp.where(jnp.isnan(t).any(-1), jnp.nan, loss)
