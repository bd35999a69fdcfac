"""Where a network looks: attention transfer.

    F(A) = sum over channels of |A|^p           Q = vec(F(A)) / |vec(F(A))|_2
    L    = |Q_student - Q_teacher|_2            for each example

Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1612.03928, eq. 2. Numbers of channels
may differ. So may the sides of maps: the larger ones are pooled, as in the authors' code.
"""

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.features import examples
from jaxopt_compress.distillation.features import hints
from jaxopt_compress.distillation.features import pooling


def attention_transfer(
  student: jax.Array,
  teacher: jax.Array,
  *,
  power: float = 2.0,
  squared: bool = False,
  mask: jax.Array | None = None,
) -> positions.SumAndCount:
  """|Q_student - Q_teacher| for each example.

  Args:
    student, teacher: [batch, ..., channels], such as [batch, h, w, channels] or
      [batch, time, channels]. Sides of images may differ.
    power: p of the sum over channels.
    squared: the mean over places of (Q_student - Q_teacher)^2 instead, as in the
      authors' code. The norm has a derivative of size one however small it is.
    mask: weights of examples [batch]; or of places, of which those of weight 0 are left
      out of the maps: an example then counts once if it has a place that counts.

  Returns:
    (sum, count) over examples.

  Raises:
    ValueError: other examples, or places that cannot be brought together.

  >>> x = jnp.array([[[1.], [0.]], [[2.], [2.]]])  # [batch, places, channels]
  >>> y = jnp.array([[[0., 1.], [0., 0.]], [[0., 0.], [3., 0.]]])
  >>> [round(float(a), 4) for a in attention_transfer(x, y)]
  [0.7654, 2.0]
  """
  if student.ndim != teacher.ndim or len(student) != len(teacher):
    raise ValueError(
      f'The student has values of shape {student.shape}, the teacher {teacher.shape};'
      ' [batch, places..., channels] of the same examples, with as many axes of places,'
      ' is expected.'
    )
  sides = tuple(map(min, student.shape[1:-1], teacher.shape[1:-1]))
  maps, weights = [], None
  for x in (student, teacher):
    at = hints.mask_of(x, mask)
    x = jnp.abs(positions.prepared(x, at))
    # A power below one has no derivative at 0, where it is not looked at.
    seen = x != 0
    x = jnp.where(seen, jnp.where(seen, x, 1.0) ** power, 0.0).sum(
      -1, keepdims=True
    )
    maps.append(hints.unit(pooling.pooled(x, sides).reshape(len(x), -1)))
    if at is not None:
      weights = at.reshape(len(x), -1)
  difference = jnp.square(maps[0] - maps[1])
  if squared:
    loss = jnp.mean(difference, -1)
  else:
    loss = examples.root(jnp.sum(difference, -1))
  if mask is not None:
    weights = mask if mask.ndim == 1 else weights.astype(bool).any(-1)
  return positions.total(loss, weights)
