"""A share of the examples to train on, kept back to choose settings by.

For data that has no split for it. What is held back depends on the seed alone, so that
a run which resumes holds back the same.
"""

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def held_back(
  examples: Arrays, share: float, *, target: str = 'label', seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """(what stays to train on, what is held back), each in the order it came.

  Of each class the same share, where there is one whole number for each example; of
  anything else a share drawn evenly.

  Args:
    examples: arrays of one length n.
    share: of the examples, in (0, 1).
    target: the name of the labels.
    seed: of the choice.

  Raises:
    ValueError: a share outside (0, 1), or one that leaves nothing on either side.

  >>> train, back = held_back({'label': np.array([0, 0, 1, 1, 1, 1])}, 0.5)
  >>> train['label'].tolist(), back['label'].tolist()
  ([0, 1, 1], [0, 1, 1])
  """
  if not 0 < share < 1:
    raise ValueError(f'share={share}; a number in (0, 1) is expected.')
  labels, rng = np.asarray(examples[target]), np.random.default_rng(seed)
  n = len(labels)
  one_each = labels.ndim == 1 and labels.dtype.kind in 'iu'
  groups = labels if one_each else np.zeros(n, int)
  # How many of all, rounded once: of a hundred small classes, each rounded by itself,
  # none would be held back.
  chosen, due = np.zeros(n, bool), 0.0
  for group in np.unique(groups):
    members = rng.permutation(np.flatnonzero(groups == group))
    due += share * len(members)
    number = min(round(due), len(members))
    chosen[members[:number]] = True
    due -= number
  if chosen.all() or not chosen.any():
    raise ValueError(
      f'A share of {share} of {n} examples is {chosen.sum()}: there must be some to'
      ' train on, and some that are held back.'
    )
  return tuple(
    {name: np.asarray(x)[part] for name, x in examples.items()}
    for part in (~chosen, chosen)
  )
