"""Numbers written in a program that are the size of an axis, or its root.

    mean      sum(x) / 768         attention   q k * 0.125     0.125 = 1 / sqrt(64)

A program that takes all sizes from its parameters shows such numbers when it is traced
with other sizes. One that has sizes of its own is not traced with others: there, a
number that fits counts as one that depends on the size. So a group may be said to be
inexact that is not, and is never said to be exact for nothing.
"""

from typing import Any
from typing import NamedTuple

from jaxopt_compress.analysis.structure import channels as channels_lib
from jaxopt_compress.core import jaxprs

Axis = channels_lib.Axis

# What gives the sums that it gets.
_PASS = frozenset(
  'convert_element_type broadcast_in_dim reshape squeeze expand_dims neg sqrt'
  ' integer_pow square copy'.split()
)


# The powers of a size that a number may be.
_POWERS = (1.0, -1.0, 0.5, -0.5)


class Fit(NamedTuple):
  """A number that fits the size of an axis.

  Attributes:
    axis: the channels.
    said: the number, and where it is.
    eqn, operand: the operation that has it, and its place among the operands.
    power: of the size, that the number is.
  """

  axis: Axis
  said: str
  eqn: Any
  operand: int
  power: float


class SizeNumbers:
  """Follows sums, and what they are multiplied with or divided by.

  Attributes:
    found: the numbers that fit; for each, axes that were summed over come first, then
      the last ones.
  """

  def __init__(self, channels: channels_lib.Channels):
    self._channels = channels
    # For each variable that is a sum, the axes that were summed over.
    self._sums: dict[Any, tuple[Axis, ...]] = {}
    self.found: list[Fit] = []

  def meet(self, at: Any, inputs: list) -> None:
    """Meets an equation, and the values of its operands."""
    eqn = at.eqn
    name, operands = eqn.primitive.name, eqn.invars
    if name in ('mul', 'div'):
      for i, (u, x) in enumerate(zip(operands, inputs, strict=True)):
        v = operands[1 - i]
        if jaxprs.is_var(u) and not jaxprs.is_var(v) and not v.aval.shape:
          self._meet_number(at, 1 - i, x, self._sums.get(u, ()))
    summed = ()
    if name == 'reduce_sum':
      summed = tuple(inputs[0].axes[i] for i in eqn.params['axes'])
    elif name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      summed = tuple(inputs[0].axes[i] for i in contracted)
    elif name in (*_PASS, 'mul', 'div'):
      known = (self._sums.get(v) for v in operands if jaxprs.is_var(v))
      summed = next(filter(None, known), ())
    if summed:
      self._sums[eqn.outvars[0]] = summed

  def _meet_number(self, at, operand, x, summed):
    number = abs(float(at.eqn.invars[operand].val))
    over = tuple(c for axis in summed for c in axis)
    axes = [over, *reversed(x.axes)]
    parts = [(c,) for a in axes for c in self._channels.factors(a)]
    for axis in dict.fromkeys([*axes, *parts]):
      n = self._channels.size(axis)
      powers = [p for p in _POWERS if abs(number - n**p) < 1e-4 * n**p]
      if n > 1 and powers:
        name = at.eqn.primitive.name
        said = f'{name} by {number:.6g}, which fits their number {n}'
        said = f'{said}, at {at.source or at.path}'
        self.found.append(Fit(axis, said, at.eqn, operand, powers[0]))
