"""What the importances of a group are measured in, so that groups can be compared.

Each is a function of the importances of one group, of any shape, and returns its like.
None changes the order within a group; between groups they decide who gives more
channels, where `select` ranks several groups together.
"""

import numpy as np

_TINY = np.finfo(float).tiny


def none(x: np.ndarray) -> np.ndarray:
  """As they are: for scores in units of the loss, such as Taylor's."""
  return x


def mean(x: np.ndarray) -> np.ndarray:
  """Over their mean magnitude: a channel of 1 is an average one of its group.

  >>> mean(np.array([1., 3.])).tolist()
  [0.5, 1.5]
  """
  return x / np.maximum(np.mean(np.abs(x)), _TINY)


def max(x: np.ndarray) -> np.ndarray:
  """Over the largest magnitude."""
  return x / np.maximum(np.max(np.abs(x)), _TINY)


def l2(x: np.ndarray) -> np.ndarray:
  """Over the root of the sum of their squares."""
  return x / np.maximum(np.sqrt(np.sum(np.square(x))), _TINY)


def lamp(x: np.ndarray) -> np.ndarray:
  """x_c / (sum of the x that are as large or larger): what a cut of all below loses.

  Lee et al. 2021, https://arxiv.org/abs/2010.07611, eq. 4, for scores that are
  squares of weights. The largest of each group has 1, so that no group goes whole.

  >>> lamp(np.array([1., 3.])).tolist()
  [0.25, 1.0]
  """
  flat = x.ravel()
  # Of equal ones the later count as larger.
  order = np.argsort(flat, kind='stable')
  above = np.cumsum(flat[order][::-1])[::-1]
  out = np.empty_like(flat)
  out[order] = flat[order] / np.maximum(above, _TINY)
  return out.reshape(x.shape)


def gaussian(x: np.ndarray) -> np.ndarray:
  """(x - mean) / standard deviation: how far a channel is from an average one.

  >>> gaussian(np.array([1., 2., 3.])).tolist()
  [-1.0, 0.0, 1.0]
  """
  if x.size == 1:
    return np.zeros_like(x)
  return (x - np.mean(x)) / np.maximum(np.std(x, ddof=1), _TINY)
