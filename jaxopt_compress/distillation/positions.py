"""Positions: the leading axes of logits [..., classes], and their weights.

A position is an example, or a token of one. Its weight in a mask is 0, 1 or any
other number; a position of weight 0 has no part in a sum or a derivative, and
neither has a term of weight 0 in a mixture.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

SumAndCount = tuple[jax.Array, jax.Array]


def prepared(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Logits as losses use them: at least float32, and 0 where the weight is 0.

  A `where` on the loss alone would let NaN into the derivative, as 0 * NaN.

  Args:
    logits: [..., classes].
    mask: [...], or None.
  """
  x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return x if mask is None else jnp.where(mask.astype(bool)[..., None], x, 0.0)


def total(loss: jax.Array, mask: jax.Array | None) -> SumAndCount:
  """(weighted sum of `loss`, sum of weights): scalars of its dtype.

  Args:
    loss: [...].
    mask: [...], weights; None: all 1.

  >>> [float(x) for x in total(jnp.array([1., jnp.nan]), jnp.array([2., 0.]))]
  [2.0, 2.0]
  """
  if mask is None:
    return jnp.sum(loss), jnp.asarray(loss.size, loss.dtype)
  # A weight is no parameter, and 0 times NaN is NaN: hence stop_gradient and where.
  weights = lax.stop_gradient(mask.astype(loss.dtype))
  kept = jnp.where(weights != 0, loss, 0.0)
  return jnp.sum(weights * kept), jnp.sum(weights)


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
  """total / count; 0, as is its derivative, where nothing counts.

  A batch of nothing but padding then changes nothing, where 0 / 0 would make every
  parameter NaN.

  >>> float(mean(*total(jnp.ones(2), jnp.zeros(2))))
  0.0
  """
  return total / jnp.where(count == 0, 1, count).astype(total.dtype)


def term(
  weight: float | jax.Array, f: Callable[..., jax.Array], *inputs: Any
) -> jax.Array | float:
  """`weight * f(*inputs)`, of which nothing is left where the weight is 0.

  As in `total`: neither the value nor a derivative with respect to the inputs is
  NaN where `f` is.

  Args:
    weight: scalar; may be traced.
    f: what is weighted, a function of arrays.
    *inputs: trees of what derivatives are taken of; `f` closes over no such thing.

  >>> half = lambda w: float(term(w, jnp.log, jnp.float32(-1.)))
  >>> half(0.), half(1.)
  (0.0, nan)
  """
  if isinstance(weight, (int, float)):
    return weight * f(*inputs) if weight else 0.0
  return weight * gated(weight, f, *inputs)


def gated(
  weight: float | jax.Array, f: Callable[..., Any], *inputs: Any
) -> Any:
  """`f(*inputs)`, to be multiplied by `weight`: see `term`.

  Where the weight is 0, the inputs get no derivative, and what is not finite is 0.

  >>> [float(gated(jnp.float32(w), jnp.log, jnp.float32(-1.))) for w in (0., 1.)]
  [0.0, nan]
  """
  if isinstance(weight, (int, float)) and weight:
    return f(*inputs)
  counts = jnp.asarray(weight != 0)
  # Twice: before `f`, whose derivative may be NaN and is stopped there, and behind.
  inputs = jax.tree.map(
    lambda x: jnp.where(counts, x, lax.stop_gradient(x)), inputs
  )
  # A finite value stays, so that the weight has its derivative at 0, too.
  return jax.tree.map(
    lambda x: jnp.where(counts | jnp.isfinite(x), x, 0), f(*inputs)
  )


def check_pair(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  mask: jax.Array | None,
) -> None:
  """Raises unless student and teacher have the same positions and classes."""
  if student_logits.shape != teacher_logits.shape:
    hint = 'Give both the same examples.'
    if student_logits.shape[-1:] != teacher_logits.shape[-1:]:
      hint = (
        'They have different classes (vocabularies), so entry i means something'
        ' else on each side. Cut both to the classes they share, or choose a teacher'
        " with the student's classes."
      )
    raise ValueError(
      f'Student logits have shape {student_logits.shape}, teacher logits'
      f' {teacher_logits.shape}. {hint}'
    )
  check_mask(student_logits, mask)


def check_mask(logits: jax.Array, mask: jax.Array | None) -> None:
  """Raises unless there are logits and the mask has a weight for each position."""
  if logits.ndim < 1 or not logits.size:
    raise ValueError(f'Logits have shape {logits.shape}; nothing to compare.')
  if mask is not None and mask.shape != logits.shape[:-1]:
    raise ValueError(
      f'The mask has shape {mask.shape}; {logits.shape[:-1]} is expected, a'
      f' weight for each position of logits {logits.shape}. Broadcast it.'
    )
  check_weights(mask)


def check_weights(mask: jax.Array | None) -> None:
  """Raises if a weight is negative, where weights are known: not traced."""
  if mask is None or isinstance(mask, jax.core.Tracer):
    return
  # Of an array that lies on other hosts, too, nothing is known here.
  if getattr(mask, 'is_fully_addressable', True):
    least = np.asarray(mask).min(initial=0)
    if least < 0:
      raise ValueError(
        f'The mask has a weight of {least}; 0 drops a position, and a number above'
        ' says how much it counts.'
      )
