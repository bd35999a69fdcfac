"""How much a weight matters: the higher its score, the longer it stays.

    magnitude        |x|
    soft threshold   max(0, |x| - k)
    first order      x g
    taylor           (x g)^2
    fisher           x^2 mean(g^2)
    movement         -x g, added up over steps
    wanda            |x| norm(what x meets)
    random           a number for each weight

Each is a function of arrays: a score for each weight, or, of the first two, their mean
over axes. The mean over a neuron's weights is the neuron's score. What a score takes
beside weights it says by the names of its parameters.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxopt_compress.pruning import select


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
  x: jax.Array,
  k: float = 0.0,
  axes: int | Sequence[int] | None = None,
  *,
  quantile: float | None = None,
) -> jax.Array:
  """max(0, |x| - k), or its mean over `axes`: what stands out from the noise.

  Soft thresholding, also called a Huber-type importance: a neuron with many small
  weights scores less than one with a few large weights of the same mean magnitude.
  Single weights above `k` are ordered by magnitude. Those at or below `k` all score 0;
  where those are ranked, `prune` does so by magnitude. The score is the magnitude that
  the shrinkage operator leaves of x: Donoho 1995, "De-noising by soft-thresholding".

  Args:
    x: floating array.
    k: in the units of `x`: a magnitude, not a fraction.
    axes: reduced, counted from the end; None: a score for each weight.
    quantile: of |x|, in [0, 1]: k is the magnitude below which that fraction of the
      weights lies, found without sorting. So k follows the scale of each array.

  Returns:
    Scores in the dtype of `x`; or their mean in float32, without `axes`.

  Raises:
    ValueError: k is negative, both k and a quantile are given, or that is no
      fraction.

  >>> soft_threshold(jnp.array([[1., -2.], [0., 4.]]), 1., axes=-2).tolist()
  [0.0, 2.0]
  >>> soft_threshold(jnp.array([1., -2., 3., 4.]), quantile=0.5).tolist()
  [0.0, 0.0, 1.0, 2.0]
  """
  if isinstance(k, (int, float)) and not k >= 0:
    raise ValueError(f'k={k}; a magnitude, k >= 0, is expected.')
  size = jnp.abs(jnp.asarray(x))
  if quantile is not None:
    if isinstance(k, (int, float)) and k:
      raise ValueError(
        f'k={k} and quantile={quantile}: one of them says what is noise.'
      )
    k = _quantile(size, quantile)
  return _mean(jnp.maximum(size - jnp.asarray(k, size.dtype), 0), axes)


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

  Molchanov et al. 2019, https://arxiv.org/abs/1906.10771, eq. 8. Of one weight it
  ranks as |x g| does.

  Args:
    x: floating array.
    gradient: of the loss by it, the same shape.

  >>> taylor(jnp.array([1., -2.]), jnp.array([3., 1.])).tolist()
  [9.0, 4.0]
  """
  return jnp.square(x * gradient)


def fisher(x: jax.Array, gradient_squares: jax.Array) -> jax.Array:
  """x^2 F, F the diagonal of the Fisher information: the mean of g^2.

  By how much the loss rises if a weight becomes zero, to second order, where the
  gradient is zero: LeCun et al. 1989 (OBD), eq. 5, up to the factor 1/2; with the
  Fisher in place of the Hessian, Theis et al. 2018, https://arxiv.org/abs/1801.05787.

  Args:
    x: floating array.
    gradient_squares: mean over examples of the squared gradient by it, the same
      shape.

  >>> fisher(jnp.array([1., -2.]), jnp.array([9., 1.])).tolist()
  [9.0, 4.0]
  """
  return jnp.square(x) * gradient_squares


def movement(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """-x g: positive where a step of descent moves a weight away from zero.

  Sanh et al. 2020, https://arxiv.org/abs/2005.07683, eq. 4: the score is the sum over
  the steps of training. `Sparsity(score='movement', memory=1.0)` adds it up; with
  `memory` 0 a step is ranked by itself.

  Args:
    x: floating array.
    gradient: of the loss by it, the same shape.

  >>> movement(jnp.array([1., -2.]), jnp.array([3., 1.])).tolist()
  [-3.0, 2.0]
  """
  return -x * gradient


def wanda(x: jax.Array, input_squares: jax.Array) -> jax.Array:
  """|x| ||a||: a weight times the norm of the activations that it meets.

  Sun et al. 2023, https://arxiv.org/abs/2306.11695, eq. 1. Their comparison groups are
  the weights of one output, which is what a `Sparsity` with this score says if nothing
  else is said (`scope='row'`).

  Args:
    x: floating array.
    input_squares: sum over tokens of the squared activation that each weight meets,
      broadcastable to `x`. Of `jc.observe(apply, {path: jc.statistics.sum_squares()})`, `prune`
      makes it.

  >>> wanda(jnp.array([[1., -2.], [3., 4.]]), jnp.array([[9.], [1.]])).tolist()
  [[3.0, 6.0], [3.0, 4.0]]
  """
  return jnp.abs(x) * jnp.sqrt(input_squares)


# Which scores rank within each output, where a Sparsity does not say.
wanda.scope = 'row'


def random(x: jax.Array, key: jax.Array) -> jax.Array:
  """A number in [0, 1) for each weight, whatever it is: the baseline of all others.

  Args:
    x: floating array.
    key: a PRNG key, which `prune` makes of its own for each leaf. The same key gives
      the same numbers, so that masks of rising sparsity lie in each other.

  >>> random(jnp.ones(2), jax.random.key(0)).shape
  (2,)
  """
  return jax.random.uniform(key, x.shape, jnp.float32)


# Scores that lose nothing if they are computed in fewer bits than float32 has.
EXACT = (magnitude,)

# Scores of squares, which scale with what they take besides.
SQUARES = (taylor, fisher)


def _quantile(size, quantile):
  """The least magnitude that no more than that fraction of all is below or at."""
  if not 0 <= quantile <= 1:
    raise ValueError(
      f'quantile={quantile}; a fraction of the weights, in [0, 1], is expected.'
    )
  above = size.size - round(quantile * size.size)
  if above == size.size:
    return jnp.zeros((), size.dtype)
  # The largest that is not among those above.
  top = select.top_k_mask(size, above)
  return jnp.max(jnp.where(top, 0, size))


def _mean(scores, axes):
  if axes is None:
    return scores
  return jnp.mean(scores, axis=axes, dtype=jnp.float32)
