"""Operations that only move entries: where each axis and each entry comes from.

Reshape, transpose, slice and their kind compute nothing. What is known of an array
follows them in one of two ways:

  by axis    an axis is made of *pieces* (axis of the array it comes from, size),
             the piece whose index changes slowest first;
  by entry   an array that says something of every entry moves as the entries do. It
             has size 1 on axes along which it says the same of all.

Below, a 2 x 3 array is transposed. Its axes are called -2 and -1, its entries 0 to 5.

  >>> move = Move('transpose', {'permutation': (1, 0)}, (2, 3), ((3, 2),))
  >>> move.axes(whole((2, 3)))
  [[((-1, 3),), ((-2, 2),)]]
  >>> print(move.entries(np.arange(6).reshape(2, 3))[0])
  [[0 3]
   [1 4]
   [2 5]]
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np

Pieces = tuple[tuple[int, int], ...]  # of one axis: (axis, size), major first

# What gives each operand back as it came, whatever is known of it.
UNCHANGED = frozenset(
  'pvary sharding_constraint copy copy_p stop_gradient optimization_barrier'.split()
)


class Move(NamedTuple):
  """One operation that moves entries.

  Attributes:
    primitive: its name.
    params: its parameters.
    shape: of the operand that is followed.
    shapes: of the results.
  """

  primitive: str
  params: dict[str, Any]
  shape: tuple[int, ...]
  shapes: Sequence[tuple[int, ...]]

  def axes(self, pieces: Sequence[Pieces]) -> list[list[Pieces]] | None:
    """The pieces of each axis of each result, from those of the operand.

    None where the operation does not move entries, or mixes axes.
    """
    rule = _AXES.get(self.primitive)
    return rule and rule(self, [pieces[i] for i in self._order])

  @property
  def _order(self) -> Sequence[int]:
    """The order in which it reads the axes: a reshape may transpose first."""
    order = self.params.get('dimensions')
    permutes = self.primitive == 'reshape' and order is not None
    return order if permutes else range(len(self.shape))

  def entries(self, known: np.ndarray) -> list[np.ndarray] | None:
    """What is known of the entries of each result, from that of the operand's.

    None where the operation does not move entries. Axes of `known` along which all
    are alike may have size 1, those of the result do.
    """
    if self.primitive not in (*_NARROW, *_WIDE):
      return None
    if self.primitive in _NARROW:
      return _NARROW[self.primitive](self, known)
    if known.size == 1:
      return [known.reshape((1,) * len(shape)) for shape in self.shapes]
    known = np.broadcast_to(known, self.shape).transpose(self._order)
    return [narrow(x) for x in _WIDE[self.primitive](self, known)]


def of(eqn, operand: int = 0) -> Move | None:
  """How an equation moves one of its operands; None where that is not moved."""
  name = eqn.primitive.name
  if not moves_operand(name, operand):
    return None
  shape = getattr(eqn.invars[operand].aval, 'shape', ())
  return Move(name, eqn.params, shape, [v.aval.shape for v in eqn.outvars])


def moves_operand(name: str, operand: int) -> bool:
  """Whether a primitive moves this operand; others are indices or fillings."""
  if name in _FIRST_OF_SEVERAL:
    return operand >= _FIRST_OF_SEVERAL[name]
  return operand == 0


def moves_axes(name: str) -> bool:
  """Whether a primitive has a rule for axes."""
  return name in _AXES


def narrow(known: np.ndarray) -> np.ndarray:
  """Size 1 on the axes along which the same is known of all.

  >>> narrow(np.array([[1, 2], [1, 2]]))
  array([[1, 2]])
  """
  for axis, n in enumerate(known.shape):
    if n > 1:
      first = known.take([0], axis)
      # A stride of 0 is an axis that was broadcast: no need to look.
      if known.strides[axis] == 0 or (known == first).all():
        known = first
  return known


# ---------------------------------------------------------------------- pieces


def whole(shape: Sequence[int]) -> list[Pieces]:
  """The pieces of an array that nothing has moved yet.

  >>> whole((4, 6))
  [((-2, 4),), ((-1, 6),)]
  """
  return [((i - len(shape), n),) for i, n in enumerate(shape)]


def fit(pieces: Pieces, n: int) -> Pieces:
  """Rescales the major piece where an axis was cut into shards, or joined.

  >>> fit(((-2, 4), (-1, 6)), 12)
  ((-2, 2), (-1, 6))
  """
  size = math.prod(s for _, s in pieces)
  if pieces and size != n and (n * pieces[0][1]) % size == 0:
    (axis, first), *rest = pieces
    return ((axis, first * n // size), *rest)
  return pieces


def deal(flat: Sequence[tuple[int, int]], sizes) -> list[Pieces] | None:
  """Deals pieces, major first, to axes of new sizes; None where they mix.

  >>> deal([(-2, 4), (-1, 6)], (24,))
  [((-2, 4), (-1, 6))]
  >>> deal([(-2, 4), (-1, 6)], (2, 2, 6))
  [((-2, 2),), ((-2, 2),), ((-1, 6),)]
  >>> deal([(-2, 4), (-1, 6)], (3, 8)) is None
  True
  """
  flat = [p for p in flat if p[1] != 1]
  out = []
  for n in sizes:
    axis_pieces = []
    while n > 1:
      if not flat:
        return None
      axis, size = flat.pop(0)
      if n % size == 0:  # all of the piece, and more of the next
        axis_pieces.append((axis, size))
        n //= size
      elif size % n == 0:  # the major part; what is left waits
        axis_pieces.append((axis, n))
        flat.insert(0, (axis, size // n))
        n = 1
      else:
        return None
    out.append(tuple(axis_pieces))
  return out


# ------------------------------------------------------------- rules for axes
# (move, pieces of the operand) -> pieces of each result, or None.


def _same_axes(move, pieces):
  return [pieces]


def _transposed_axes(move, pieces):
  return [[pieces[i] for i in move.params['permutation']]]


def _squeezed_axes(move, pieces):
  gone = move.params['dimensions']
  return [[p for i, p in enumerate(pieces) if i not in gone]]


def _unstacked_axes(move, pieces):
  gone = move.params['axis']
  return [[p for i, p in enumerate(pieces) if i != gone]] * len(move.shapes)


def _reshaped_axes(move, pieces):
  dealt = deal([p for axis in pieces for p in axis], move.shapes[0])
  return None if dealt is None else [dealt]


def _broadcast_axes(move, pieces):
  (shape,) = move.shapes
  out = [()] * len(shape)
  for i, j in enumerate(move.params['broadcast_dimensions']):
    if shape[j] == move.shape[i]:  # or else one entry is repeated
      out[j] = pieces[i]
  return [out]


def _cut_axes(move, pieces):
  """A part of an axis is a piece of that size, if it was one piece."""

  def part(axis, before, after):
    if before == after:
      return axis
    return ((axis[0][0], after),) if len(axis) == 1 and after > 1 else ()

  return [list(map(part, pieces, move.shape, shape)) for shape in move.shapes]


def _stacked_axes(move, pieces):
  at = move.params['axis']
  return [[*pieces[:at], (), *pieces[at:]]]


def _joined_axes(move, pieces):
  return [list(map(fit, pieces, move.shapes[0]))]


def _gathered_axes(move, pieces):
  p = move.params
  axis = p['all_gather_dimension']
  if not p['tiled'] or p['axis_index_groups'] is not None or not pieces[axis]:
    return None
  return _joined_axes(move, pieces)


# What moves all its operands from this one on.
_FIRST_OF_SEVERAL = {'concatenate': 0, 'stack': 0, 'select_n': 1}

_AXES: dict[str, Callable] = {
  'all_gather': _gathered_axes,
  'broadcast_in_dim': _broadcast_axes,
  'concatenate': _joined_axes,
  'convert_element_type': _same_axes,
  'dynamic_slice': _cut_axes,
  'pad': _joined_axes,
  'reduce_precision': _same_axes,
  'reshape': _reshaped_axes,
  'rev': _same_axes,
  'select_n': _same_axes,
  'slice': _cut_axes,
  'split': _cut_axes,
  'squeeze': _squeezed_axes,
  'stack': _stacked_axes,
  'tile': _joined_axes,
  'transpose': _transposed_axes,
  'unstack': _unstacked_axes,
}


# ---------------------------------------------------------- rules for entries
# (move, array) -> an array for each result.


def _transposed(move, known):
  return [known.transpose(move.params['permutation'])]


def _broadcast(move, known):
  inner = [1] * len(move.shapes[0])
  for i, place in enumerate(move.params['broadcast_dimensions']):
    inner[place] = known.shape[i]
  return [known.reshape(inner)]


def _reshaped(move, known):
  return [known.reshape(move.shapes[0])]


def _sliced(move, known):
  p = move.params
  strides = p['strides'] or (1,) * known.ndim
  starts, limits = p['start_indices'], p['limit_indices']
  return [known[tuple(map(slice, starts, limits, strides))]]


def _reversed(move, known):
  return [np.flip(known, move.params['dimensions'])]


def _split(move, known):
  ends = np.cumsum(move.params['sizes'])[:-1]
  return np.split(known, ends, move.params['axis'])


# What keeps axes of size 1 as they are, and what needs them broadcast.
_NARROW: dict[str, Callable] = {
  'broadcast_in_dim': _broadcast,
  'transpose': _transposed,
}
_WIDE: dict[str, Callable] = {
  'expand_dims': _reshaped,
  'reshape': _reshaped,
  'rev': _reversed,
  'slice': _sliced,
  'split': _split,
  'squeeze': _reshaped,
}


def common_blocks(old, new):
  """Pairs the axes of two shapes that must be merged or split together.

  Axes of size one stand alone, so that an axis keeps its own block.

  >>> common_blocks((2, 3, 4), (6, 2, 2))
  [([0, 1], [0]), ([2], [1, 2])]
  >>> common_blocks((1, 6), (6, 1))
  [([0], []), ([1], [0]), ([], [1])]
  """
  blocks, i, j = [], 0, 0
  while i < len(old) or j < len(new):
    if i < len(old) and old[i] == 1:
      both = j < len(new) and new[j] == 1
      blocks.append(([i], [j] if both else []))
      i, j = i + 1, j + both
      continue
    if j < len(new) and new[j] == 1:
      blocks.append(([], [j]))
      j += 1
      continue
    rows, columns, m, n = [i], [j], old[i], new[j]
    while m != n:
      if m < n:
        i += 1
        rows, m = [*rows, i], m * old[i]
      else:
        j += 1
        columns, n = [*columns, j], n * new[j]
    blocks.append((rows, columns))
    i, j = i + 1, j + 1
  return blocks
