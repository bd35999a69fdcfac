"""What stays takes over from what goes: least squares for the weights behind it.

    x W  ~  x_K V      V = W_K + (G_KK + damp I)^-1 G_KR W_R      G = X^T X

K is what a weight still reads of its inputs, R what it does not any more: of each
entry of R what the entries of K predict of it is kept. This is one step of the
optimal brain surgeon for all of R together: Hassibi and Stork 1992,
https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html,
eq. 5. Where a bias is added to the product, G is that of inputs around their mean, and
the bias takes the mean of what went:

    b' = b + m W - m_K V                                          m = E[x]
"""

from collections.abc import Mapping
import math
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from jaxopt_compress.analysis import added
from jaxopt_compress.analysis import observe
from jaxopt_compress.analysis import statistics
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.analysis import watch
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib

# How often damping is raised tenfold where the system cannot be solved.
_RAISES = 3


class Loss(NamedTuple):
  """What the products of a weight lose, relative to their size.

  Attributes:
    before: |x W - x_K W_K| / |x W|, root mean squares over what was observed.
    after: |x W - x_K V| / |x W|, the bias included.
    damp: what was needed to solve; of the mean square of an input.
  """

  before: float
  after: float
  damp: float


def compensate(
  plan: plan_lib.Plan,
  params: Any,
  stats: Mapping[str, watch.Observed | None],
  uses: dict | None = None,
  biases: Mapping[str, added.Bias] | None = None,
  *,
  damp: float = 0.01,
) -> tuple[Any, dict[str, Loss]]:
  """Changes the weights that read channels which go, so that what stays replaces them.

  Before the cut: the result has the size of `params`, for `jc.shrink(plan, ...)` or
  `plan.mask`.

      chosen = {path: jc.statistics.moments() for path in jc.pruning.readers(plan, uses)}
      _, stats = jc.observe(apply, chosen)(params, x)
      biases = jc.analysis.biases(apply)(params, x)
      params, losses = jc.pruning.compensate(plan, params, stats, uses, biases)

  Args:
    plan: which channels stay.
    params: as they were when `stats` were observed; plain arrays where they change.
    stats: {path: its `jc.statistics.moments()` or `jc.statistics.gram()`}, of all
      weights that lose inputs; None for one that is to stay as it is.
    uses: what `jc.uses(apply)(params, x)` returned, or None: `kernel` is [in, out].
    biases: what `jc.analysis.biases(apply)(params, x)` returned: these take up means, with
      `jc.statistics.moments()`.
    damp: added to the diagonal of G, of its mean. Raised tenfold, up to three times,
      where G is singular all the same.

  Returns:
    (tree, {path: `Loss`}).

  Raises:
    ValueError: a weight that loses inputs and has no statistics, no data or a
      compressed leaf; statistics that do not fit or are not finite; or no solution
      with a thousand times the damping.

  >>> import jax.numpy as jnp
  >>> import jaxopt_compress as jc
  >>> f = lambda p, x: (x @ p['a']) @ p['b']
  >>> p = {'a': jnp.array([[1., 2.]]), 'b': jnp.array([[3.], [4.]])}
  >>> x = jnp.ones((5, 1))  # channel 1 is twice channel 0
  >>> plan = jc.Plan(jc.structure(f)(p, x), {'a:-1': [0]})
  >>> _, stats = jc.observe(f, {'b': jc.statistics.gram()})(p, x)
  >>> new, losses = compensate(plan, p, stats, jc.uses(f)(p, x), damp=0.0)
  >>> float(f(p, x)[0, 0]), float(f(jc.shrink(plan, new), x)[0, 0])
  (11.0, 11.0)
  """
  leaves = dict(rules_lib.named_leaves(params))
  reading = readers(plan, uses)
  biases = {w: b for w, b in (biases or {}).items() if w in reading}
  _check(plan, reading, leaves, stats, biases)
  changes, losses = {}, {}
  for path, keep in reading.items():
    seen, bias = stats[path], biases.get(path)
    if seen is None:
      continue
    absorbs = bias is not None and isinstance(seen.state, statistics.Moments)
    w = np.asarray(leaves[path], np.float64)
    axes = _axes(path, w.shape, uses)
    try:
      change, shift, losses[path] = _solved(
        _as_matrices(w, axes), keep, seen, damp, absorbs
      )
    except ValueError as e:
      raise ValueError(f'{path}: {e}') from e
    changes[path] = _as_leaf(change, w.shape, axes)
    if absorbs:
      shift = bias.sign * shift.reshape(leaves[bias.path].shape)
      changes[bias.path] = changes.get(bias.path, 0) + shift

  def compensated(path, x):
    if path not in changes:
      return x
    new = (np.asarray(x, np.float64) + changes[path]).astype(x.dtype)
    return jax.device_put(new, getattr(x, 'sharding', None))

  return rules_lib.map_named(compensated, params), losses


def readers(
  plan: plan_lib.Plan, uses: dict | None = None
) -> dict[str, np.ndarray]:
  """The weights that read channels which a plan removes.

  Args:
    plan: which channels stay.
    uses: what `jc.uses(apply)(params, x)` returned, or None: `kernel` is [in, out].

  Returns:
    {path: bool [stacked..., contracted entries], True for those that stay}.
  """
  found = {}
  for path, shape in plan.structure.shapes.items():
    axes = _axes(path, shape, uses)
    if axes is not None:
      keep = _kept(path, plan.indices(path), shape, axes)
      if not keep.all():
        found[path] = keep
  return found


def _axes(path, shape, uses) -> uses_lib.Axes | None:
  """The axes of a weight that only products read, or None."""
  met = (uses or {}).get(path, ())
  # A table makes channels of indices: what it has no more, its readers replace.
  if any(use.primitive == 'gather' for use in met):
    return None
  try:
    return uses_lib.axes(path, jax.ShapeDtypeStruct(shape, np.float32), uses)
  except ValueError:  # in no product, or not known by its shape
    return None


def _kept(path, indices, shape, axes) -> np.ndarray:
  """Which contracted entries stay: [stacked..., contracted entries]."""
  ndim = len(shape)
  keep = np.ones([1] * ndim, bool)
  for i in (ndim + a for a in axes.contracted):
    keep = keep & plan_lib.kept(indices, i, shape)
  if any(keep.shape[a] > 1 for a in axes.free):
    raise ValueError(
      f'{path} reads other inputs for each of its outputs in this plan, and there is'
      ' one gram for all. Choose the same channels for all of them.'
    )
  whole = [1 if a in axes.free else shape[a] for a in range(-ndim, 0)]
  return _as_matrices(np.broadcast_to(keep, whole), axes)[..., 0]


def _as_matrices(w, axes) -> np.ndarray:
  """[stacked..., contracted entries, free entries]."""

  def sizes(axes):
    return [w.shape[a] for a in axes]

  # As `observe` has it: all that is contracted on one axis, in the order of the leaf.
  order = [w.ndim + a for a in (*axes.stacked, *axes.contracted, *axes.free)]
  inner = math.prod(sizes(axes.contracted)), math.prod(sizes(axes.free))
  return w.transpose(order).reshape(*sizes(axes.stacked), *inner)


def _as_leaf(matrices, shape, axes) -> np.ndarray:
  """The inverse of `_as_matrices`."""
  order = [
    len(shape) + a for a in (*axes.stacked, *axes.contracted, *axes.free)
  ]
  split = matrices.reshape([shape[i] for i in order])
  return split.transpose(np.argsort(order))


def _solved(
  w, keep, seen, damp, absorbs
) -> tuple[np.ndarray, np.ndarray, Loss]:
  """(changes of matrices, of means [stacked..., n], Loss) of one leaf."""
  sums, gram = _moments(seen)
  stack = w.shape[:-2]
  want = (*stack, w.shape[-2], w.shape[-2])
  if gram.shape != want:
    raise ValueError(
      f'its gram has shape {gram.shape}, and {want} is expected. Give its jc.statistics.moments()'
      ' or jc.statistics.gram(), of these parameters.'
    )
  if not np.isfinite(gram).all():
    raise ValueError('its gram is not finite. Look for NaN in what it meets.')
  count = np.broadcast_to(np.asarray(seen.count, np.float64), stack)
  change, shift = np.zeros_like(w), np.zeros((*stack, w.shape[-1]))
  totals, used = np.zeros(3), 0.0
  for i in np.ndindex(*stack):
    g = gram[i] / count[i]
    mean = sums[i] / count[i] if absorbs else np.zeros(len(g))
    around = g - np.outer(mean, mean)
    change[i], d = _least_squares(w[i], around, keep[i], damp)
    lost = np.where(keep[i][:, None], -change[i], w[i])
    shift[i] = mean @ lost
    gone = np.where(keep[i][:, None], 0, w[i])
    for j, (x, m) in enumerate(((gone, g), (lost, around), (w[i], g))):
      totals[j] += np.sum(x * (m @ x))
    used = max(used, d)
  before, after, size = np.sqrt(np.maximum(totals, 0))
  size = size or 1.0
  return change, shift, Loss(float(before / size), float(after / size), used)


def _moments(seen):
  state = seen.state
  both = isinstance(state, statistics.Moments)
  sums, gram = state if both else (None, state)
  return sums, np.asarray(gram, np.float64)


def _least_squares(w, g, keep, damp) -> tuple[np.ndarray, float]:
  """(change of w [k, n], zero where it goes; damping that was needed)."""
  change = np.zeros_like(w)
  # Of a layer that goes nothing stays that could take over.
  if keep.all() or not keep.any():
    return change, damp
  a, b = g[np.ix_(keep, keep)], g[np.ix_(keep, ~keep)] @ w[~keep]
  diagonal = np.diag(a)
  # An input that is always zero predicts nothing: any number will do.
  dead = np.where(diagonal > 0, 0.0, 1.0)
  for i in range(_RAISES + 1):
    more = damp * 10.0**i if damp else 1e-9 * 10.0**i * (i > 0)
    system = a + np.diag(dead + more * diagonal.mean())
    try:
      np.linalg.cholesky(system)
    except np.linalg.LinAlgError:
      continue
    change[keep] = np.linalg.solve(system, b)
    return change, more
  raise ValueError(
    f'its gram is singular, with damping up to {more:g} of its diagonal. Observe more'
    ' examples, or raise damp.'
  )


def _check(plan, reading, leaves, stats, biases):
  for path, shape in plan.structure.shapes.items():
    if path not in leaves or tuple(leaves[path].shape) != shape:
      has = f'of shape {leaves[path].shape}' if path in leaves else 'not there'
      raise ValueError(
        f'{path} is {has}, and the plan is for parameters in which it has shape'
        f' {shape}. Pass those that its structure was found for.'
      )
  missing = [path for path in reading if path not in stats]
  if missing:
    raise ValueError(
      f'{missing[:5]} lose inputs and have no statistics ({len(missing)} leaves).'
      ' Observe jc.statistics.moments() of all of jc.pruning.readers(plan, uses), or'
      ' give None for those that stay as they are.'
    )
  chosen = [path for path in reading if stats[path] is not None]
  for path in [*chosen, *(b.path for b in biases.values())]:
    if path not in leaves:
      raise ValueError(
        f'{path} is not in these parameters, which have {list(leaves)[:5]}.'
      )
    if array.is_compressed(leaves[path]):
      raise ValueError(
        f'{path} is {leaves[path].describe()}, and its numbers change: compensate'
        ' first, then compress; or pass jc.materialize(params).'
      )
  observe.check_seen({path: stats[path] for path in chosen})
