"""Bias correction: what rounding a weight shifts on average, taken off its bias.

    b' = b - (W_hat - W)^T E[x]

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias
Correction, https://arxiv.org/abs/1906.04721, section 4.2, with E[x] measured. Layers
behind may have made up for the shift, so each correction is tried on held-out data.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import observe
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.analysis import watch
from jaxopt_compress.calibration import known
from jaxopt_compress.calibration import trials
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib


@known.computed
def correct_bias(
  params: Any,
  qparams: Any,
  stats: Mapping[str, watch.Observed],
  biases: Mapping[str, str],
  uses: dict,
  error: Callable[[Any], float],
) -> tuple[Any, dict[str, trials.Trial]]:
  """Takes the mean shift that rounding causes off the biases, where that helps.

  Args:
    params: the tree as it was trained.
    qparams: the same tree with compressed leaves.
    stats: {path of a weight: its `jc.statistics.sums()`}, from `jc.observe`.
    biases: {path of a weight: path of the bias that is added to its product}.
    uses: what `jc.uses(apply)(params, x)` returned.
    error: of a tree like `qparams`: `jc.calibration.output_error(apply, params, held_out)`,
      or any number that is to fall.

  Returns:
    (tree, trials): `qparams` with the corrections that help, in the biases' own
    dtype; {weight: errors without and with its correction, and whether it was
    applied}, one for each layer or expert of a stacked weight.

  Raises:
    ValueError: a path that is not there, a weight that saw no data, a bias that
      is compressed or does not have one entry for each output, or arrays that
      are traced.

  >>> from jaxopt_compress.analysis import statistics
  >>> w, b = jnp.array([[0.3], [0.9]]), jnp.zeros((1, 1))
  >>> f = lambda p, x: x @ p['w'] + p['b']
  >>> params, x = {'w': w, 'b': b}, jnp.ones((4, 2))
  >>> q = {'w': jnp.round(w), 'b': b}  # any other form of the weight
  >>> _, stats = observe.observe(f, {'w': statistics.sums()})(params, x)
  >>> error = trials.output_error(f, params, [jnp.ones((1, 2))])
  >>> fixed, tried = correct_bias(
  ...   params, q, stats, {'w': 'b'}, uses_lib.uses(f)(params, x), error)
  >>> bool(jnp.allclose(f(fixed, x), f(params, x), atol=1e-6)), tried['w'].applied
  (True, True)
  """
  leaves = dict(rules_lib.named_leaves(params))
  compressed = dict(rules_lib.named_leaves(qparams))
  _check(biases, leaves, compressed, stats)
  observe.check_seen({path: stats[path] for path in biases})
  shifts = {}
  for weight, bias in biases.items():
    apart = _value(compressed[weight]) - _value(leaves[weight])
    shift = _mean_output(weight, apart, stats[weight], uses)
    want = leaves[bias].shape
    if shift.size != math.prod(want):
      raise ValueError(
        f'{bias} has shape {want}; {weight} has {shift.shape} outputs, so it is'
        ' not its bias.'
      )
    stacked = len(uses_lib.axes(weight, apart, uses).stacked)
    for index in np.ndindex(*shift.shape[:stacked]):
      name = weight if not index else f'{weight} at {list(index)}'
      shifts[name] = bias, jnp.zeros_like(shift).at[index].set(shift[index])

  def corrected(names):
    total = {}
    for bias, shift in map(shifts.get, names):
      total[bias] = total.get(bias, 0) + shift.reshape(leaves[bias].shape)

    def without_shift(path, x):
      return x if path not in total else (x - total[path]).astype(x.dtype)

    return rules_lib.map_named(without_shift, qparams)

  return trials.keep(corrected, list(shifts), error)


def _value(x) -> jax.Array:
  return jnp.asarray(array.materialize(x)).astype(jnp.float32)


def _mean_output(path, w, seen, uses):
  """w^T E[x]: [stacked..., free...]."""
  axes = uses_lib.axes(path, w, uses)
  shape = w.shape

  def sizes(axes):
    return [shape[a] for a in axes]

  # The mean of the inputs has one flat axis for all that is contracted, so the
  # weight becomes a stack of matrices for the product, and is split again after.
  order = (*axes.stacked, *axes.contracted, *axes.free)
  w = jnp.transpose(w, [w.ndim + a for a in order])
  k = math.prod(sizes(axes.contracted))
  w = w.reshape(*sizes(axes.stacked), k, math.prod(sizes(axes.free)))
  count = seen.count.reshape(seen.count.shape + (1,))
  mean = seen.state / count
  y = jnp.einsum('...kf,...k->...f', w, mean)
  return y.reshape(*sizes(axes.stacked), *sizes(axes.free))


def _check(biases, leaves, compressed, stats):
  for weight, bias in biases.items():
    for path, tree, what in (
      (weight, leaves, 'params'),
      (weight, stats, 'stats'),
      (bias, leaves, 'params'),
    ):
      if path not in tree:
        raise ValueError(
          f'{path} is not in {what}, which has {list(tree)[:8]}. Give biases as'
          ' {path of a weight: path of its bias}.'
        )
    if array.is_compressed(compressed[bias]):
      raise ValueError(
        f'{bias} is compressed; leave biases as they are, and correct them'
        ' before they are rounded.'
      )
