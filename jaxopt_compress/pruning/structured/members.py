"""What a channel is worth, of what it is worth to each leaf that holds it.

A *member* of a group is one axis of one leaf. Each is a function of an array
[members, channels], members in the order of the tree, and returns [channels].
"""

import numpy as np


def mean(x: np.ndarray) -> np.ndarray:
  """Each member has one vote."""
  return np.mean(x, 0)


def sum(x: np.ndarray) -> np.ndarray:
  """The more members a group has, the more its channels are worth."""
  return np.sum(x, 0)


def max(x: np.ndarray) -> np.ndarray:
  """One member that needs a channel is enough."""
  return np.max(x, 0)


def first(x: np.ndarray) -> np.ndarray:
  """The first leaf alone, in the order of the tree: which one it is, rules say better."""
  return x[0]
