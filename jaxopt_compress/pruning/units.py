"""What stays or goes as one: the granularities that a `Sparsity` names.

    unstructured    single weights
    n_m             all but the n largest of m consecutive ones
    block           tiles of a matrix
    neurons         one index of an axis: output or input channels
    heads           several consecutive channels

Each is a function of the scores of the weights of one leaf. It gives a score for each
unit, and says which weights a choice of units keeps. Stacked axes stay as they are.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import choices
from jaxopt_compress.pruning import select

Axes = uses_lib.Axes


class Units(NamedTuple):
  """The units of a leaf.

  Attributes:
    scores: one for each unit, of the rank of the leaf.
    expand: kept units (bool, shaped as `scores`) -> kept weights, shaped as the
      leaf.
    share: which part of its weights a unit loses if it goes.
    turns: whether a leaf that is read backwards has the same units.
  """

  scores: jax.Array
  expand: Callable[[jax.Array], jax.Array]
  share: float = 1.0
  turns: bool = True


def unstructured(scores: jax.Array, axes: Axes) -> Units:
  """Each weight by itself.

  >>> unstructured(jnp.ones((2, 3)), Axes((-2,), (), (-1,))).scores.shape
  (2, 3)
  """
  del axes
  return Units(scores, _same)


def n_m(scores: jax.Array, axes: Axes, *, n: int, m: int) -> Units:
  """Groups of `m` consecutive weights, of which the `n` largest stay in any case.

  2:4 is Mishra et al. 2021, https://arxiv.org/abs/2104.08378, section 2. Groups run
  along the last contracted axis: `in` of a matrix [in, out] and of a convolution [h,
  w, in, out]. The score of a group is the sum of what it would lose, so the groups
  that lose least go first, and each is either dense or final.

  Args:
    scores: floating array, a score for each weight.
    axes: what its axes are.
    n: how many are kept of each group, 1 <= n < m.
    m: size of a group; it divides the axis.

  Raises:
    ValueError: n and m do not fit, or m does not divide the axis. A ragged last
      group is refused because the kernels for N:M have no layout for one.

  >>> units = n_m(jnp.array([[4.], [1.], [2.], [3.]]), Axes((-2,), (), (-1,)), n=2, m=4)
  >>> units.expand(jnp.zeros((1, 1), bool)).astype(int).ravel().tolist()
  [1, 0, 0, 1]
  """
  axis = max(axes.contracted) if axes.contracted else -1
  _check_n_m(scores.shape, n, m, axis)
  axis %= scores.ndim
  shape = list(scores.shape)
  shape[axis : axis + 1] = [shape[axis] // m, m]
  groups = scores.reshape(shape)
  kept = _ranks(select.ordinal(groups), axis + 1) < n
  # A group's loss decides when it is masked.
  lost = jnp.where(kept, 0.0, groups.astype(jnp.float32)).sum(axis + 1)

  def expand(dense):
    return (kept | jnp.expand_dims(dense, axis + 1)).reshape(scores.shape)

  return Units(lost, expand, share=1 - n / m)


def block(
  scores: jax.Array,
  axes: Axes,
  *,
  block: tuple[int, int],
  pool: str = 'mean',
) -> Units:
  """Tiles of `block` = (height, width) over a contracted and a free axis.

  Of several contracted or free axes the last are tiled. Tiles at the edges may be
  smaller, and are scored by the weights that they have. Gray et al. 2017, "GPU kernels
  for block-sparse weights".

  Args:
    scores: floating array, a score for each weight.
    axes: what its axes are.
    block: entries along the last contracted axis, and along the last free one.
    pool: how a tile is scored: 'mean' or 'max' of its weights.

  Raises:
    ValueError: there is no contracted or no free axis, or an empty tile.

  >>> x = jnp.array([[4., 1., 0.], [2., 1., 8.]])
  >>> block(x, Axes((-2,), (), (-1,)), block=(2, 2)).scores.tolist()
  [[2.0, 4.0]]
  """
  if not axes.contracted or not axes.free:
    raise ValueError(
      f'Shape {scores.shape} has no contracted and free axis, so it has no blocks.'
      ' Leave it as it is, or prune it unstructured.'
    )
  if len(block) != 2 or min(block) < 1:
    raise ValueError(
      f'block={block}; a height and a width of 1 at least are expected, such as'
      ' block=(4, 4).'
    )
  choices.one_of('pool', pool, ('mean', 'max'), '=')
  tiled = (max(axes.contracted), max(axes.free))
  return _boxes(scores, dict(zip(tiled, block, strict=True)), pool)


def neurons(scores: jax.Array, axes: Axes, *, axis: int | None = None) -> Units:
  """One index of an axis, with every weight at that index; scored by the mean.

  Args:
    scores: floating array, a score for each weight.
    axes: what its axes are.
    axis: counted from the end; None is all free ones: each feature of each head of a
      kernel [in, heads, features], each output channel of a convolution. Of a kernel
      [in, out], -2 is its input channels.

  Raises:
    ValueError: no axis is free, or `axis` is stacked or not there.

  >>> x = jnp.array([[9., 1., 2.], [0., 1., 2.]])
  >>> neurons(x, Axes((-2,), (), (-1,))).scores.tolist()
  [[4.5, 1.0, 2.0]]
  """
  if axis is None and not axes.free:
    raise ValueError(
      f'Shape {scores.shape} is contracted over all of its axes, so it has no'
      ' neurons. Leave it as it is, or prune it unstructured.'
    )
  chosen = axes.free if axis is None else (axis,)
  return _along(scores, axes, dict.fromkeys(chosen, 1))


def heads(
  scores: jax.Array,
  axes: Axes,
  *,
  axis: int | None = None,
  size: int | None = None,
) -> Units:
  """Heads of attention: one index of an axis of heads, or `size` of its channels.

  Voita et al. 2019, https://arxiv.org/abs/1905.09418, remove heads whole.

  Args:
    scores: floating array, a score for each weight.
    axes: what its axes are.
    axis: where the heads are, counted from the end. None: the last free axis if there
      is a `size`, else the first of two free axes, [in, heads, head_dim], or of two
      contracted ones, [heads, head_dim, out].
    size: how many consecutive channels are a head, of an axis heads * head_dim; None
      is one: the axis counts heads.

  Raises:
    ValueError: where the heads are is not clear, or size does not divide the axis.

  >>> x = jnp.array([[9., 1., 2., 3.]])
  >>> heads(x, Axes((-2,), (), (-1,)), size=2).scores.tolist()
  [[5.0, 2.5]]
  """
  if axis is None:
    pairs = [g for g in (axes.free, axes.contracted) if len(g) == 2]
    if size and axes.free:
      axis = max(axes.free)
    elif pairs:
      axis = min(pairs[0])
    else:
      raise ValueError(
        f'Where are the heads of shape {scores.shape}? Neither two free nor two'
        ' contracted axes. Say how many channels a head has, size=64, or where heads'
        ' are, axis=-2.'
      )
  if size and -scores.ndim <= axis < scores.ndim and scores.shape[axis] % size:
    raise ValueError(
      f'Heads of {size} channels do not divide axis {axis} of shape {scores.shape}.'
      ' Give head_dim as size.'
    )
  return _along(scores, axes, {axis: size or 1})


def _along(scores, axes, sizes) -> Units:
  """Runs of indices of some axes, with all the weights of the others."""
  ndim = scores.ndim
  for a in sizes:
    if not -ndim <= a < 0 or a in axes.stacked:
      raise ValueError(
        f'axis={a} of shape {scores.shape}: an axis of one layer, counted from the'
        f' end, is expected: one of {sorted(axes.contracted + axes.free)}.'
      )
  whole = {
    a: scores.shape[a] for a in axes.contracted + axes.free if a not in sizes
  }
  return _boxes(scores, whole | sizes, 'mean')


def _boxes(scores, sizes, pool) -> Units:
  """Units of `sizes` = {axis: consecutive indices}, and of one index elsewhere."""
  shape = scores.shape
  runs = {
    a: max(min(sizes.get(a - len(shape), 1), n), 1) for a, n in enumerate(shape)
  }
  pads = [(0, -n % runs[a]) for a, n in enumerate(shape)]
  x, real = jnp.pad(scores.astype(jnp.float32), pads), None
  ragged = any(pad for _, pad in pads)
  if ragged:
    real = np.pad(np.ones(shape, bool), pads)  # what is padded has no say
  split = [a for a, n in enumerate(x.shape) if 1 < runs[a] < n]
  whole = [a for a, n in enumerate(x.shape) if 1 < runs[a] == n]
  # One axis at a time, the last first, so that none is resharded on the way.
  inner = []
  for axis in reversed(split):
    both = (x.shape[axis] // runs[axis], runs[axis])
    x = x.reshape(*x.shape[:axis], *both, *x.shape[axis + 1 :])
    inner = [axis + 1, *(i + 1 for i in inner)]
    whole = [a + 1 if a > axis else a for a in whole]
  over = dict(axis=(*inner, *whole), keepdims=True)
  over['where'] = None if real is None else real.reshape(x.shape)
  if pool == 'max':
    pooled = jnp.max(x, initial=-jnp.inf, **over)
  else:
    pooled = jnp.mean(x, **over)
  tiles = x.shape

  def expand(kept):
    mask = jnp.broadcast_to(jnp.expand_dims(kept, inner), tiles)
    for axis in split:
      joined = mask.shape[axis] * mask.shape[axis + 1]
      mask = mask.reshape(*mask.shape[:axis], joined, *mask.shape[axis + 2 :])
    return mask[tuple(slice(n) for n in shape)] if ragged else mask

  return Units(jnp.squeeze(pooled, inner), expand, turns=not ragged)


def _same(kept):
  return kept


def _ranks(keys, axis):
  """Ranks along an axis: 0 is the largest key, ties go by index."""
  # m is small (4, 8), so comparing all pairs is cheaper than sorting each group.
  m = keys.shape[axis]
  index = np.arange(m).reshape(
    [m if a == axis else 1 for a in range(keys.ndim)]
  )
  ranks = jnp.zeros(keys.shape, jnp.int32)
  for j in range(m):
    other = jax.lax.slice_in_dim(keys, j, j + 1, axis=axis)
    before = (other > keys) | ((other == keys) & (index > j))
    ranks += before.astype(jnp.int32)
  return ranks


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
