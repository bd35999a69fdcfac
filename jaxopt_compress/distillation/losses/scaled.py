"""Logits on a scale of their own, for any loss: its inputs, not another loss.

kl(standardized(student), standardized(teacher), temperature=2.)
"""

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import softened


def centered(logits: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Logits minus their mean over classes, so that constants have no part.

  Args:
    logits: [..., classes]; -inf stays, and has no part in the mean.
    mask: [...], as the loss has it: what has weight 0 becomes 0, and gets no
      gradient, NaN included.

  Returns:
    [..., classes], at least float32.

  >>> centered(jnp.array([1., 3., -jnp.inf])).tolist()
  [-1.0, 1.0, -inf]
  """
  positions.check_mask(logits, mask)
  return _centered(logits, mask)[0]


def standardized(logits: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Logits with mean 0 and variance 1 over the classes of each position.

  A student is then asked for the teacher's order and shape, not for the size of its
  logits. Sun et al. 2024, https://arxiv.org/abs/2403.01427, section 4.1: their Z(x; T)
  is this over T, so give T (2 there) to the loss. The variance divides by the number
  of classes, as in the paper; the authors' code divides by one less. Equal logits
  become 0.

  Args:
    logits: [..., classes]; -inf stays, and has no part in mean and variance.
    mask: as for `centered`.

  Returns:
    [..., classes], at least float32.

  >>> standardized(jnp.array([1., 3., 1., 3.])).tolist()
  [-1.0, 1.0, -1.0, 1.0]
  """
  positions.check_mask(logits, mask)
  x, possible, n = _centered(logits, mask)
  x = jnp.where(possible, x, 0.0)
  variance = jnp.sum(jnp.square(x), axis=-1, keepdims=True) / n
  # A square root has no derivative at 0.
  equal = variance == 0
  x = x * lax.rsqrt(jnp.where(equal, 1.0, variance))
  return jnp.where(possible, x, -jnp.inf)


def _centered(logits, mask):
  """(centred logits, which are possible, how many are)."""
  x = positions.prepared(logits, mask)
  # The largest becomes 0 first, so that equal logits are exactly so.
  x = x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
  possible = softened.possible(x)
  n = jnp.sum(possible, axis=-1, keepdims=True).astype(x.dtype)
  mean = jnp.sum(jnp.where(possible, x, 0.0), axis=-1, keepdims=True) / n
  return jnp.where(possible, x - mean, -jnp.inf), possible, n
