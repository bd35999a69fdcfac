"""How much a weight matters: the higher its score, the longer it stays.

    magnitude        |x|
    soft threshold   max(0, |x| - k)
    first order      x g
    taylor           (x g)^2

Each is a function of arrays: a score for each weight, or, of the first two, their mean
over axes. The mean over a neuron's weights is the neuron's score.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def magnitude(
  x: jax.Array, axes: int | Sequence[int] | None = None
) -> jax.Array:
  """|x|, or its mean over `axes`.

  Han et al. 2015, https://arxiv.org/abs/1506.02626, section 3. Li et al. 2016,
  https://arxiv.org/abs/1608.08710, section 3.1, sum over a filter's weights; the
  mean ranks filters of one size alike.

  Args:
    x: floating array.
    axes: reduced, counted from the end; None: a score for each weight.

  Returns:
    |x| in the dtype of `x`; or its mean in float32, without `axes`.

  >>> magnitude(jnp.array([[1., -2.], [0., 4.]]), axes=-2).tolist()
  [0.5, 3.0]
  """
  return _mean(jnp.abs(x), axes)


def soft_threshold(
  x: jax.Array, k: float, axes: int | Sequence[int] | None = None
) -> jax.Array:
  """max(0, |x| - k), or its mean over `axes`: what stands out from the noise.

  A neuron with many small weights scores less than one with a few large weights of
  the same mean magnitude. Single weights above `k` are ordered by magnitude. Those
  at or below `k` all score 0; where those are ranked, `prune` does so by magnitude.
  The score is the magnitude that
  the shrinkage operator leaves of x: Donoho 1995, "De-noising by
  soft-thresholding".

  Args:
    x: floating array.
    k: in the units of `x`: a magnitude, not a fraction. For a quantile of a leaf,
      k = jnp.quantile(jnp.abs(x), q).
    axes: reduced, counted from the end; None: a score for each weight.

  Returns:
    Scores in the dtype of `x`; or their mean in float32, without `axes`.

  Raises:
    ValueError: k is negative.

  >>> soft_threshold(jnp.array([[1., -2.], [0., 4.]]), 1., axes=-2).tolist()
  [0.0, 2.0]
  """
  if isinstance(k, (int, float)) and not k >= 0:
    raise ValueError(f'k={k}; a magnitude, k >= 0, is expected.')
  x = jnp.asarray(x)
  above = jnp.abs(x) - jnp.asarray(k, x.dtype)
  return _mean(jnp.maximum(above, 0), axes)


def first_order(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """x g: by how much the loss falls, to first order, if a weight becomes zero.

  It has a sign: over a channel the loss falls by the sum, so what weights gain and
  lose may cancel. Molchanov et al. 2017, https://arxiv.org/abs/1611.06440, eq. 8,
  take the absolute value of that mean, which `importance` does.

  Args:
    x: floating array.
    gradient: of the loss by it, the same shape.

  >>> first_order(jnp.array([1., -2.]), jnp.array([3., 1.])).tolist()
  [3.0, -2.0]
  """
  return x * gradient


def taylor(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """(x g)^2: the square of the change of the loss if a weight becomes zero.

  Molchanov et al. 2019, https://arxiv.org/abs/1906.10771, eq. 8. With the mean of
  squared gradients in place of the square of one, it is the diagonal of the Fisher
  information: `taylor(x, jnp.sqrt(mean_of_squares))`, LeCun et al. 1989 (OBD), eq. 5
  up to a factor.

  Args:
    x: floating array.
    gradient: of the loss by it, the same shape.

  >>> taylor(jnp.array([1., -2.]), jnp.array([3., 1.])).tolist()
  [9.0, 4.0]
  """
  return jnp.square(x * gradient)


def _mean(scores, axes):
  if axes is None:
    return scores
  return jnp.mean(scores, axis=axes, dtype=jnp.float32)
