"""What a plan may say of a group: the source channel of every target channel."""

from collections.abc import Sequence

import numpy as np

from jaxopt_compress.analysis.structure import next_steps
from jaxopt_compress.analysis.structure import structure as structure_lib


def checked(
  structure: structure_lib.Structure,
  group: structure_lib.Group,
  source: np.ndarray | Sequence,
) -> np.ndarray:
  """The sources of a group as integers.

  Raises:
    ValueError: no channel, one that does not exist, fewer than the program takes, or
      a group that is locked.

  >>> checked(None, structure_lib.Group('a:-1', 3), [2, 0]).tolist()
  [2, 0]
  """
  source = np.asarray(source)
  # A layer that has to stay may still be there more often.
  stays = {*source.ravel().tolist()} == {*range(group.size)} and group.repeats
  if group.locked and not (
    stays or np.array_equal(source, np.arange(group.size))
  ):
    raise ValueError(next_steps.said(group.name, group.locked))
  if source.size == 0 or source.ndim not in (1, 1 + len(group.within)):
    raise ValueError(
      f'{group.name}: the sources have shape {source.shape}; a list of channels, one'
      f' at least, is expected{_rows(group)}.'
    )
  rows = [structure.groups[g].size for g in group.within]
  for n, outer, want in zip(
    source.shape[:-1], group.within, rows, strict=False
  ):
    if n not in (1, want):
      raise ValueError(
        f'{group.name}: the sources have {n} rows for {outer}, which has {want}'
        ' channels: one for each is expected, or one for all.'
      )
  if not np.issubdtype(source.dtype, np.integer):
    raise ValueError(f'{group.name}: sources are {source.dtype}, not integers.')
  if source.min() < 0 or source.max() >= group.size:
    raise ValueError(
      f'{group.name} has channels 0 to {group.size - 1}, and the plan takes channels'
      f' {source.min()} to {source.max()}.'
    )
  rows = source.reshape(-1, source.shape[-1]).tolist()
  left = min(len(set(row)) for row in rows)
  if left < group.least:
    raise ValueError(
      f'{group.name}: {left} are left, and the program takes {group.least} of them.'
      ' Keep as many.'
    )
  return source


def _rows(group) -> str:
  if not group.within:
    return ''
  return (
    f', or lists of one size for each channel of {" and ".join(group.within)}'
  )
