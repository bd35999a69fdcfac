"""How much each channel of a group matters, over all leaves that hold it.

    importance[c] = mean of score(w) over the entries w of channel c

A channel goes from the weights that make it and from those that read it alike, so both
say what it is worth. Scores are those of `scores`, or any function of arrays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import structure as structure_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import scores

Score = Callable[..., jax.Array]

# Of the importances of a group: what they are divided by.
NORMALS = {
  'mean': np.mean,
  'max': np.max,
  'none': lambda x: 1.0,
}


def importance(
  structure: structure_lib.Structure,
  params: Any,
  *others: Any,
  score: Score | list[tuple[str, Score | None]] = scores.magnitude,
  across: Callable[[np.ndarray], np.ndarray] = np.abs,
  normalize: str = 'mean',
) -> dict[str, np.ndarray]:
  """The importance of each channel of the groups that may go.

  Args:
    structure: what `jc.structure(apply)(params, x)` returned.
    params: the parameters; compressed leaves count for what they stand for.
    *others: trees of the same form that the score takes besides, such as gradients.
    score: a function of an array (and of its like in `others`) that gives a number
      for each entry; or an ordered list `(regex, score)` over the paths, None for
      leaves that have no say. One function is for leaves with two axes or more:
      biases and statistics of norms have no say.
    across: of the mean of a channel: `np.abs`, so that signed scores such as
      `scores.first_order` may cancel within a channel.
    normalize: what the importances of a group are divided by, so that groups can be
      compared: 'mean', 'max' or 'none'.

  Returns:
    {group: float64 [size]}, for the groups that are not locked and of which a leaf
    has a score.

  Raises:
    ValueError: a score is not of the shape of its leaf or not finite, the tree is of
      another network, or no group has a leaf with a score.

  >>> from jaxopt_compress.analysis import structure as structure_lib
  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.array([[8., 1.], [2., 0.]]), 'b': jnp.ones((2, 2))}
  >>> found = structure_lib.structure(f)(p, jnp.ones((1, 2)))
  >>> importance(found, p, normalize='none')['a:-1'].tolist()
  [3.0, 0.75]
  """
  choices.one_of('normalize', normalize, tuple(NORMALS), '=')
  trees = [dict(rules_lib.named_leaves(t)) for t in (params, *others)]
  missing = [p for p in structure.shapes if any(p not in t for t in trees)]
  if missing:
    raise ValueError(
      f'{missing[:3]} of the structure are not in each of the {len(trees)} trees.'
      ' Pass the parameters that it was found for, and trees of their form.'
    )
  score_of = _by_path(score, structure)
  scored = {
    path: _scores(path, f, [t[path] for t in trees])
    for path, f in score_of.items()
    if f is not None
  }
  found = {}
  for name, group in structure.free.items():
    total, count = np.zeros(group.size), 0
    for path, axis in structure.members(name):
      if path in scored:
        sums = np.moveaxis(scored[path], axis, 0)
        sums = sums.reshape(len(sums), -1).sum(1)
        where = structure.channels(structure.axes[path][axis], name)
        np.add.at(total, where[where >= 0], sums[where >= 0])
        count += scored[path].size // sums.size * (where >= 0).sum()
    if count:
      mean = across(total / (count / group.size))
      found[name] = mean / max(NORMALS[normalize](mean), np.finfo(float).tiny)
  if not found:
    raise ValueError(
      f'None of {list(structure.free)[:5]} has a leaf with a score: give a score to'
      " leaves of the groups, as in score=[('.*kernel', scores.magnitude), ('.*',"
      ' None)].'
    )
  return found


def _by_path(score, structure) -> dict[str, Score | None]:
  if not callable(score):
    return rules_lib.match(score, dict.fromkeys(structure.shapes, 0))
  return {
    path: score if sum(n > 1 for n in shape) > 1 else None
    for path, shape in structure.shapes.items()
  }


def _scores(path, score, leaves) -> np.ndarray:
  leaves = [jnp.asarray(array.materialize(x)) for x in leaves]
  found = np.asarray(score(*leaves), np.float64)
  if found.shape != leaves[0].shape:
    raise ValueError(
      f'The score of {path} has shape {found.shape}; a number for each of the entries'
      f' {leaves[0].shape} is expected.'
    )
  if not np.isfinite(found).all():
    raise ValueError(
      f'{path}: {(~np.isfinite(found)).sum()} of {found.size} scores are NaN or'
      ' infinite. Look for where the parameters or gradients are.'
    )
  return found
