"""A token from logits: at a temperature, from the likeliest ones."""

import jax
from jax import lax
import jax.numpy as jnp


def draw(
  key: jax.Array,
  logits: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  top_k: int | None = None,
  top_p: float | jax.Array | None = None,
) -> jax.Array:
  """A class of each position, drawn from softmax(logits / T) of the likeliest.

  Args:
    key: consumed.
    logits: [..., classes].
    temperature: T >= 0; 0, as a Python number, takes the likeliest.
    top_k: only the k likeliest; those as likely as the last of them, too.
    top_p: only the likeliest classes whose mass reaches p, after `top_k`: Holtzman et
      al. 2019, https://arxiv.org/abs/1904.09751, section 3.1. At least one.

  Returns:
    [...] int32; -1 where a logit is NaN.

  Raises:
    ValueError: a number that is out of range.

  >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
  >>> int(draw(jax.random.key(0), logits, temperature=0))
  0
  """
  _check(temperature, top_k, top_p)
  x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  if isinstance(temperature, (int, float)) and not temperature:
    return _known(jnp.argmax(x, axis=-1), x)
  # The largest becomes 0 first: dividing by a small T could overflow.
  x = (x - jnp.max(x, axis=-1, keepdims=True)) / temperature
  known = x
  if top_k is not None:
    least = lax.top_k(x, min(top_k, x.shape[-1]))[0][..., -1:]
    x = jnp.where(x >= least, x, -jnp.inf)
  if top_p is not None:
    x = jnp.where(x >= _least_of_mass(x, top_p), x, -jnp.inf)
  return _known(jax.random.categorical(key, x, axis=-1), known)


def _known(drawn, x):
  return jnp.where(jnp.isnan(x).any(-1), -1, drawn).astype(jnp.int32)


def _least_of_mass(x, p):
  """The smallest logit that is needed for a mass of p: [..., 1]."""
  ordered = jnp.sort(x, axis=-1, descending=True)
  mass = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
  # A class is needed if those before it do not reach p; the first always is.
  before = jnp.pad(mass[..., :-1], [(0, 0)] * (x.ndim - 1) + [(1, 0)])
  needed = (before < p).at[..., 0].set(True)
  return jnp.min(jnp.where(needed, ordered, jnp.inf), axis=-1, keepdims=True)


def _check(temperature, top_k, top_p):
  if not isinstance(temperature, jax.core.Tracer) and not temperature >= 0:
    raise ValueError(f'temperature={temperature}; T >= 0 is expected.')
  if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
    raise ValueError(f'top_k={top_k!r}; an int from 1 is expected.')
  if top_p is not None and not isinstance(top_p, jax.core.Tracer):
    if not 0 < top_p <= 1:
      raise ValueError(f'top_p={top_p}; a mass in (0, 1] is expected.')
