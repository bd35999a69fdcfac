"""How large the channels of a group are when the network runs on data.

    a[c] = sqrt( sum over batches of (mean over tokens of |x[., c]|)^2 )

x is what the weights meet that read the group, found by the program: no layer is
named. Minitron's score of neurons and heads: Muralidharan et al. 2024,
https://arxiv.org/abs/2407.14679, section 3.1, with batches of one sequence each.
"""

from collections.abc import Callable
from collections.abc import Iterable
import re
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.analysis import observe as observe_lib
from jaxopt_compress.analysis import statistics
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.pruning.structured import votes as votes_lib

_PRODUCTS = ('dot_general', 'conv_general_dilated', 'ragged_dot_general')


def activations(
  structure: structure_lib.Structure,
  apply: Callable,
  params: Any,
  batches: Iterable[Any],
  within: str = '.*',
  **put_together: Any,
) -> dict[str, np.ndarray]:
  """The importance of each channel by what it is on data.

  Args:
    structure: what `jc.structure(apply)(params, x)` returned.
    apply: the function that it was found for.
    params: the parameters; compressed leaves compute as under `jc.lift`.
    batches: each a tuple (positional arguments after `params`), a dict (keyword
      arguments) or anything else (one argument). Batches of one example each give
      the score of the paper; of more, rare channels count less.
    within: as for `importance`.
    **put_together: `balanced`, `members` and `normalize`, as for `importance`: a
      member here is a weight that reads the group.

  Returns:
    {group: float64 [..., size]}, for the groups that are not locked and that a
    product reads. Channels of a window, and of heads, have the mean over it.

  Raises:
    ValueError: no batch, activations that are not finite, no group that a product
      reads, or what `observe` refuses.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.array([[1., 3.]]), 'b': jnp.ones((2, 2))}
  >>> found = structure_lib.structure(f)(p, jnp.ones((1, 1)))
  >>> activations(found, f, p, [jnp.ones((1, 1))])['a:-1'].tolist()
  [0.5, 1.5]
  """
  total: dict[str, np.ndarray] = {}
  readers, step = {}, None
  for batch in batches:
    if step is None:
      readers = _readers(structure, apply, params, batch)
      chosen = {re.escape(path): statistics.sum_abs() for path in readers}
      observed = observe_lib.observe(apply, chosen)
      step = batches_lib.jitted(observed, params)
    for path, seen in batches_lib.call(step, (), batch)[1].items():
      count = np.maximum(np.asarray(seen.count, np.float64), 1)[..., None]
      mean = np.asarray(seen.state, np.float64) / count
      if not np.isfinite(mean).all():
        raise ValueError(
          f'What {path} meets is not finite at {(~np.isfinite(mean)).sum()} of'
          f' {mean.size} entries. Look for where parameters or batches are.'
        )
      total[path] = total.get(path, 0) + np.square(mean)
  if step is None:
    raise ValueError('There is no batch. An iterator that was read is empty.')

  def votes():
    for path, axes in readers.items():
      values = _at_leaf(structure.shapes[path], axes, np.sqrt(total[path]))
      # Of an axis that only others read, the leaf says nothing.
      for name, x in votes_lib.by_group(
        structure, path, values, 'mean', within
      ):
        if name in _groups(structure, path, (*axes.stacked, *axes.contracted)):
          yield name, x

  return votes_lib.put_together(structure, votes(), **put_together)


def _readers(structure, apply, params, batch) -> dict[str, uses_lib.Axes]:
  """The leaves that read a group that may go, in products, and their axes."""
  uses = batches_lib.call(uses_lib.uses(apply), (params,), batch)
  found = {}
  for path, shape in structure.shapes.items():
    if not any(use.primitive in _PRODUCTS for use in uses[path]):
      continue
    axes = uses_lib.axes(path, jax.ShapeDtypeStruct(shape, float), uses)
    if _groups(structure, path, axes.contracted):
      found[path] = axes
  if not found:
    raise ValueError(
      f'No product reads one of {list(structure.free)[:5]}: there is nothing to'
      ' observe. Score weights instead: jc.importance.'
    )
  return found


def _groups(structure, path, axes) -> set[str]:
  """The groups that may go, of some axes of a leaf."""
  layouts = [structure.axes[path][i] for i in axes]
  return {n for x in layouts for n in structure_lib.names(x)} & {
    *structure.free
  }


def _at_leaf(shape, axes, values):
  """[stacked..., contracted] as the axes of the leaf, of size 1 where it is free."""
  present = {*axes.stacked, *axes.contracted}
  # A statistic has the stacked axes first, and both in the order of the leaf.
  order = (*axes.stacked, *axes.contracted)
  values = values.reshape([shape[i] for i in order])
  values = values.transpose(np.argsort(order))
  return values.reshape(
    [shape[i] if i in present else 1 for i in range(-len(shape), 0)]
  )
