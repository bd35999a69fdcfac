"""Logits as distributions at a temperature: what the losses on them share."""

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions


def log_softmax(
  logits: jax.Array,
  temperature: float | jax.Array = 1.0,
  mask: jax.Array | None = None,
) -> jax.Array:
  """log softmax(logits / T), at least float32; of zeros where the weight is 0.

  Args:
    logits: [..., classes].
    temperature: T > 0.
    mask: [...], weights of positions, or None.
  """
  x = positions.prepared(logits, mask)
  # The largest becomes 0 first: dividing by a small T could overflow.
  x = x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
  return jax.nn.log_softmax(x / temperature)


def tempered(loss: jax.Array, temperature: float | jax.Array) -> jax.Array:
  """T^2 times a loss. In float16, which ends at 65504, the square of 256 is inf."""
  return jnp.asarray(temperature, loss.dtype) ** 2 * loss


def relative_entropy(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """KL(p || q) over the last axis, 0 if p is 0 everywhere.

      sum_i p_i r_i = sum_i p_i (r_i + exp(-r_i) - 1)       r = log p - log q

  as both sum to 1. No term of the second is negative, so they do not cancel where p
  and q are close, as at a high temperature. Entries with p = 0 add q.

  Args:
    log_p, log_q: [..., classes], of distributions.

  Returns:
    [...]

  >>> half = jnp.log(jnp.array([0.5, 0.5]))
  >>> round(float(relative_entropy(jnp.array([0., -jnp.inf]), half)), 4)
  0.6931
  """
  p = jnp.exp(log_p)
  # NaN has mass, so that it shows. What is smaller than numbers are has none.
  has_mass = ~(p < jnp.finfo(p.dtype).tiny)
  # Both logarithms are replaced where p is 0: 0 * (-inf - -inf) is NaN, and so is
  # its gradient.
  r = jnp.where(has_mass, log_p, 0.0) - jnp.where(has_mass, log_q, 0.0)
  # Without a p, as the others of a class that is certain, there is no divergence.
  some = jnp.any(has_mass, axis=-1, keepdims=True)
  q = jnp.where(some, jnp.exp(log_q), 0.0)
  terms = jnp.where(has_mass, p * (r + jnp.expm1(-r)), q)
  return jnp.sum(terms, axis=-1)


def possible(logits: jax.Array) -> jax.Array:
  """Which classes can occur: not those of -inf, or of nearly the least number.

  Some programs write the latter, whose square is inf, for the former. NaN is neither.

  >>> possible(jnp.array([0., -jnp.inf, -3.4e38, jnp.nan])).tolist()
  [True, False, False, True]
  """
  return ~(logits <= jnp.finfo(logits.dtype).min / 2)


def log_mixture(
  log_p: jax.Array, log_q: jax.Array, weight: float | jax.Array
) -> jax.Array:
  """log(w p + (1 - w) q) of each entry, from logarithms; exact at both ends.

  Args:
    log_p, log_q: [..., classes], may be -inf.
    weight: w in [0, 1] of p; may be traced.

  >>> p, q = jnp.log(jnp.array([1., 0.])), jnp.log(jnp.array([0.5, 0.5]))
  >>> jnp.exp(log_mixture(p, q, 0.5)).tolist()
  [0.75, 0.25]
  """
  a, b = log_p + jnp.log(weight), log_q + jnp.log1p(-weight)
  # What is impossible on both sides has no largest term to take out, and no
  # derivative: -inf - -inf is NaN.
  possible = (a != -jnp.inf) | (b != -jnp.inf)
  a, b = (jnp.where(possible, x, 0.0) for x in (a, b))
  top = lax.stop_gradient(jnp.maximum(a, b))
  log_sum = top + jnp.log(jnp.exp(a - top) + jnp.exp(b - top))
  return jnp.where(possible, log_sum, -jnp.inf)


def log_sum(x: jax.Array, where: jax.Array) -> jax.Array:
  """log sum exp over the last axis of what `where` chooses; -inf of nothing.

  Unlike `jax.nn.logsumexp`, it has a gradient of 0 where that is -inf.

  >>> log_sum(jnp.zeros((2, 4)), jnp.array([[True], [False]])).tolist()
  [1.386294..., -inf]
  """
  where &= x != -jnp.inf
  some = jnp.any(where, axis=-1, keepdims=True)
  y = jax.nn.logsumexp(jnp.where(where, x, 0.0), axis=-1, where=where | ~some)
  return jnp.where(some[..., 0], y, -jnp.inf)


def check_pair(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  temperature: float | jax.Array,
  mask: jax.Array | None,
) -> None:
  """Raises unless the two are of one shape, and the temperature is positive."""
  positions.check_pair(student_logits, teacher_logits, mask)
  if is_known(temperature) and not temperature > 0:
    raise ValueError(f'temperature={temperature}; T > 0 is expected.')


def check_weight(name: str, weight: float | jax.Array) -> None:
  """Raises unless a weight that is known is in [0, 1]."""
  if is_known(weight) and not 0 <= weight <= 1:
    raise ValueError(f'{name}={weight}; a weight in [0, 1] is expected.')


def is_known(x: float | jax.Array) -> bool:
  """Whether the value can be checked now: it is not traced."""
  return not isinstance(x, jax.core.Tracer)
