"""A part of a split: 'train[:80%]', 'folder@/data/flowers[80%:]'.

A slice is of a shuffle that is always the same, in which classes alternate where labels
are those of classes: so '[:80%]' and '[80%:]' have nothing in common, are everything
together, and have nearly the same share of each class.
"""

from collections.abc import Mapping
import re
from typing import NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Slice(NamedTuple):
  """The share from `low` to `high` of the split `whole`."""

  whole: str
  low: float = 0.0
  high: float = 1.0

  @property
  def all(self) -> bool:
    return (self.low, self.high) == (0.0, 1.0)


def read(split: str) -> Slice:
  """What the name of a split says.

  Raises:
    ValueError: what is in brackets is no part of it.

  >>> read('train[80%:]'), read('train').all
  (Slice(whole='train', low=0.8, high=1.0), True)
  """
  match = re.fullmatch(r'(.*)\[([^\[\]]*)\]', split)
  if not match:
    return Slice(split)
  whole, said = match.groups()
  number = r'(?:(\d+(?:\.\d+)?)%)?'
  ends = re.fullmatch(f'{number}:{number}', said.replace(' ', ''))
  low, high = ends.groups() if ends else (None, None)
  low, high = float(low or 0) / 100, float(high or 100) / 100
  if not ends or not 0 <= low < high <= 1:
    raise ValueError(
      f"{split!r} is no part of a split. Write '{whole}[:80%]', '{whole}[80%:]' or"
      f" '{whole}[10%:20%]'."
    )
  return Slice(whole, low, high)


def cut(arrays: Arrays, part: Slice, target: str) -> dict[str, np.ndarray]:
  """The examples of a slice, in their order.

  Args:
    arrays: of the whole split, all of one length.
    part: which of them.
    target: the name of the labels.

  Raises:
    ValueError: none is left.
  """
  if part.all:
    return dict(arrays)
  labels = np.asarray(arrays[target])
  rng = np.random.default_rng(0)
  # Where in its class an example comes, from 0 to 1: in this order, each stretch has
  # nearly the same share of each class, however few examples one has.
  place = np.empty(len(labels))
  for members in _groups(labels):
    order = rng.permutation(len(members)) + rng.uniform()
    place[members] = order / len(members)
  low, high = (round(x * len(labels)) for x in (part.low, part.high))
  kept = np.sort(np.argsort(place, kind='stable')[low:high])
  if not len(kept):
    raise ValueError(
      f'{part.whole!r} has {len(labels)} examples, and none from {part.low:.0%} to'
      f' {part.high:.0%}. Take more of it.'
    )
  return {name: x[kept] for name, x in arrays.items()}


def _groups(labels):
  """The indices of each class, or all where there are no classes."""
  if labels.ndim != 1 or labels.dtype.kind not in 'iu':
    return [np.arange(len(labels))]
  return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def check_apart(parts: Mapping[str, Slice]) -> None:
  """Raises a ValueError where two slices have examples in common.

  Args:
    parts: by the key of a config. What is one whole split under two keys is another's
      to judge: see `train.validation.check_split`.
  """
  named = list(parts.items())
  for i, (key, a) in enumerate(named):
    for other, b in named[:i]:
      apart = a.low >= b.high or b.low >= a.high
      if a.whole == b.whole and not apart and not (a.all and b.all):
        raise ValueError(
          f'{other} and {key} have examples in common: they are {_said(b)} and'
          f" {_said(a)}. Write '{a.whole}[:80%]' and '{a.whole}[80%:]'."
        )


def _said(part):
  if part.all:
    return f'all of {part.whole!r}'
  return f'{part.low:.0%} to {part.high:.0%} of {part.whole!r}'
