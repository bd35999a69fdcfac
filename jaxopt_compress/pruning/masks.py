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

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.pruning import counts
from jaxopt_compress.pruning import select
from jaxopt_compress.pruning import units


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
  return cut(units.Units(scores, jnp.asarray), sparsity, ramp=ramp)


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
  select.refuse_nan([scores])
  axes = uses_lib.Axes((axis,), (), ())
  return cut(units.n_m(scores, axes, n=n, m=m), 1.0, ramp=ramp)


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
  chosen = (axis,) if isinstance(axis, int) else tuple(axis)
  chosen = {a - scores.ndim if a >= 0 else a for a in chosen}
  others = set(range(-scores.ndim, 0)) - chosen
  axes = uses_lib.Axes(tuple(others), (), tuple(chosen))
  return cut(units.neurons(scores, axes), sparsity, ramp=ramp)


def cut(
  whole: units.Units, sparsity: float, *, ramp: float | jax.Array = 1.0
) -> jax.Array:
  """Keeps all but the round(sparsity * units) units with the lowest scores.

  Args:
    whole: the units of a leaf, of any granularity of `units`.
    sparsity: fraction of units that go, in [0, 1].
    ramp: the fraction of those that go, in [0, 1].

  Returns:
    Boolean mask of the shape of the leaf.

  >>> axes = uses_lib.Axes((-2,), (), (-1,))
  >>> tiles = units.block(jnp.array([[1., 2., 3., 4.]]), axes, block=(1, 2))
  >>> cut(tiles, 0.5).tolist()
  [[False, False, True, True]]
  """
  n = whole.scores.size
  gone = counts.ramped(n, sparsity, ramp)
  return whole.expand(select.top_k_mask(whole.scores, n - gone))


def _check_fraction(sparsity):
  if isinstance(sparsity, (int, float)) and not 0 <= sparsity <= 1:
    guess = f' Did you mean {sparsity / 100}?' if 1 < sparsity <= 100 else ''
    raise ValueError(
      f'Sparsity {sparsity}; a fraction of zeros, in [0, 1], is expected.{guess}'
    )
