"""Cross-layer equalisation and folding of norms, without data.

    relu(x W1 + b) W2 = relu(x W1/s + b/s) (s W2),    s = sqrt(max |W1| / max |W2|)

for each channel: afterwards both weights use the same range there, and one scale
for a whole tensor wastes little. Nagel et al. 2019, Data-Free Quantization Through
Weight Equalization and Bias Correction, https://arxiv.org/abs/1906.04721,
section 4.1, eq. 11, on every freedom that `jc.analysis.rescalings` finds: dense layers and
convolutions through relu and pooling, values and outputs of attention, queries and
keys, gated units, layers of a scan, residual streams.
"""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxopt_compress.analysis import freedoms as freedoms_lib
from jaxopt_compress.calibration import known
from jaxopt_compress.calibration import trials
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib


@known.computed
def equalize(
  params: Any,
  freedoms: freedoms_lib.Rescalings,
  error: Callable[[Any], float] | None = None,
  *,
  sweeps: int = 20,
  tolerance: float = 1e-3,
) -> tuple[Any, dict[str, trials.Trial]]:
  """Gives the weights around each channel the same range there.

  The function stays what it is, up to rounding of floats. Fold norms before
  (`fold_norms`): a gain between two weights is a range that nobody sees.

  Args:
    params: the tree that `freedoms` was found for.
    freedoms: what `jc.analysis.rescalings(apply)(params, x)` returned.
    error: of a tree like `params` once it is compressed. Channels move where that
      is lower: `lambda p: error(jc.quantize(p, rules, uses))`, with
      `error = jc.calibration.output_error(apply, params, held_out)`. None, without data, to
      move all.
    sweeps: at most so many times over the network.
    tolerance: it ends when no logarithm of a factor moves by more.

  Returns:
    (tree, trials): the parameters; {weights around some channels: errors without
    and with their factors, and whether they were applied}, {} without `error`.

  Raises:
    ValueError: no weight shares a channel with another one, so that nothing can be
      done, or a weight is not finite, compressed, or traced.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.array([[8., 1.]]), 'b': jnp.array([[2.], [1.]])}
  >>> even, _ = equalize(p, freedoms_lib.rescalings(f)(p, jnp.ones((1, 1))))
  >>> even['a'].tolist(), even['b'].tolist()
  ([[4.0, 1.0]], [[4.0], [1.0]])
  """
  freedoms = freedoms.without_gains()
  leaves = _plain(params)
  weights = [
    _Weight(freedoms, taken, leaves[taken.path])
    for taken in freedoms.taken
    if taken.product and taken.terms
  ]
  groups = _groups(weights, freedoms.num)
  if not groups:
    raise ValueError(
      'No channel runs from one weight to another through operations that keep'
      ' a factor (relu, pooling, sums, averages of attention): there is nothing'
      f' to equalise among {list(leaves)[:8]}. gelu, silu and tanh keep none;'
      ' statistics of norms must be in the first argument.'
    )
  logs = _solved(groups, freedoms.num, sweeps, tolerance)
  if error is None:
    return freedoms.apply(params, logs), {}

  named = _named(groups)

  def moved(names):
    kept = np.zeros(freedoms.num)
    for name in names:
      kept[named[name]] = logs[named[name]]
    return freedoms.apply(params, kept)

  return trials.keep(moved, list(named), error)


def _solved(groups, num, sweeps, tolerance) -> np.ndarray:
  """Logarithms of the factors [num] with which both ends of channels agree."""
  logs = np.zeros(num)
  for _ in range(sweeps):
    furthest = 0.0
    for channels, met in groups:
      high = np.full((2, num), -np.inf)
      for weight in met:
        weight.reach(logs, high)
      ends = high[:, channels]
      # Half of the difference of the logarithms brings both ends to their geometric
      # mean; a channel with zeros alone at one end has no range to share.
      step = np.where(np.isfinite(ends).all(0), ends[1] - ends[0], 0.0) / 2
      logs[channels] += step
      furthest = max(furthest, np.abs(step).max())
    if furthest <= tolerance:
      break
  return logs


def _named(groups) -> dict[str, np.ndarray]:
  """Channels by the weights around them; layers of a scan have the same, by turn."""
  turns, found = collections.defaultdict(list), {}
  for channels, met in groups:
    turns[' - '.join(w.taken.path for w in met)].append(channels)
  for name, each in turns.items():
    for i, channels in enumerate(each):
      found[name if len(each) == 1 else f'{name} at [{i}]'] = channels
  return found


def _plain(params):
  """`{path: array}`; factors move between weights that are not rounded yet."""
  leaves = dict(rules_lib.named_leaves(params))
  for path, x in leaves.items():
    if array.is_compressed(x):
      raise ValueError(
        f'{path} is {x.describe()} already, and arrays are expected. Equalise and'
        ' fold first, then jc.quantize; or pass jc.materialize(params).'
      )
  return leaves


class _Weight:
  """A weight where it meets freedoms, and the logarithms of its magnitudes."""

  def __init__(self, freedoms, taken, x):
    self.freedoms, self.taken = freedoms, taken
    self.terms = freedoms.terms(taken)
    flat = np.abs(np.asarray(x, np.float32)).reshape(-1)[taken.index]
    if not np.isfinite(flat).all():
      raise ValueError(f'{taken.path} has entries that are not finite.')
    with np.errstate(divide='ignore'):
      self.log = np.log(flat)

  def reach(self, logs, high):
    """Raises `high` [ends, freedoms] to the largest entries of each channel."""
    now = self.log + self.freedoms.logs_of(self.taken, logs)
    for sign, freedom in self.terms:
      shared = tuple(i for i, n in enumerate(freedom.shape) if n == 1)
      most = now.max(shared, keepdims=True, initial=-np.inf)
      sign, most = (np.broadcast_to(p, freedom.shape) for p in (sign, most))
      for end, s in enumerate((1, -1)):
        at = (freedom >= 0) & (sign == s)
        # Several entries may have one channel, which plain indexing would write once.
        np.maximum.at(high[end], freedom[at], most[at])

  def ends(self, num) -> np.ndarray:
    """bool [2, num]: the freedoms that multiply it, and that divide it."""
    found = np.zeros((2, num), bool)
    for sign, freedom in self.terms:
      sign = np.broadcast_to(sign, freedom.shape)
      for end, s in enumerate((1, -1)):
        found[end, freedom[(freedom >= 0) & (sign == s)]] = True
    return found


def _groups(weights, num):
  """[(freedoms, weights)] that are solved together: the channels of one layer."""
  if not weights or not num:
    return []
  ends = np.stack([w.ends(num) for w in weights])  # [weights, 2, num]
  both = np.flatnonzero(ends.any(0).all(0))
  met = ends.any(1)[:, both].T  # [freedoms, weights]
  groups = {}
  for i, row in zip(both, met, strict=True):
    groups.setdefault(tuple(np.flatnonzero(row)), []).append(i)
  return [
    (np.array(channels), [weights[j] for j in which])
    for which, channels in groups.items()
  ]


@known.computed
def fold_norms(
  params: Any, freedoms: freedoms_lib.Rescalings
) -> tuple[Any, tuple[str, ...]]:
  """Moves the gains of norms into the weights before them.

      (x W - mean) g + b = (x W') - mean' + b,    g = gain / sqrt(var + eps),
      W' = W |g|,  mean' = mean |g|,  gain' = gain / |g|

  for batch norm in inference, after a convolution or a dense layer, and for any
  other gain: afterwards the norm multiplies by 1 or -1, and the range of a weight
  is that of what it gives. Training goes on from there with the statistics fixed,
  so that a quantised weight is rounded as it will be used (Jacob et al. 2018,
  https://arxiv.org/abs/1712.05877, section 3.2, with the statistics that norms end
  with; Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 3.1.3).

  Args:
    params: the tree that `freedoms` was found for, the statistics of norms among
      its leaves.
    freedoms: what `jc.analysis.rescalings(apply)(params, x)` returned, for `apply` in
      inference and `params` that are arrays.

  Returns:
    (params, paths of the gains that are folded). Gains that follow no weight (layer
    norm) or whose input goes elsewhere as it is stay; so do channels with a gain
    of zero.

  Raises:
    ValueError: no gain follows a weight, or a leaf is compressed, or traced.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: (x @ p['w'] - p['mean']) * p['gain'] + p['bias']
  >>> one = lambda v: jnp.full((1, 1), v)
  >>> p = dict(w=one(2.), mean=one(1.), gain=one(3.), bias=one(.5))
  >>> folded, gains = fold_norms(p, freedoms_lib.rescalings(f)(p, jnp.ones((1, 1))))
  >>> {k: round(float(x[0, 0]), 5) for k, x in folded.items()}, gains
  ({'bias': 0.5, 'gain': 1.0, 'mean': 3.0, 'w': 6.0}, ('gain',))
  """
  _plain(params)
  logs = np.zeros(freedoms.num)
  open_ = _follow_weights(freedoms)
  folded = []
  for taken in freedoms.taken:
    if taken.gain is None or len(taken.terms) != 2:
      continue
    sign, freedom = (
      np.broadcast_to(p, taken.index.shape) for p in freedoms.terms(taken)[1]
    )
    # -1 stands for no freedom, and as an index for the entry that is appended.
    mine = (freedom >= 0) & np.append(open_, False)[freedom]
    if not mine.any():
      continue
    gain = np.abs(np.asarray(taken.gain(), np.float32))
    gain = _as_index(gain, taken.index.shape)
    mine &= np.isfinite(gain) & (gain > 0)
    # A gain divides by what comes before it: its sign there is -1.
    logs[freedom[mine]] = -sign[mine] * np.log(gain[mine])
    open_[freedom[mine]] = False
    folded.append(taken.path)
  if not folded:
    raise ValueError(
      'No gain of a norm follows a weight. Batch norm folds in inference'
      ' (use_running_average=True), with its statistics in the first argument;'
      ' layer norm does not.'
    )
  return freedoms.apply(params, logs), tuple(dict.fromkeys(folded))


def _as_index(gain, shape):
  """What a gain multiplies by, one for each of its own entries."""
  for axis, n in enumerate(shape):
    if n == 1 and gain.shape[axis] > 1:
      gain = gain.take([0], axis)
  return np.broadcast_to(gain, shape)


def _follow_weights(freedoms) -> np.ndarray:
  """bool [num]: what a weight gives, rather than only takes."""
  found = np.zeros(freedoms.num, bool)
  for taken in freedoms.taken:
    if taken.product:
      for sign, freedom in freedoms.terms(taken):
        sign = np.broadcast_to(sign, freedom.shape)
        found[freedom[(freedom >= 0) & (sign > 0)]] = True
  return found
