"""How much a weight matters: the higher its score, the longer it stays.

    magnitude        |x|
    soft threshold   max(0, |x| - k)

Each is a function of one array, per weight or averaged over axes: the mean over a
neuron's weights is the neuron's score.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def magnitude(
  x: jax.Array, axes: int | Sequence[int] | None = None
) -> jax.Array:
  """|x|, or its mean over `axes`.

  Han et al. 2015, https://arxiv.org/abs/1506.02626, section 3; the mean over a
  filter's weights is that of Li et al. 2016, https://arxiv.org/abs/1608.08710,
  section 3.1, over their number.

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
  """max(0, |x| - k), or its mean over `axes`: what sticks out of the noise.

  A neuron of many small weights scores less than one with a few large ones of the
  same mean magnitude. Per weight the order is that of magnitude above `k`, and all
  at or below it score 0 and are told apart by index alone: keep `k` under the
  threshold that the wanted sparsity implies. max(0, |x| - k) is the size of what
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


def _mean(scores, axes):
  if axes is None:
    return scores
  return jnp.mean(scores, axis=axes, dtype=jnp.float32)
