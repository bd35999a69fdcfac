"""Half-quadratic quantisation: zero points that a heavy-tailed error prefers.

    argmin over z of  phi(W - (Q(W / s + z) - z) s),   phi the l_p norm, p < 1

solved by alternating two closed forms, without data:

    E = shrink(W - W_hat),   shrink(x) = sign(x) max(|x| - |x|^(p-1) / beta, 0)
    z = mean over the block of  q - (W - E) / s,   beta <- 1.01 beta

Badri and Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models,
https://mobiusml.github.io/hqq_blog, eqs. 4 to 6.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.quantization import blocks as blocks_lib

_STEPS = 20
_P = 0.7
_BETA = 10.0
_GROWTH = 1.01


def zero_points(
  x: jax.Array,
  scale: jax.Array,
  zero: jax.Array,
  nearest: Callable[[jax.Array], jax.Array],
  blocks: blocks_lib.Blocks,
) -> jax.Array:
  """Improves zero points; a block keeps the best that it has seen.

  Args:
    x: [...] float32.
    scale: float32, one a block.
    zero: float32, where to start.
    nearest: x / s + z -> the nearest numbers of the format, float32.
    blocks: what shares a scale.

  Returns:
    float32 zero points, the shape of `zero`, not rounded.
  """

  def spread(p):
    return blocks_lib.expand(p, blocks, x.shape)

  s = spread(scale)
  scaled = x / s

  def error_of(zero):
    q = nearest(scaled + spread(zero))
    error = x - (q - spread(zero)) * s
    return q, error, blocks_lib.mean(jnp.abs(error) ** _P, blocks)

  def step(_, carry):
    zero, beta, best, least = carry
    q, error, norm = error_of(zero)
    best = jnp.where(norm < least, zero, best)
    least = jnp.minimum(norm, least)
    size = jnp.abs(error)
    # |x|^(p - 1) grows without bound at zero, where nothing is left to shrink.
    power = jnp.where(size > 0, jnp.maximum(size, 1e-8) ** (_P - 1), jnp.inf)
    kept = jnp.sign(error) * jnp.maximum(size - power / beta, 0)
    zero = blocks_lib.mean(q - (x - kept) / s, blocks)
    return zero, beta * _GROWTH, best, least

  start = (
    zero,
    jnp.float32(_BETA),
    zero,
    jnp.full_like(zero, jnp.inf),
  )
  zero, _, best, least = lax.fori_loop(0, _STEPS, step, start)
  return jnp.where(error_of(zero)[2] < least, zero, best)
