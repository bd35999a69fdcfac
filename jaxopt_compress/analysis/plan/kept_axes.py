"""Which axes of a parameter an array has that an optimizer keeps of it.

    a [6, 8]    nu/a [6, 8]     v_row/a [6]     v_col/a [8]     nu/a/1 [8]

An array that lacks one axis, as those of Adafactor do (Shazeer and Stern 2018,
https://arxiv.org/abs/1804.04235, algorithm 4), is a mean over that axis.
"""

from collections.abc import Sequence
import math

import numpy as np


def of(
  shape: Sequence[int], whole: Sequence[int], rest: str, other: Sequence[int]
) -> dict[int, int] | None:
  """{axis of an array: axis of the parameter under whose name it is kept}.

  None where that is not known. An optimizer may keep several arrays of a parameter,
  one after the other; one entry for all of an axis; a vector for each axis; or means
  over one axis.

  Args:
    shape: of the array.
    whole: of the parameter.
    rest: what follows the name of the parameter.
    other: the shape of the parameter on the other side of a plan.

  >>> of((6,), (6, 8), '', (6, 16)), of((8,), (8, 8), '', (8, 16))
  ({0: 0}, None)
  """
  shape, whole = tuple(shape), tuple(whole)
  if rest.isdecimal() and shape == whole[int(rest) : int(rest) + 1]:
    return {0: int(rest)}
  ahead = len(shape) - len(whole)
  if ahead == -1:
    i = _missing(shape, whole, tuple(other))
    return None if i is None else {j: j + (j >= i) for j in range(len(shape))}
  pairs = list(zip(shape[max(ahead, 0) :], whole, strict=False))
  if ahead < 0 or not all(n in (1, m) for n, m in pairs):
    return None
  return {ahead + i: i for i, (n, _) in enumerate(pairs) if n > 1}


def _missing(shape, whole, other) -> int | None:
  """The axis that an array lacks, the same on both sides of a plan; None if unknown."""
  found = [i for i in range(len(whole)) if _without(whole, i) == shape]
  if len(found) != 1 or math.prod(shape) == 1:
    return None
  (i,) = found
  again = [
    j for j in range(len(other)) if _without(other, j) == _without(other, i)
  ]
  # Adafactor's means are over the largest axis, and over the one before it: where
  # another is the largest, `v_row` is of the other axis.
  largest = [np.argsort(s)[-2:].tolist() for s in (whole, other)]
  return i if len(again) == 1 and largest[0] == largest[1] else None


def _without(shape, i):
  return *shape[:i], *shape[i + 1 :]
