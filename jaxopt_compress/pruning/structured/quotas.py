"""How many channels of each group stay.

    alone       n = size * fraction
    together    n of all groups = (sum of their sizes) * fraction, the most important
                ones of all: one threshold for them

between a floor and a cap for each, and then rounded to multiples.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from jaxopt_compress.core import choices

# What a product of a fraction and a size may fall short of a whole number.
_SLACK = 1e-6


@dataclasses.dataclass(frozen=True)
class Limits:
  """What holds for each group.

  Attributes:
    at_least, at_most: of its channels: a fraction below or at 1.0, or a whole number.
      Where they contradict each other, as for small groups, at least holds.
    multiple, rounding: of what sizes are multiples, and how they become so: 'down',
      'nearest' or 'up'.
  """

  at_least: float = 1
  at_most: float = 1.0
  multiple: int = 1
  rounding: str = 'down'

  def __post_init__(self):
    choices.one_of('rounding', self.rounding, ('down', 'nearest', 'up'), '=')
    numbers = {'at_least': self.at_least, 'at_most': self.at_most}
    wrong = {k: n for k, n in numbers.items() if not _is_amount(n)}
    if wrong or not _is_amount(self.multiple) or self.multiple < 1:
      raise ValueError(
        f'multiple={self.multiple}, at_least={self.at_least}, at_most='
        f'{self.at_most}: whole numbers from 1, or, of the last two, fractions in'
        ' (0, 1], are expected.'
      )
    kinds = [isinstance(n, float) for n in numbers.values()]
    if kinds[0] == kinds[1] and self.at_least > self.at_most:
      raise ValueError(
        f'at_least={self.at_least} is more than at_most={self.at_most}.'
      )

  def floor(self, size: int) -> int:
    """So many of a group stay in any case."""
    n = self.at_least
    n = (
      n if isinstance(n, (int, np.integer)) else int(np.ceil(n * size - _SLACK))
    )
    return min(max(n, 1), size)

  def cap(self, size: int) -> int:
    """No more of a group stay."""
    n = self.at_most
    n = n if isinstance(n, (int, np.integer)) else int(n * size + _SLACK)
    return min(max(n, self.floor(size)), size)

  def rounded(self, n: int, size: int) -> int:
    """The size that a group gets that was to have `n` channels of `size`.

    >>> [Limits(multiple=4, rounding=r).rounded(11, 16) for r in ('down', 'up')]
    [8, 12]
    """
    m = self.multiple
    if size < m or n == size:
      return size
    up = -(-n // m) * m
    down = n // m * m
    n = {'down': down, 'up': up, 'nearest': up if up - n < n - down else down}[
      self.rounding
    ]
    floor = -(-self.floor(size) // m) * m
    return min(max(n, floor), size)


def alone(size: int, fraction: float, limits: Limits) -> int:
  """How many channels of a group by itself are to stay.

  Args:
    size: of the group.
    fraction: of it, or, a whole number above 1, so many.
    limits: what holds for it.
  """
  exact = isinstance(fraction, int) and fraction > 1
  n = fraction if exact else int(size * fraction + _SLACK)
  return int(np.clip(n, limits.floor(size), limits.cap(size)))


def together(
  ranked: Mapping[str, np.ndarray], fraction: float, limits: Limits
) -> dict[str, int]:
  """How many channels of each of several groups are to stay, by one threshold.

  Args:
    ranked: {group: the importances of its channels, the largest first}.
    fraction: of all channels.
    limits: what holds for each group; what one may not give, others do.

  >>> together({'a': np.array([9, 8, 7]), 'b': np.array([6, 1])}, 0.6, Limits())
  {'a': 2, 'b': 1}
  """
  if len(ranked) == 1:
    ((name, x),) = ranked.items()
    return {name: alone(x.size, float(fraction), limits)}
  counts = {name: limits.floor(x.size) for name, x in ranked.items()}
  total = int(sum(x.size for x in ranked.values()) * fraction + _SLACK)
  left = max(total - sum(counts.values()), 0)
  # Between floor and cap, channels of all groups compete.
  rivals = {n: x[counts[n] : limits.cap(x.size)] for n, x in ranked.items()}
  owner = np.repeat(np.arange(len(rivals)), [x.size for x in rivals.values()])
  order = np.argsort(-np.concatenate([*rivals.values()]), kind='stable')
  won = np.bincount(owner[order[:left]], minlength=len(rivals))
  return {
    name: counts[name] + int(n) for name, n in zip(rivals, won, strict=True)
  }


def _is_amount(n) -> bool:
  whole = isinstance(n, (int, np.integer)) and n >= 1
  return whole or (isinstance(n, float) and 0 < n <= 1)
