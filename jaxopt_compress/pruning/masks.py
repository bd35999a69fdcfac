"""Which weights stay: boolean masks, True where a weight is kept.

    unstructured    the largest scores, wherever they are
    n_m             the n largest of each m along an axis
    neurons         whole slices along an axis

Masks have the full shape of the scores, one byte a weight, so that scan, vmap and
shardings slice them as they slice the weight. Equal scores: the lower index stays.
NaN scores rank last, and are an error outside of jit.

`ramp`, in [0, 1], is how far a mask is on the way to its final form; it may be
traced. Weights, groups or neurons are counted exactly at every ramp, and ramp 1 is
the final mask.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.pruning import select


def unstructured(
  scores: jax.Array, sparsity: float, *, ramp: float | jax.Array = 1.0
) -> jax.Array:
  """Keeps all but the round(sparsity * size) smallest scores.

  Args:
    scores: floating array.
    sparsity: fraction of zeros, in [0, 1].
    ramp: the fraction of the final zeros to make, in [0, 1].

  Returns:
    Boolean mask of the shape of `scores`.

  >>> unstructured(jnp.array([[4., 1.], [2., 3.]]), 0.5).tolist()
  [[True, False], [False, True]]
  """
  _check_fraction(sparsity)
  zeros = select.portion(select.portion(scores.size, sparsity), ramp)
  return select.top_k_mask(scores, scores.size - zeros)


def n_m(
  scores: jax.Array,
  n: int,
  m: int,
  axis: int,
  *,
  ramp: float | jax.Array = 1.0,
) -> jax.Array:
  """Keeps the `n` largest scores of each `m` consecutive ones along `axis`.

  2:4 is Mishra et al. 2021, https://arxiv.org/abs/2104.08378, section 2; there, as
  here, `axis` is the one that a product contracts, and n counts what is *kept*.

  At ramp r < 1, round(r * groups) of the groups are masked and the others dense.
  The groups whose pruned scores have the smallest sum come first. So sparsity rises
  group by group, not in one jump, and a group is either dense or final.

  Args:
    scores: floating array.
    n: how many are kept of each group, 1 <= n < m.
    m: size of a group; it divides the axis.
    axis: along which groups run, counted from the end.
    ramp: the fraction of the groups to mask, in [0, 1].

  Returns:
    Boolean mask of the shape of `scores`.

  Raises:
    ValueError: n and m do not fit, or m does not divide the axis. A ragged last
      group is refused because the kernels for N:M have no layout for one.

  >>> n_m(jnp.array([4., 1., 2., 3., 0., 0., 0., 9.]), 2, 4, -1).astype(int).tolist()
  [1, 0, 0, 1, 1, 0, 0, 1]
  """
  _check_n_m(scores.shape, n, m, axis)
  select.refuse_nan([scores])
  return _n_m(scores, n, m, axis, ramp)


def neurons(
  scores: jax.Array,
  sparsity: float,
  axis: int | Sequence[int],
  *,
  ramp: float | jax.Array = 1.0,
) -> jax.Array:
  """Keeps all but the round(sparsity * neurons) neurons with the lowest mean score.

  A neuron is one index of `axis`, with every weight at that index.

  Args:
    scores: floating array, a score for each weight.
    sparsity: fraction of neurons that go, in [0, 1].
    axis: the axis of neurons, or axes, counted from the end. With (-2, -1) of a
      kernel [in, heads, features], each feature of each head is a neuron.
    ramp: the fraction of those that go, in [0, 1].

  Returns:
    Boolean mask of the shape of `scores`.

  >>> neurons(jnp.array([[9., 1., 2.], [0., 1., 2.]]), 1/3, -1).tolist()
  [[True, False, True], [True, False, True]]
  """
  _check_fraction(sparsity)
  # One score and one choice for each neuron, repeated for all of its weights.
  means = neuron_scores(scores, axis)
  gone = select.portion(select.portion(means.size, sparsity), ramp)
  kept = select.top_k_mask(means, means.size - gone)
  return jnp.broadcast_to(kept, scores.shape)


def neuron_scores(scores: jax.Array, axis: int | Sequence[int]) -> jax.Array:
  """Mean score of each neuron, float32, with size 1 on the other axes."""
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  kept = {a % scores.ndim for a in axes}
  others = tuple(a for a in range(scores.ndim) if a not in kept)
  return jnp.mean(scores, axis=others, dtype=jnp.float32, keepdims=True)


@functools.partial(jax.jit, static_argnames=('n', 'm', 'axis'))
def _n_m(scores, n, m, axis, ramp):
  groups = _grouped(scores, m, axis)  # [..., groups, m]
  kept = _ranks(select.ordinal(groups)) < n
  # A group's loss decides when it is masked; the top k by loss stay dense.
  lost = jnp.where(kept, 0.0, groups.astype(jnp.float32)).sum(-1)
  masked = select.portion(lost.size, ramp)
  dense = select.top_k_mask(lost, lost.size - masked)
  return _ungrouped(kept | dense[..., None], scores.shape, axis)


def _ranks(keys):
  """Ranks within the last axis: 0 is the largest key, ties go by index."""
  # m is small (4, 8), so comparing all pairs is cheaper than sorting each group.
  m = keys.shape[-1]
  index = np.arange(m)
  ranks = jnp.zeros(keys.shape, jnp.int32)
  for j in range(m):
    other = keys[..., j : j + 1]
    earlier = (index > j).reshape((1,) * (keys.ndim - 1) + (m,))
    before = (other > keys) | ((other == keys) & earlier)
    ranks += before.astype(jnp.int32)
  return ranks


def _grouped(x, m, axis):
  """[..., axis, ...] -> [..., axis / m, m], the other axes in front in order."""
  # Only neighbours on the last axis can be split off by a reshape.
  x = jnp.moveaxis(x, axis, -1)
  return x.reshape(*x.shape[:-1], x.shape[-1] // m, m)


def _ungrouped(x, shape, axis):
  """The inverse of `_grouped`, for an array of this shape."""
  x = x.reshape(*x.shape[:-2], shape[axis])
  return jnp.moveaxis(x, -1, axis)


def _check_n_m(shape, n, m, axis):
  if not 1 <= n < m:
    raise ValueError(
      f'{n}:{m} keeps {n} of {m}; 1 <= n < m is expected, as in 2:4.'
    )
  if not -len(shape) <= axis < len(shape):
    raise ValueError(f'Axis {axis} of an array of shape {shape}.')
  if shape[axis] % m:
    divisors = [d for d in range(n + 1, shape[axis] + 1) if not shape[axis] % d]
    raise ValueError(
      f'{n}:{m} needs whole groups of {m}, but axis {axis} of shape {shape} has'
      f' {shape[axis]}. Leave this leaf as it is, or take m from {divisors}.'
    )


def _check_fraction(sparsity):
  if isinstance(sparsity, (int, float)) and not 0 <= sparsity <= 1:
    guess = f' Did you mean {sparsity / 100}?' if 1 < sparsity <= 100 else ''
    raise ValueError(
      f'Sparsity {sparsity}; a fraction of zeros, in [0, 1], is expected.{guess}'
    )
