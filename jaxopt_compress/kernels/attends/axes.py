"""Axes of values as products of parts, which moves put in another order.

    q [batch, time, heads * d]  --reshape, transpose-->  [batch, heads, time, d]

A layout names what each axis of a value runs over: the parts that it is the product
of, in order, none for an axis of size one. So it is known where an axis goes that is
split, merged with others or moved, and which axes of two values are the same one.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import math

# Of each axis the parts that it is made of; of an axis of size one, none.
Layout = tuple[tuple[int, ...], ...]


class Parts:
  """What axes are products of. A part may turn out to be a product itself."""

  def __init__(self):
    self._sizes: list[int] = []
    self._made_of: dict[int, tuple[int, ...]] = {}

  def new(self, shape: Sequence[int]) -> Layout:
    """The layout of a value of which nothing is known."""
    return tuple(self._part(n) for n in shape)

  def _part(self, size) -> tuple[int, ...]:
    if size == 1:
      return ()
    self._sizes.append(size)
    return (len(self._sizes) - 1,)

  def size(self, parts: Iterable[int]) -> int:
    return math.prod(self._sizes[p] for p in parts)

  def known(self, parts: Iterable[int]) -> tuple[int, ...]:
    """Parts as they are known by now."""
    found = []
    for p in parts:
      inside = self._made_of.get(p)
      found += [p] if inside is None else self.known(inside)
    return tuple(found)

  def flat(self, layout: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The parts of all axes, in order."""
    return self.known(p for axis in layout for p in axis)

  def reshaped(
    self, layout: Iterable[Sequence[int]], shape: Sequence[int]
  ) -> Layout | None:
    """The layout of a value in another shape; None where parts do not divide."""
    parts, axes = list(self.flat(layout)), []
    for size in shape:
      axis = []
      while size > 1:
        if not parts:
          return None
        here = self._sizes[parts[0]]
        if size % here:
          if here % size:
            return None
          # The axis is the outer factor of this part.
          parts[:1] = self._split(parts[0], size)
          here = size
        axis.append(parts.pop(0))
        size //= here
      axes.append(tuple(axis))
    return None if parts else tuple(axes)

  def _split(self, part, outer):
    # Layouts that were given out name the part still: `known` says what it became.
    inside = self._part(outer) + self._part(self._sizes[part] // outer)
    self._made_of[part] = inside
    return inside

  def same(self, a: Layout, b: Layout, free: Sequence[int] = ()) -> bool:
    """Whether two layouts are one, where parts `free` of `a` become those of `b`."""
    if len(a) != len(b):
      return False
    return all(
      self._one(list(self.known(x)), list(self.known(y)), free)
      for x, y in zip(a, b, strict=True)
    )

  def _one(self, a, b, free) -> bool:
    """As `same`, of one axis."""
    while a and b:
      if a[0] == b[0]:
        a.pop(0)
        b.pop(0)
        continue
      if a[0] not in self.known(free):
        return False
      # A free part may be split to become the next part of the other, outermost first.
      size, other = self._sizes[a[0]], self._sizes[b[0]]
      if size % other:
        return False
      if size == other:
        self._made_of[a.pop(0)] = (b.pop(0),)
      else:
        a[:1] = self._split(a[0], other)
    return not a and not b


def before(parts: Parts, eqn, layout: Layout) -> Layout | None:
  """What the operand of a move is like, by the layout of its result.

  None for equations that are no moves.
  """
  if not eqn.invars:
    return None
  p, shape = eqn.params, eqn.invars[0].aval.shape
  match eqn.primitive.name:
    case 'transpose':
      # Axis i of the result is axis permutation[i] of the operand.
      found = dict(zip(p['permutation'], layout, strict=True))
      return tuple(found[i] for i in range(len(shape)))
    case 'reshape' if p['dimensions'] is None and len(eqn.invars) == 1:
      return parts.reshaped(layout, shape)
    case 'squeeze' | 'expand_dims':
      return parts.reshaped(layout, shape)
    case 'broadcast_in_dim' if len(eqn.invars) == 1:
      # An axis of size one is spread over parts that the operand knows nothing of.
      return tuple(
        () if n == 1 else layout[i]
        for i, n in zip(p['broadcast_dimensions'], shape, strict=True)
      )
    case 'copy' | 'stop_gradient':
      return layout
  return None


def after(parts: Parts, eqn, layout: Layout) -> Layout | None:
  """What the result of a move is like, by the layout of its operand."""
  shape = eqn.outvars[0].aval.shape
  match eqn.primitive.name:
    case 'transpose':
      return tuple(layout[i] for i in eqn.params['permutation'])
    case 'reshape' if eqn.params['dimensions'] is None:
      return parts.reshaped(layout, shape)
    case 'squeeze' | 'expand_dims':
      return parts.reshaped(layout, shape)
    case 'broadcast_in_dim' if eqn.invars[0].aval.size == math.prod(shape):
      return parts.reshaped(layout, shape)
    case 'copy':
      return layout
  return None


def beside(layout: Layout, v) -> Layout:
  """The layout of an operand that is broadcast to a layout."""
  shape = getattr(v.aval, 'shape', ())
  if len(shape) != len(layout):
    return ()
  return tuple(
    () if n == 1 else axis for n, axis in zip(shape, layout, strict=True)
  )
