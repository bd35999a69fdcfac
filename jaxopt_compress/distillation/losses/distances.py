"""How far the student's logits are from the teacher's, as points.

    mse      mean_i (student_i - teacher_i)^2
    cosine   1 - cos(student - its mean, teacher - its mean)

A constant added to all logits of a position changes no distribution, and no
`cosine`. It changes `mse`, which has the student copy it;
`mse(centered(s), centered(t))` does not.
"""

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import pearson
from jaxopt_compress.distillation.losses import softened

SumAndCount = positions.SumAndCount


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


def cosine(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  mask: jax.Array | None = None,
) -> SumAndCount:
  """1 - the cosine between the logits, each centred over the classes.

  It asks for the teacher's logits up to their size and a constant, as Pearson's
  correlation does. Logits that are all the same have no direction: the loss is 0
  where both are, 1 where one is. Classes that are -inf on both sides are left out;
  where only one side has -inf, the loss is inf. Arguments, result and errors as for
  `kl`.

  >>> s, t = jnp.array([[0., 1., 2.]]), jnp.array([[7., 9., 11.]])
  >>> abs(round(float(cosine(s, t)[0]), 4))
  0.0
  """
  positions.check_pair(student_logits, teacher_logits, mask)
  s, t = (
    positions.prepared(student_logits, mask),
    positions.prepared(teacher_logits, mask),
  )
  s_possible, t_possible = softened.possible(s), softened.possible(t)
  both = s_possible & t_possible
  # Taken out first, so that a large constant does not hide what varies.
  s, t = (
    jnp.where(both, x - lax.stop_gradient(jnp.max(x, -1, keepdims=True)), 0.0)
    for x in (s, t)
  )
  loss = pearson.distance(s, t, both.astype(s.dtype), axis=-1)
  unlike = jnp.any(s_possible != t_possible, axis=-1)
  return positions.total(jnp.where(unlike, jnp.inf, loss), mask)
