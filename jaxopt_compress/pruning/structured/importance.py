"""How much each channel of a group matters, over all leaves that hold it.

    m[leaf, c] = | mean of score(w) over the entries w of channel c in a leaf |
    importance[c] = mean over leaves of  m[leaf, c] / mean over c of m[leaf, c]

A channel goes from the weights that make it and from those that read it alike, so both
say what it is worth, and each by how a channel compares with the others there: a large
kernel does not drown a small one, or a gain. Scores are those of `scores`, or any
function of arrays. `members` has other ways to put leaves together, `normals` to
compare groups.
"""

from collections.abc import Callable
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.analysis.structure import tied
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import scores
from jaxopt_compress.pruning.structured import votes as votes_lib

Score = Callable[..., jax.Array]


def importance(
  structure: structure_lib.Structure,
  params: Any,
  *others: Any,
  score: str | Score | list[tuple[str, str | Score | None]] = 'magnitude',
  entries: str = 'mean',
  across: votes_lib.Channels = np.abs,
  balanced: bool = True,
  members: str | votes_lib.Channels = 'mean',
  normalize: str | votes_lib.Channels = 'mean',
  within: str = '.*',
) -> dict[str, np.ndarray]:
  """The importance of each channel of the groups that may go.

  Args:
    structure: what `jc.structure(apply)(params, x)` returned.
    params: the parameters; compressed leaves count for what they stand for.
    *others: trees of the same form that the score takes besides, such as gradients
      (`jc.pruning.gradients`) or the mean of their squares (`jc.pruning.fisher`).
    score: a function of an array, and of its like in `others`, that gives a number
      for each entry, or its name in `scores`; or an ordered list `(regex, score)`
      over the paths, None for leaves that have no say. One score for all is for
      weights: biases, gains and statistics of norms have no say. Arrays have
      float32 at least.
    entries: of the scores of a channel in a leaf, their 'mean' or 'sum'.
    across: of each of these: `np.abs`, so that signed scores such as `first_order`
      may cancel within a channel; `np.positive` where the sign says what is better.
    balanced: each leaf's are divided by their mean over the channels, so that what
      counts is how channels compare there. Without, the leaf of the largest scores
      decides: right where scores have one unit, as those of Taylor's have.
    members: how leaves are put together: a function of [leaves, channels], or its
      name in `members`: 'mean', 'sum', 'max' or 'first'.
    normalize: in what the importances of a group are measured: a function of them,
      or its name in `normals`: 'mean', 'max', 'l2', 'lamp', 'gaussian' or 'none'.
    within: a regex over the names of groups: where these lie within others, as query
      heads in their key head and channels in a scanned layer, each channel of those
      has importances of its own, and keeps its own; '' for none.

  Returns:
    {group: float64 [*sizes of `Group.within`, size]}, for the groups that are not
    locked and of which a leaf has a score. What else gives a number for each channel
    can stand in its place, as random ones: `{n: rng.random(g.size) for n, g in
    structure.free.items()}`.

  Raises:
    ValueError: a score is not of the shape of its leaf or not finite, the tree is of
      another network, or no group has a leaf with a score.

  Example, the scale of batch norms (Liu et al. 2017,
  https://arxiv.org/abs/1708.06519), and Huber-type importance, max(0, |x| - k):

      jc.importance(structure, params, score=[('.*/scale', 'magnitude'), ('.*', None)])
      huber = functools.partial(scores.soft_threshold, quantile=0.5)
      jc.importance(structure, params, score=huber)

  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.array([[8., 1.], [2., 0.]]), 'b': jnp.ones((2, 2))}
  >>> found = structure_lib.structure(f)(p, jnp.ones((1, 2)))
  >>> importance(found, p, balanced=False, normalize='none')['a:-1'].tolist()
  [3.0, 0.75]
  """
  choices.one_of('entries', entries, ('mean', 'sum'), '=')
  trees = [dict(rules_lib.named_leaves(t)) for t in (params, *others)]
  missing = [p for p in structure.shapes if any(p not in t for t in trees)]
  if missing:
    raise ValueError(
      f'{missing[:3]} of the structure are not in each of the {len(trees)} trees.'
      ' Pass the parameters that it was found for, and trees of their form.'
    )

  def names_free(layout):
    return any(g in structure.free for g in structure_lib.names(layout))

  def votes():
    # One leaf after the other: scores are as large as the weights.
    for path, f in _by_path(score, structure).items():
      if f is not None and any(map(names_free, structure.axes[path])):
        scored = _scores(path, f, [t[path] for t in trees])
        for name, x in votes_lib.by_group(
          structure, path, scored, entries, within
        ):
          yield name, across(x)

  return votes_lib.put_together(
    structure, votes(), balanced, members, normalize
  )


def kernels(structure: structure_lib.Structure) -> set[str]:
  """The leaves that are weights: no biases, gains or statistics of norms.

  They have two axes or more, besides that of a scan, and are not the bias of a leaf
  beside them, which has the same axes and those that it contracts.

  >>> f = lambda p, x: (x @ p['a'] + p['b']) @ p['c']
  >>> p = {'a': jnp.ones((2, 3)), 'b': jnp.ones((1, 3)), 'c': jnp.ones((3, 2))}
  >>> sorted(kernels(structure_lib.structure(f)(p, jnp.ones((1, 2)))))
  ['a', 'c']
  """

  def wide(path):
    layouts = zip(structure.axes[path], structure.shapes[path], strict=True)
    return [x for x, n in layouts if n > 1 and not _is_loop(structure, x)]

  axes = {path: wide(path) for path in structure.shapes}
  beside: dict[str, list] = {}
  for path in axes:
    beside.setdefault(path.rpartition('/')[0], []).append(path)

  def is_bias(path):
    mine, rank = axes[path], len(structure.shapes[path])
    return any(
      rank < len(structure.shapes[other]) and axes[other][-len(mine) :] == mine
      for other in beside[path.rpartition('/')[0]]
    )

  return {p for p, mine in axes.items() if len(mine) > 1 and not is_bias(p)}


def _is_loop(structure, layout) -> bool:
  names = list(structure_lib.names(layout))
  return len(names) == 1 and tied.LOOP in structure.groups[names[0]].inexact


def _by_path(score, structure) -> dict[str, Score | None]:
  if callable(score) or isinstance(score, str):
    weights = kernels(structure)
    found = {p: score if p in weights else None for p in structure.shapes}
  else:
    found = rules_lib.match(score, dict.fromkeys(structure.shapes, 0))
  return {
    p: None if f is None else votes_lib.named('score', f, scores)
    for p, f in found.items()
  }


def _scores(path, score, leaves) -> jax.Array:
  """The score of each entry of a leaf."""
  leaves = [_wide(x) for x in leaves]
  if any(isinstance(x, jax.core.Tracer) for x in leaves):
    raise ValueError(
      f'{path} is traced: importances decide on sizes, which a program under jit has'
      ' to know. Call jc.importance outside of it.'
    )
  shapes = [x.shape for x in leaves]
  if len(set(shapes)) > 1:
    raise ValueError(
      f'{path} has the shapes {shapes} in the trees; one shape is expected.'
    )
  try:
    inspect.signature(score).bind(*leaves)
  except TypeError as e:
    raise ValueError(
      f'{_name(score)} of {len(leaves)} arrays: {e}. Trees of what it takes besides'
      ' weights follow the parameters, as in jc.importance(structure, params,'
      " jc.pruning.gradients(loss, params, batches), score='taylor')."
    ) from e
  scored = jnp.asarray(score(*leaves))
  if scored.shape != shapes[0]:
    raise ValueError(
      f'The score of {path} has shape {scored.shape}; a number for each of the'
      f' entries {shapes[0]} is expected.'
    )
  return scored


def _name(f) -> str:
  return getattr(f, '__name__', repr(f))


def _wide(x) -> jax.Array:
  # Squares of small numbers in sixteen bits are zero.
  x = jnp.asarray(array.materialize(x))
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
