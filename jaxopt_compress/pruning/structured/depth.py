"""How much each layer matters: what it changes, what is lost without it, its weights.

    layers = depth.cosine(structure, apply, params, batches)
    plan = jc.select(structure, layers, keep=0.5, by=[('.*', 'keep')])

Layers are groups of a structure as channels are, by name (`blocks/0:layers`) or as the
axis that a loop goes along. What `select` takes of channels may stand beside them.
"""

from collections.abc import Callable
from collections.abc import Iterable
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.analysis.layers import streams
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import scores

Structure = structure_lib.Structure


def cosine(
  structure: Structure, fun: Callable, params: Any, batches: Iterable[Any]
) -> dict[str, np.ndarray]:
  """How far each layer turns what it gets: 1 - cos(x_in, x_out), in float32.

  Men et al. 2024, https://arxiv.org/abs/2403.03853, eq. 1 (block influence);
  Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679, section 2.2. It is the
  mean over the vectors along the last axis (tokens, or places of an image), and the
  sum over batches.

  Args:
    structure: what `jc.structure` returned.
    fun: `fun(params, ...)`, a function of the same parameters.
    params: the parameters.
    batches: each a tuple (positional arguments after `params`), a dict (keyword
      arguments) or anything else (one argument).

  Returns:
    {group: float64 [layers]}, larger for layers that change more.

  Raises:
    ValueError: no layers, no batch, or numbers that are not finite.
  """

  def measure(name, x, y):
    x, y = (v.astype(jnp.float32) for v in (x, y))
    return 1 - _cosine(x, y).mean()

  return _summed(structure, fun, params, batches, measure)


def angular(
  structure: Structure,
  fun: Callable,
  params: Any,
  batches: Iterable[Any],
  *,
  layers: int = 1,
) -> dict[str, np.ndarray]:
  """The angle between what a block of consecutive layers gets and gives, over pi.

  Gromov et al. 2024, https://arxiv.org/abs/2403.17887, eq. 7: of the last vector of
  each example, the last token. The block of least angle is the one to leave out.

  Args:
    structure, fun, params, batches: as for `cosine`.
    layers: how many layers a block has.

  Returns:
    {group: float64 [number of layers - layers + 1]}: the mean over batches, for the
    block that begins at each layer. Of one layer it is an importance of layers.
  """

  def measure(name, x, y):
    return tuple(_last(v.astype(jnp.float32)) for v in (x, y))

  def angles(ends):
    begin, end = (e[: len(e) - layers + 1] for e in (ends[0], ends[1]))
    end = ends[1][layers - 1 :]
    return jnp.arccos(jnp.clip(_cosine(begin, end), -1, 1)).mean(-1) / jnp.pi

  short = [
    n for n in streams.groups(structure) if structure.groups[n].size < layers
  ]
  if layers < 1 or short:
    raise ValueError(
      f'layers={layers}: a block has one layer at least, and no more than there are in'
      f' {short or streams.groups(structure)}.'
    )
  return _summed(structure, fun, params, batches, measure, angles, mean=True)


def loss(
  structure: Structure, fun: Callable, params: Any, batches: Iterable[Any]
) -> dict[str, np.ndarray]:
  """How much the loss grows where a layer passes on what it gets.

  Args:
    structure: what `jc.structure` returned.
    fun: `loss(params, ...)`, a number.
    params, batches: as for `cosine`.

  Returns:
    {group: float64 [layers]}: the mean over batches; below zero where the loss is
    less without the layer.
  """
  names = _groups(structure)
  sizes = {name: structure.groups[name].size for name in names}
  nothing = {name: jnp.zeros(n, bool) for name, n in sizes.items()}

  # One program for all layers: which of them is skipped is one of its arguments.
  @jax.jit
  def without(skip, batch):
    run = streams.at_layers(structure, fun, skip=skip)
    outs, _ = batches_lib.call(run, (params,), batch)
    if len(outs) != 1 or jnp.size(outs[0]) != 1:
      raise ValueError(
        f'The loss is {[jnp.shape(x) for x in outs]}; one number is expected.'
      )
    return outs[0].reshape(())

  total = {name: np.zeros(n) for name, n in sizes.items()}
  number = 0
  for batch in batches:
    whole, number = float(without(nothing, batch)), number + 1
    for name, n in sizes.items():
      for i in range(n):
        skip = nothing | {name: jnp.arange(n) == i}
        total[name][i] += float(without(skip, batch)) - whole
  return _finite({n: x / max(number, 1) for n, x in total.items()}, number)


def score(
  structure: Structure,
  params: Any,
  *others: Any,
  score: Callable[..., jax.Array] | str = scores.magnitude,
) -> dict[str, np.ndarray]:
  """The sum of the scores of all weights of each layer.

  Args:
    structure: what `jc.structure` returned.
    params: the parameters; compressed leaves count for what they stand for.
    *others: trees of the same form that the score takes besides, such as gradients.
    score: a function of arrays, or the name of one of `pruning.scores`.

  Returns:
    {group: float64 [layers]}.
  """
  if isinstance(score, str):
    score = getattr(scores, score)
  trees = [dict(rules_lib.named_leaves(t)) for t in (params, *others)]

  def of(path):
    leaves = [jnp.asarray(array.materialize(t[path])) for t in trees]
    return np.asarray(score(*leaves), np.float64)

  found = {}
  for name in _groups(structure):
    if name in structure.layers:
      found[name] = np.array(
        [
          math.fsum(of(path).sum() for path in _inside(structure, prefixes))
          for prefixes in structure.layers[name]
        ]
      )
      continue
    found[name] = np.zeros(structure.groups[name].size)
    for path, axis in structure.members(name):
      sums = np.moveaxis(of(path), axis, 0)
      found[name] += sums.reshape(len(sums), -1).sum(1)
  return _finite(found, 1)


# ------------------------------------------------------------------------ inside


def _groups(structure) -> list[str]:
  names = streams.groups(structure)
  if not names:
    raise ValueError(
      'The structure has no layers: no loop over stacked parameters, and no siblings'
      ' (blocks/0, blocks/1) that compute the same and pass one value on.'
    )
  return names


def _inside(structure, prefixes) -> list[str]:
  return [
    path
    for path in structure.shapes
    if any(path == p or path.startswith(f'{p}/') for p in prefixes)
  ]


def _summed(
  structure, fun, params, batches, measure, then=None, mean=False
) -> dict[str, np.ndarray]:
  """The sum over batches of what is measured of each layer."""
  _groups(structure)
  run = streams.at_layers(structure, fun, measure)

  @jax.jit
  def measured(params, batch):
    _, found = batches_lib.call(run, (params,), batch)
    return {n: x if then is None else then(x) for n, x in found.items()}

  total, number = {}, 0
  for batch in batches:
    number += 1
    for name, x in measured(params, batch).items():
      total[name] = total.get(name, 0) + np.asarray(x, np.float64)
  return _finite(
    {n: x / number if mean else x for n, x in total.items()}, number
  )


def _cosine(x, y):
  """cos of vectors along the last axis; 1 for two of zero."""
  products = [(a * b).sum(-1) for a, b in ((x, y), (x, x), (y, y))]
  length = jnp.sqrt(products[1] * products[2])
  both = (products[1] == 0) & (products[2] == 0)
  return jnp.where(both, 1.0, products[0] / jnp.where(length == 0, 1.0, length))


def _last(x):
  """[examples, features]: the last vector of each example."""
  return x.reshape(x.shape[0], -1, x.shape[-1])[:, -1]


def _finite(found, number) -> dict[str, np.ndarray]:
  if not number:
    raise ValueError(
      'There is no batch: an iterator that was read before is empty.'
    )
  for name, x in found.items():
    if not np.isfinite(x).all():
      raise ValueError(
        f'{name}: layers {np.flatnonzero(~np.isfinite(x)).tolist()} have scores that are'
        ' not finite. Look for where the parameters or the data are.'
      )
  return found
