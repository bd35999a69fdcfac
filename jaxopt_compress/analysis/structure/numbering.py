"""Kinds of integers that number the channels of an axis.

A kind is an integer: `new` makes one, and what is compared or chosen between is of one
kind. The numbers in an input have no axis until they index one. What is computed from
numbers in another way keeps the channels, whichever comes first.

  >>> channels = channels_lib.Channels()
  >>> kinds, rows = Numbering(channels), channels.axis(5)
  >>> ids = kinds.new()
  >>> kinds.bind(ids, rows, 'rows are indexed')
  >>> channels.locks(rows[0])
  ('an input holds their numbers',)
  >>> kinds.lock(ids, 'added up')
  >>> channels.locks(rows[0])[1:]
  ('added up',)
"""

from jaxopt_compress.analysis.structure import channels as channels_lib

Axis = channels_lib.Axis

# Locks that say what goes into the program and comes out of it, no more.
INPUT_SIZE = 'the size of an input'
RESULT_SIZE = 'the size of a result'
INPUT_NUMBERS = 'an input holds their numbers'
RESULT_NUMBERS = 'a result holds their numbers'
BOUNDARY = (INPUT_SIZE, RESULT_SIZE, INPUT_NUMBERS, RESULT_NUMBERS)


class Numbering:
  """Which kind of numbers is of which axis, and which kinds are one."""

  def __init__(self, channels: channels_lib.Channels):
    self._channels = channels
    self._parent: list[int] = []
    self._axis: dict[int, Axis] = {}
    self._locks: dict[int, list[str]] = {}
    self._counts: dict[int, set[int]] = {}

  def new(self, axis: Axis | None = None) -> int:
    """Numbers of the channels of an axis; without one, those in an input."""
    self._parent.append(len(self._parent))
    kind = len(self._parent) - 1
    if axis is None:
      self._locks[kind] = [INPUT_NUMBERS]
    else:
      self._axis[kind] = axis
    return kind

  def axis(self, kind: int) -> Axis | None:
    """The axis that they are of, or None where it is not known yet."""
    return self._axis.get(self._find(kind))

  def bind(self, kind: int, axis: Axis, why: str) -> None:
    """They number the channels of this axis; `why` where that cannot be."""
    kind = self._find(kind)
    known = self._axis.setdefault(kind, axis)
    if self._channels.size(known) == self._channels.size(axis):
      self._channels.tie(known, axis)
    else:
      self._locks.setdefault(kind, []).append(why)
      self._channels.lock(axis, why)
    for n in self._counts.get(kind, ()):
      if n != self._channels.size(axis):
        self._locks.setdefault(kind, []).append(why)
    for lock in self._locks.get(kind, ()):
      self._channels.lock(known, lock)

  def tie(self, a: int, b: int, why: str) -> None:
    """Two kinds are one."""
    a, b = self._find(a), self._find(b)
    if a == b:
      return
    self._parent[b] = a
    for table in (self._locks, self._counts):
      if b in table:
        old = table.pop(b)
        table[a] = type(old)([*table.get(a, ()), *old])
    other = self._axis.pop(b, None)
    axis = self._axis.get(a, other)
    if axis is not None:
      self.bind(a, axis, why)
    if other is not None:
      self.bind(a, other, why)

  def lock(self, kind: int, why: str) -> None:
    """Keeps the channels that they number, for a reason."""
    kind = self._find(kind)
    self._locks.setdefault(kind, []).append(why)
    if kind in self._axis:
      self._channels.lock(self._axis[kind], why)

  def counted(self, kind: int, n: int) -> bool:
    """Whether there are n of them; what is not known yet is asked for later."""
    kind = self._find(kind)
    if kind in self._axis:
      return self._channels.size(self._axis[kind]) == n
    self._counts.setdefault(kind, set()).add(n)
    return True

  def _find(self, kind: int) -> int:
    while self._parent[kind] != kind:
      kind = self._parent[kind]
    return kind
