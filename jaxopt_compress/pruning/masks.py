"""Which weights stay: boolean masks, True where a weight is kept.

    unstructured    the largest scores, wherever they are
    n_m             the n largest of each m along an axis
    neurons         whole slices along an axis

Masks have the full shape of the scores, one byte a weight, so that scan, vmap and
shardings slice them as they slice the weight. Equal scores: the lower index stays.
NaN scores rank last, and are an error outside of jit.

Each takes `ramp`, the part of the way to its final mask, in [0, 1], which may be
traced: what it counts (weights, groups, neurons) is counted exactly, and at ramp 1
there are as many zeros as without it.
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
    ramp: part of the zeros that are made, in [0, 1].

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

  At ramp r < 1, round(r * groups) of the groups are masked and the others dense:
  first those that lose the least, by the sum of the scores that go. So sparsity
  rises group by group, not in a jump, and a group is either dense or as it will be.

  Args:
    scores: floating array.
    n: kept of each group, 1 <= n < m.
    m: size of a group; it divides the axis.
    axis: along which groups run, counted from the end.
    ramp: part of the groups that are masked, in [0, 1].

  Returns:
    Boolean mask of the shape of `scores`.

  Raises:
    ValueError: n and m do not fit, or m does not divide the axis. There is no
      layout for a ragged group: the kernels that make use of N:M take whole ones.

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
  """Keeps all but the round(sparsity * neurons) neurons of the least mean score.

  A neuron is one index of `axis`, with all that the other axes hold.

  Args:
    scores: floating array, a score for each weight.
    sparsity: fraction of neurons that go, in [0, 1].
    axis: the axis of neurons, or axes, counted from the end: (-2, -1) of a kernel
      [in, heads, features] takes each feature of each head for a neuron.
    ramp: part of those that go, in [0, 1].

  Returns:
    Boolean mask of the shape of `scores`.

  >>> neurons(jnp.array([[9., 1., 2.], [0., 1., 2.]]), 1/3, -1).tolist()
  [[True, False, True], [True, False, True]]
  """
  _check_fraction(sparsity)
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
  lost = jnp.where(kept, 0.0, groups.astype(jnp.float32)).sum(-1)
  masked = select.portion(lost.size, ramp)
  dense = select.top_k_mask(lost, lost.size - masked)
  return _ungrouped(kept | dense[..., None], scores.shape, axis)


def _ranks(keys):
  """The place of each of the last axis, from 0, ties by index: [..., m]."""
  m = keys.shape[-1]
  index = np.arange(m)
  ranks = jnp.zeros(keys.shape, jnp.int32)
  for j in range(m):
    other = keys[..., j : j + 1]
    earlier = (index > j).reshape((1,) * (keys.ndim - 1) + (m,))
    ranks += (other > keys) | ((other == keys) & earlier)
  return ranks


def _grouped(x, m, axis):
  x = jnp.moveaxis(x, axis, -1)
  return x.reshape(*x.shape[:-1], x.shape[-1] // m, m)


def _ungrouped(x, shape, axis):
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
