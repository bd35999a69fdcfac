"""A vocabulary of the tokens that a corpus uses.

    plan, ids = jc.pruning.trim_vocabulary(structure, tokens)
    small = plan.apply(params)
    apply(small, ids[x])  ==  apply(params, x)[..., kept]

Rows of embeddings and columns of the last product go, and with them the results. A
row is read where its token occurs, so nothing else changes.
"""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.structure import numbering
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.core import choices


def trim_vocabulary(
  structure: structure_lib.Structure,
  tokens: Iterable[Any],
  keep: Sequence[int] = (),
  *,
  unknown: int | None = None,
  groups: Sequence[str] | None = None,
) -> tuple[plan_lib.Plan, np.ndarray]:
  """The plan that keeps the tokens in use, and their new numbers.

  Args:
    structure: what `jc.structure(apply)(params, tokens)` returned.
    tokens: integers, or batches of them: an array, or anything that yields trees of
      arrays. All that the network is to know: of prompts and of answers.
    keep: tokens that stay in any case, such as those that end or pad a text.
    unknown: the token that stands for those that go, which stays; without one they
      have the number -1.
    groups: what goes, by name; without it the one group that an input numbers, and
      the groups of that size that are results, such as logits.

  Returns:
    (plan, ids): ids is int32 [old size], the new number of each token.

  Raises:
    ValueError: no tokens, a token that is not in the vocabulary, tokens that are not
      integers, or no group, or several, that could be the vocabulary.

  >>> import jax.numpy as jnp
  >>> f = lambda p, ids: p['embed'][ids] @ p['embed'].T
  >>> p, ids = {'embed': jnp.eye(5, 2)}, jnp.array([[4, 1, 1]])
  >>> found = structure_lib.structure(f)(p, ids)
  >>> plan, numbers = trim_vocabulary(found, ids, keep=(0,))
  >>> plan.shapes['embed'], numbers.tolist()
  ((3, 2), [0, 1, -1, -1, 2])
  """
  names = _groups(structure, groups)
  structure = structure.opened(*names)
  sizes = {structure.groups[name].size for name in names}
  if len(sizes) != 1:
    raise ValueError(
      f'The groups {names} have {sorted(sizes)} channels: those of one vocabulary'
      ' have as many.'
    )
  (size,) = sizes
  used = np.zeros(size, bool)
  special = [*keep, *([] if unknown is None else [unknown])]
  for ids in (*jax.tree.leaves(special), *_batches(tokens)):
    used[_checked(ids, size)] = True
  if not used.any():
    raise ValueError(
      'There are no tokens to keep: tokens and keep are empty. An iterator that was'
      ' read before is empty, too.'
    )
  kept = np.flatnonzero(used)
  numbers = np.full(size, -1, np.int32)
  numbers[kept] = np.arange(kept.size)
  if unknown is not None:
    numbers[~used] = numbers[unknown]
  plan = plan_lib.Plan(structure, dict.fromkeys(names, kept))
  return plan, numbers


def _groups(structure, groups) -> list[str]:
  """The groups of the vocabulary."""
  if groups is not None:
    for name in groups:
      choices.one_of('group', name, tuple(structure.groups))
    return list(groups)
  open_ = {n: g for n, g in structure.groups.items() if g.at_boundary}
  read = {
    name: group
    for name, group in open_.items()
    if numbering.INPUT_NUMBERS in group.locked
  }
  if len({group.size for group in read.values()}) != 1:
    raise ValueError(
      'One vocabulary is expected, and the groups that an input numbers are'
      f' { ({n: g.size for n, g in read.items()}) }. {_advice(structure, read)}'
    )
  (size,) = {group.size for group in read.values()}
  return [
    name
    for name, group in open_.items()
    if group.size == size
    and (name in read or numbering.RESULT_SIZE in group.locked)
  ]


def _advice(structure, read) -> str:
  if read:
    return f'Name those that go, as in groups={list(read)[:1]}.'
  stuck = {
    name: whys[0]
    for name, group in structure.groups.items()
    for whys in [[w for w in group.locked if w not in numbering.BOUNDARY]]
    if whys and (numbering.INPUT_NUMBERS in group.locked or 'index' in whys[0])
  }
  if stuck:
    return f'Others are locked by the program: {stuck}.'
  return 'Give token ids, as integers, among the arguments of jc.structure.'


def _batches(tokens):
  if hasattr(tokens, 'shape'):
    yield tokens
    return
  for batch in tokens:
    yield from jax.tree.leaves(batch)


def _checked(ids, size) -> np.ndarray:
  ids = np.asarray(ids)
  if not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(f'Tokens are {ids.dtype}; integers are expected.')
  if ids.size and (ids.min() < 0 or ids.max() >= size):
    raise ValueError(
      f'The vocabulary has tokens 0 to {size - 1}, and there are tokens {ids.min()} to'
      f' {ids.max()}.'
    )
  return ids.ravel()
