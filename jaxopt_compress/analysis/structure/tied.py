"""Which axes of the values of a program hold the same channels.

The walk of `algebra` goes through a program with the channels of each axis of each
value (`channels`), and with what becomes of it where a channel is masked: where all
parameters are zero at a channel, a value *vanishes* there or not. So

    sum over the channel         exact if what is summed vanishes
    maximum over the channel     not exact
    1 / x                        not exact where x vanishes

and `structure` can say whether a network without the channel computes the same as the
one in which it is masked. Whether the program has the number of channels in it, as a
mean has, shows when it is traced with another one.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import moved
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.structure import channels as channels_lib
from jaxopt_compress.analysis.structure import numbering
from jaxopt_compress.analysis.structure import size_numbers

Axis = channels_lib.Axis

# Why an axis of layers is not exact.
LOOP = 'a loop runs once for each'

# Of a value that is zero, and of one that vanishes for no channel.
everywhere = None
nowhere: frozenset[int] = frozenset()

Zeros = frozenset[int] | None


class Value(NamedTuple):
  """What is known of a value of the program.

  Attributes:
    axes: the channels of each axis.
    zeros: the channels for which it vanishes where they are masked.
    numbers: where its entries number channels, the kind of the numbers; of several
      in a row, along the last axis, the kind of each, or None.
  """

  axes: tuple[Axis, ...]
  zeros: Zeros = nowhere
  numbers: tuple[int | None, ...] = ()


class Tied(algebra.Algebra):
  """Ties channels, and notes what is not exact where they go."""

  def __init__(self, rules: dict[str, Callable]):
    self.rules = rules
    self.channels = channels_lib.Channels()
    self.met: list[tuple[Axis, ...]] = []
    self.numbering = numbering.Numbering(self.channels)
    self.size_numbers = size_numbers.SizeNumbers(self.channels)
    self._inexact: list[tuple[Axis, str]] = []
    self._turns: dict[walk.At, Axis] = {}
    self._devices: dict[tuple[walk.At, tuple[str, ...]], Axis] = {}
    self._taken: list[tuple[Axis, int]] = []

  # ----------------------------------------------------------------- for rules

  def said(self, at: walk.At, what: str = '') -> str:
    """An operation and its line, as a reason."""
    name, line = at.eqn.primitive.name, at.source or at.path
    model = at.model_line
    known = not model or model.partition(' ')[0] in line
    called = '' if known else f', of {model}'
    return ' '.join(w for w in (name, what, 'at', line) if w) + called

  def lock(self, x: Value, why: str):
    """Keeps all channels of a value."""
    for axis in x.axes:
      self.channels.lock(axis, why)
    self.lock_numbers(x, why)

  def lock_numbers(self, x: Value, why: str):
    """Keeps the channels that the entries of a value number."""
    for kind in x.numbers:
      if kind is not None:
        self.numbering.lock(kind, why)

  def tie_numbers(self, x: Value, y: Value, why: str):
    """The entries of two values number the same channels."""
    if len(x.numbers) == len(y.numbers) == 1:
      self.numbering.tie(x.numbers[0], y.numbers[0], why)
    else:
      self.lock_numbers(x, why)
      self.lock_numbers(y, why)

  def counted(self, x: Value, n: int) -> bool:
    """Whether x numbers n channels."""
    return len(x.numbers) == 1 and self.numbering.counted(x.numbers[0], n)

  def takes(self, axis: Axis, n: int):
    """Notes that the program takes n channels of an axis, so that n must be left."""
    self._taken.append((axis, n))

  def inexact(self, axis: Axis, why: str):
    """Notes that the result is another one if channels of the axis go."""
    self._inexact.append((axis, why))

  def sums_over(self, at: walk.At, axis: Axis, zeros: Zeros):
    """Meets a sum over an axis of what vanishes for some channels."""
    left = self.outside(Value((axis,), zeros))
    self.inexact(tuple(left), self.said(at, 'sums what does not vanish'))

  def meets_zero(
    self, at: walk.At, x: Value, what: str = 'meets zero where they are masked'
  ):
    """Meets an operation that is not finite at zero, or has no gradient there."""
    here = frozenset(c for axis in x.axes for c in self.channels.leaves(axis))
    if x.zeros is not everywhere:
      self.inexact(
        tuple(here - self.outside(x)),
        self.said(at, what),
      )

  def meet(self, zeros: Sequence[Zeros]) -> Zeros:
    """The channels for which all vanish."""
    known = [self._leaves(z) for z in zeros if z is not everywhere]
    return frozenset.intersection(*known) if known else everywhere

  def unite(self, zeros: Sequence[Zeros]) -> Zeros:
    """The channels for which one vanishes."""
    everything = any(z is everywhere for z in zeros)
    return everywhere if everything else frozenset().union(*zeros)

  def only(self, zeros: Zeros, axes: Iterable[Axis]) -> Zeros:
    """Of the channels for which a value vanishes, those on some axes."""
    if zeros is everywhere:
      return zeros
    here = frozenset(c for axis in axes for c in self.channels.leaves(axis))
    return self._leaves(zeros) & here

  def apart(self, x: Value, axes: Sequence[int]):
    """(axes that go, axes that stay) of a value."""
    gone = [a for i, a in enumerate(x.axes) if i in axes]
    return gone, tuple(a for i, a in enumerate(x.axes) if i not in axes)

  def _leaves(self, zeros) -> frozenset[int]:
    return frozenset(self.channels.leaves(zeros))

  def outside(self, x: Value) -> frozenset[int]:
    """The channels of a value for which it does not vanish."""
    here = frozenset(c for axis in x.axes for c in self.channels.leaves(axis))
    return (
      frozenset() if x.zeros is everywhere else here - self._leaves(x.zeros)
    )

  def devices(self, at: walk.At, names: tuple[str, ...], n: int) -> Axis:
    """The n devices along axes of the mesh of a shard_map, which `at` is or is in."""
    around = [at, *reversed([outer for outer, _ in at.around])]
    at = next(a for a in around if a.eqn.primitive.name == 'shard_map')
    if (at, names) not in self._devices:
      axis = self.channels.axis(n, f'one for each device of {"*".join(names)}')
      self._devices[at, names] = axis
      # All that a device has is of this device.
      self._turns[at] = (*self._turns.get(at, ()), *axis)
    return self._devices[at, names]

  def remarks(self) -> dict[int, list[str]]:
    """Why what is left is not exact, by leaf."""
    return self._by_leaf(self._inexact)

  def perhaps(self) -> dict[int, list[str]]:
    """Which numbers of the program may be those of the channels, by leaf."""
    found = self.size_numbers.found
    return self._by_leaf([(fit.axis, fit.said) for fit in found])

  def _by_leaf(self, remarks):
    found: dict[int, list[str]] = {}
    for axis, why in remarks:
      for leaf in self.channels.leaves(axis):
        found.setdefault(leaf, []).append(why)
    return {leaf: list(dict.fromkeys(whys)) for leaf, whys in found.items()}

  def taken(self) -> dict[int, int]:
    """How many channels of a leaf have to be left."""
    least: dict[int, int] = {}
    for axis, n in self._taken:
      leaves = list(self.channels.leaves(axis))
      if len(leaves) == 1:  # else it takes their products
        least[leaves[0]] = max(n, least.get(leaves[0], 1))
    return least

  # ------------------------------------------------------------ of the algebra

  def apply(self, at, inputs):
    self.channels.where = functools.partial(self.said, at)
    self.size_numbers.meet(at, inputs)
    outs = super().apply(at, inputs)
    # Inside of a loop over layers all is of a layer, but for what is carried on.
    loops = tuple(self._turns.get(outer, ()) for outer, _ in at.around)
    self.met += [(*loops, *x.axes) for x in outs]
    return outs

  def plain(self, aval, why: str = 'nothing is known of it') -> Value:
    shape = getattr(aval, 'shape', ())
    return Value(tuple(self.channels.axis(n, why) for n in shape))

  def given(self, aval) -> Value:
    """An argument of the program."""
    x = self.plain(aval, numbering.INPUT_SIZE)
    integer = jax.dtypes.issubdtype(aval.dtype, np.integer)
    return x._replace(numbers=(self.numbering.new(),)) if integer else x

  def give(self, x: Value):
    """Meets a result of the program."""
    for axis in x.axes:
      self.channels.lock(axis, numbering.RESULT_SIZE)
    self.lock_numbers(x, numbering.RESULT_NUMBERS)

  def constant(self, x: Any) -> Value:
    shape, known, zeros = np.shape(x), None, nowhere
    if math.prod(shape) < 2**20 and hasattr(x, 'dtype') or not shape:
      try:
        known = moved.narrow(np.asarray(x))
        # NaN stands for what there is not, as a variance of nothing.
        said = (known != 0) & (known == known)
        zeros = nowhere if np.any(said) else everywhere
      except (TypeError, ValueError):  # keys
        pass
    # Where all are alike, fewer are so, too.
    alike = (1,) * len(shape) if known is None else known.shape
    alike = [known is not None and n == 1 for n in alike]
    why = f'a constant of the program of shape {shape} has as many'
    axes = tuple(
      self.channels.axis(n, '' if same else why)
      for n, same in zip(shape, alike, strict=True)
    )
    return Value(axes, zeros)

  def unknown(self, at, inputs):
    why = self.said(at)
    for x in inputs:
      self.lock(x, why)
    return [self.plain(v.aval, why) for v in at.eqn.outvars]

  def join(self, cases, aval):
    first, *others = cases
    for other in others:
      for a, b in zip(first.axes, other.axes, strict=True):
        self.channels.tie(a, b)
      if first.numbers or other.numbers:
        self.tie_numbers(first, other, 'branches or turns give other numbers')
    zeros = self.meet([x.zeros for x in cases])
    return Value(first.axes, zeros, first.numbers)

  def carry(self, x, aval):
    self.met.append(x.axes)
    # One turn stands for all: whether it still vanishes then is not known.
    return Value(x.axes, nowhere, x.numbers)

  def scanned(self, at, xs):
    # A layer of zeros passes on what it gets only where there is a residual.
    for x in xs[:1]:
      self._turns[at] = x.axes[0]
      self.inexact(x.axes[0], LOOP)
    for x, other in zip(xs, xs[1:]):
      self.channels.tie(x.axes[0], other.axes[0])

  def layer(self, x, turn, aval):
    return Value(x.axes[1:], x.zeros, x.numbers)

  def cut(self, at, x, spec, aval):
    axes = []
    for axis, n, names in zip(
      x.axes, aval.shape, _entries(spec, x.axes), strict=True
    ):
      if names:
        parts = self.channels.split(axis, n)
        devices = self.devices(at, names, self.channels.size(axis) // n)
        if parts is None:
          axis = self.channels.axis(n, 'a mesh cuts what it is made of')
        else:
          self.channels.tie(parts[0], devices)
          axis = parts[1]
      axes.append(axis)
    return x._replace(axes=tuple(axes))

  def assemble(self, at, y, spec, aval):
    axes = []
    for axis, n, names in zip(
      y.axes, aval.shape, _entries(spec, y.axes), strict=True
    ):
      if names:
        here = self.channels.size(axis)
        axis = (*self.devices(at, names, n // here), *axis)
      axes.append(axis)
    return y._replace(axes=tuple(axes))

  def stack(self, ys, aval):
    (y,) = ys
    first = self.channels.axis(aval.shape[0], 'a loop stacks its results')
    return Value((first, *y.axes), y.zeros, y.numbers)


def _entries(spec, axes) -> list[tuple[str, ...]]:
  """The axes of the mesh that cut each axis."""
  entries = [*spec, *[None] * (len(axes) - len(spec))]
  return [
    e if isinstance(e, tuple) else () if e is None else (e,) for e in entries
  ]
