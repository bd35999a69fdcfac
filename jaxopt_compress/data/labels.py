"""Harder forms of a data set that is too easy to tell methods apart.

    few     a fraction of the examples, the same of each class
    hidden  a fraction of the labels, and all examples
    noisy   a fraction of the labels is that of another class

Only examples to train on should be made harder: what a network is judged by stays true.
"""

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def few(
  examples: Arrays, fraction: float, *, target: str = 'label', seed: int = 0
) -> dict[str, np.ndarray]:
  """A fraction of the examples of each class, one at least.

  Args:
    examples: arrays of one length; `target` of them [n], whole numbers.
    fraction: in (0, 1].
    target: the name of the labels.
    seed: of the choice.

  Returns:
    The examples that are left, in their order.

  >>> few({'label': np.array([0, 0, 0, 0, 1, 1])}, 0.5)['label'].tolist()
  [0, 0, 1]
  """
  kept = _chosen(examples, fraction, target, seed)
  return {name: x[kept] for name, x in examples.items()}


def hidden(
  examples: Arrays, fraction: float, *, target: str = 'label', seed: int = 0
) -> dict[str, np.ndarray]:
  """All examples, and the labels of those that `few` leaves; others have -1.

  Arguments as for `few`.

  >>> hidden({'label': np.array([0, 0, 0, 0, 1, 1])}, 0.5)['label'].tolist()
  [0, -1, 0, -1, -1, 1]
  """
  kept = _chosen(examples, fraction, target, seed)
  labels = np.full_like(examples[target], -1)
  labels[kept] = np.asarray(examples[target])[kept]
  return {**examples, target: labels}


def _chosen(examples, fraction, target, seed):
  """The indices of a fraction of the examples of each class, in order."""
  if not 0 < fraction <= 1:
    raise ValueError(
      f'fraction={fraction}; the part of the examples that stays, in (0, 1], is'
      ' expected.'
    )
  labels = _one_each(examples, target)
  rng = np.random.default_rng(seed)
  chosen = []
  for label in np.unique(labels):
    of_class = rng.permutation(np.flatnonzero(labels == label))
    chosen.append(of_class[: max(round(fraction * len(of_class)), 1)])
  return np.sort(np.concatenate(chosen)) if chosen else np.arange(0)


def noisy(
  examples: Arrays, fraction: float, *, target: str = 'label', seed: int = 0
) -> dict[str, np.ndarray]:
  """A fraction of the labels is wrong: each is of another class, drawn evenly.

  Symmetric noise: Patrini et al. 2017, https://arxiv.org/abs/1609.03683, section 5.

  Args:
    examples: arrays of one length; `target` of them [n], whole numbers.
    fraction: in [0, 1].
    target: the name of the labels.
    seed: of the choice.

  Returns:
    The examples with new labels; the other arrays are as they were.

  >>> labels = np.array([0, 1, 2, 0, 1, 2])
  >>> int((noisy({'label': labels}, 0.5)['label'] != labels).sum())
  3
  """
  if not 0 <= fraction <= 1:
    raise ValueError(
      f'fraction={fraction}; the part of the labels that is wrong, in [0, 1], is'
      ' expected.'
    )
  labels = _one_each(examples, target)
  classes = np.unique(labels)
  if fraction and len(classes) < 2:
    raise ValueError('All labels are of one class, so none can be of another.')
  rng = np.random.default_rng(seed)
  wrong = rng.permutation(len(labels))[: round(fraction * len(labels))]
  # A step of 1 to classes - 1 around the circle of classes never comes back.
  steps = rng.integers(1, max(len(classes), 2), len(wrong))
  places = (np.searchsorted(classes, labels[wrong]) + steps) % len(classes)
  changed = labels.copy()
  changed[wrong] = classes[places]
  return {**examples, target: changed}


def _one_each(examples, target) -> np.ndarray:
  labels = np.asarray(examples[target])
  if labels.ndim != 1 or labels.dtype.kind not in 'iu':
    raise ValueError(
      f'{target!r} is {labels.dtype}{list(labels.shape)}; one whole number for each'
      ' example is expected.'
    )
  return labels
