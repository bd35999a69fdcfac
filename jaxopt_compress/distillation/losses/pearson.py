"""1 - Pearson's correlation: what two arrays differ in, up to scale and offset."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def distance(
  a: jax.Array,
  b: jax.Array,
  weights: jax.Array,
  *,
  axis: int,
  total: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """1 - r of `a` and `b` along an axis, in [0, 2].

      r = sum_i w_i a'_i b'_i / sqrt(sum_i w_i a'_i^2  sum_i w_i b'_i^2),
      a' = a - sum_i w_i a_i / sum_i w_i

  There is no r where one of them is constant. The distance is then 1, and 0 where
  both are: then they do not differ. Its gradient is 0 there.

  Args:
    a, b: of one shape, finite.
    weights: of a shape that broadcasts to it, with as many axes.
    axis: what is summed over.
    total: maps a sum to that over all devices, such as a `psum`.

  Returns:
    The shape of `a` without `axis`.

  >>> a, w = jnp.array([1., 2., 3.]), jnp.ones(3)
  >>> distance(a, a[::-1], w, axis=-1).tolist()
  2.0
  """

  def add(x):
    here = jnp.sum(weights * x, axis, keepdims=True)
    return here if total is None else total(here)

  n = add(jnp.ones_like(a))
  n = jnp.where(n == 0, 1.0, n)
  a_centred, b_centred = a - add(a) / n, b - add(b) / n
  a_square, b_square = add(jnp.square(a_centred)), add(jnp.square(b_centred))
  # A mean is rounded: of equal numbers, too, a little is left.
  rounding = (4 * jnp.finfo(a.dtype).eps) ** 2
  # Asked this way round, as NaN is not constant: it has to show.
  a_varies = ~(a_square <= rounding * add(jnp.square(a)))
  b_varies = ~(b_square <= rounding * add(jnp.square(b)))
  # A square root has no derivative at 0, hence `where` before and behind it.
  both = a_varies & b_varies
  a_square, b_square = (jnp.where(both, x, 1.0) for x in (a_square, b_square))
  r = add(a_centred * b_centred) * jax.lax.rsqrt(a_square)
  r = r * jax.lax.rsqrt(b_square)
  loss = jnp.where(both, 1 - r, (a_varies | b_varies).astype(r.dtype))
  return jnp.squeeze(loss, axis)
