"""Where soft targets come from.

A teacher's parameters are an *argument* of what it computes: closed over, they
would be constants of the compiled program, and copied into it.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.distillation import positions


def frozen(apply: Callable[..., Any], **mode: Any) -> Callable[..., Any]:
  """`apply` as a teacher: no gradient flows through it, and its mode is fixed.

  Args:
    apply: `(params, *args, **kwargs) -> outputs`, any trees; lifted, if parameters
      hold compressed leaves: `frozen(lift(apply))`.
    **mode: keywords that it is always called with, such as `train=False` for a model
      with dropout or batch statistics. They cannot be overridden.

  Returns:
    A function like `apply`, whose outputs have no gradient.

  >>> teacher = frozen(lambda w, x, train: w * x * (1 + train), train=False)
  >>> float(teacher(2., 3.)), float(jax.grad(teacher)(2., 3.))
  (6.0, 0.0)
  """

  def teacher(params, *args, **kwargs):
    clash = sorted(set(kwargs) & set(mode))
    if clash:
      raise ValueError(
        f'This teacher is frozen with {mode}; leave out {clash}.'
      )
    # On the parameters too: their derivatives would be traced, then thrown away.
    outputs = apply(lax.stop_gradient(params), *args, **kwargs, **mode)
    return lax.stop_gradient(outputs)

  return teacher


def ensemble(
  logits: Sequence[jax.Array],
  *,
  temperature: float | jax.Array = 1.0,
  weights: Sequence[float] | None = None,
) -> jax.Array:
  """Logits of the mean of the teachers' distributions at a temperature.

      softmax(result / T) = sum_i w_i softmax(logits_i / T)

  Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 1, name an arithmetic
  and a geometric mean; this is the arithmetic one.

  Args:
    logits: [..., classes] of each teacher.
    temperature: T > 0 of the loss that takes the result.
    weights: w_i > 0, of which only the ratios count; None: all the same.

  Returns:
    [..., classes], float32.

  >>> certain = jnp.array([100., 0.]), jnp.array([0., 100.])
  >>> jax.nn.softmax(ensemble(certain)).tolist()
  [0.5, 0.5]
  """
  shapes = {x.shape for x in logits}
  if len(shapes) != 1:
    raise ValueError(f'Teachers of an ensemble give one shape, not {shapes}.')
  weights = [1.0] * len(logits) if weights is None else weights
  if len(weights) != len(logits) or not all(w > 0 for w in weights):
    raise ValueError(
      f'weights={weights}; a positive number for each of {len(logits)} teachers is'
      ' expected.'
    )
  wide = jnp.stack([x.astype(jnp.float32) for x in logits])
  log_p = jax.nn.log_softmax(wide / temperature)
  # Classes that no teacher allows are -inf in all inputs, and so in the result.
  shares = jnp.asarray(weights, jnp.float32) / sum(weights)
  shares = shares.reshape((-1,) + (1,) * (log_p.ndim - 1))
  return temperature * jax.nn.logsumexp(log_p, axis=0, b=shares)


def moving_average(teacher: Any, student: Any, decay: float) -> Any:
  """decay * teacher + (1 - decay) * student: a teacher made of past students.

  Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780, eq. 1. Leaves that are
  not floating are the student's. Keep the teacher in float32: in bfloat16 a step with
  1 - decay < 1/256 is lost to rounding.

  Args:
    teacher, student: trees of one layout. Compressed leaves count for what they
      stand for, and the result has none.
    decay: in [0, 1]; may be traced.

  Returns:
    The next teacher, in the teacher's dtypes.

  >>> moving_average({'w': 1.}, {'w': 3.}, 0.75)['w'].tolist()
  1.5
  """

  if isinstance(decay, (int, float)) and not 0 <= decay <= 1:
    raise ValueError(
      f'decay={decay}: what is left of the teacher is between 0 (the student'
      ' alone) and 1 (the teacher alone).'
    )

  def average(t, s):
    t, s = jnp.asarray(t), jnp.asarray(s)
    if not jnp.issubdtype(t.dtype, jnp.floating):
      return s
    mean = positions.term(decay, _wide, t) + positions.term(1 - decay, _wide, s)
    return mean.astype(t.dtype)

  return jax.tree.map(
    average, array.materialize(teacher), array.materialize(student)
  )


def _wide(x):
  return x.astype(jnp.float32)
