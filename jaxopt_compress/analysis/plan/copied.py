"""What repeating channels does to every value of a program.

    y = h W, channel i of h there c_i times     sum_i c_i h_i W_i:     not y
    W_j := W_i / c_i for its copies j           sum_j h_j W_j = y:     y again

Each group of channels that grows has *shares*: a weight w_j of every copy j that sum
to one over the copies of a channel. The walk of `algebra` goes through the program
with, in place of each value, the power of w that it carries along each axis and the
logarithm of its factor as a whole: linear forms of unknowns, two kinds for each
parameter. What is added must carry the same; what is summed over a group must carry
the power one, or be a plain copy of channels that are all there equally often.
`shares` solves for the unknowns.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import numpy as np

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.plan import scaled

# {unknown: coefficient}; '' is what is known.
Form = dict[Any, float]

# Unknowns: the power of the shares of a group that an axis of a parameter takes up;
# that of a value that a loop carries; the logarithm of a factor of a parameter; and
# by how much a sum over a group is off.
Power = tuple[str, int, str]


class Value(NamedTuple):
  """What is known of a value of the program.

  Attributes:
    axes: for each axis, {group: the power of its shares}.
    log: of the factor of all of it.
    weight: the parameter that it is, moved at most; '' for others.
    loop: the number of the value of a loop that it is, of unknown powers.
    zero: whether it is zero or infinite, and so carries any factor.
    own: whether it is of parameters and numbers alone.
  """

  axes: tuple[dict[str, Form], ...]
  log: Form = {}
  weight: str = ''
  loop: int | None = None
  zero: bool = False
  own: bool = False


class Sum(NamedTuple):
  """A sum over a group: of a value, or of the product of two.

  Attributes:
    total: the power of the shares in what is summed.
    group: the group.
    why: where it is.
    product: whether it is of two different values.
  """

  total: Form
  group: str
  why: str
  product: bool


@dataclasses.dataclass
class Places:
  """What a parameter is met in.

  Attributes:
    reads: the axes of weights that are summed over in a product.
    gains: the axes of weights that a value is multiplied by, entry by entry.
    products: the weights of products, and tables.
    uses: {path: the operations that it reaches}.
    reduced: {group: where parameters alone are summed over it}, as for their norm.
  """

  reads: set[Power] = dataclasses.field(default_factory=set)
  gains: set[Power] = dataclasses.field(default_factory=set)
  products: set[str] = dataclasses.field(default_factory=set)
  uses: dict[str, set] = dataclasses.field(default_factory=dict)
  reduced: dict[str, str] = dataclasses.field(default_factory=dict)


class Copied(algebra.Algebra):
  """Collects what the forms of a program have to fulfil.

  Attributes:
    powers: [(form that has to be zero, group, why)].
    logs: [(form that has to be zero, why)].
    sums: the sums over groups, which number `('sum', i)` among the unknowns.
    repeats: {group: why it has to be copies}, of what compares channels.
    broken: {group: why no copies keep the function}.
    near: [(form that is best zero, why)], of what a small number is added to.
  """

  def __init__(
    self,
    rules: dict[str, Callable],
    groups: Mapping[tuple, tuple],
    ratios: Mapping[int, dict[int, float]],
  ):
    self.rules = rules
    # {place of an equation: the groups of each axis of operands, and of results}.
    self._groups = groups
    self._ratios = ratios
    # Of each value that a loop carries: what it is at first, and the axes, counted
    # from the end, and groups that the program meets it along.
    self._first: list[Value] = []
    self._met: list[set[tuple[int, str]]] = []
    self.places = Places()
    self.powers: list[tuple[Form, str, str]] = []
    self.logs: list[tuple[Form, str]] = []
    self.sums: list[Sum] = []
    self.repeats: dict[str, str] = {}
    self.broken: dict[str, str] = {}
    self.near: list[tuple[Form, str]] = []

  def parameter(self, path: str, x: Any, axes: Sequence[set[str]]) -> Value:
    """A parameter: what it takes up is unknown."""
    if not np.issubdtype(x.dtype, np.inexact) and 'float' not in str(x.dtype):
      return self.plain(x)
    powers = tuple(
      {g: {(path, i, g): 1.0} for g in groups} for i, groups in enumerate(axes)
    )
    return Value(powers, {path: 1.0}, path, own=True)

  # ----------------------------------------------------------------- for rules

  def groups(self, at: walk.At) -> tuple[list, list]:
    """The groups that grow, of each axis of each operand, and of each result."""
    return self._groups[at.place]

  def power(self, x: Value, i: int, group: str) -> Form:
    """The power of the shares of a group that x carries along an axis."""
    if i >= len(x.axes):
      return {}
    if x.loop is not None:
      self._met[x.loop].add((i - len(x.axes), group))
      return {(x.loop, i - len(x.axes), group): 1.0}
    return x.axes[i].get(group, {})

  def want(self, form: Form, group: str, why: str) -> None:
    """Wants a power to be zero."""
    if form:
      self.powers.append((form, group, why))

  def plain_copy(self, x: Value, axes: Sequence[set[str]], at) -> None:
    """Wants a value to carry no factor and no shares."""
    if x.zero:
      return
    why = said(at)
    for i, groups in enumerate(axes):
      for g in groups:
        self.want(self.power(x, i, g), g, why)
    if x.log:
      self.logs.append((x.log, why))

  def plain_results(self, at) -> list[Value]:
    """Results that carry no factor and no shares."""
    return [
      Value(tuple({g: {} for g in groups} for groups in axes))
      for axes in self.groups(at)[1]
    ]

  def summed(self, at, total: Form, group: str, product: bool) -> Form:
    """Meets a sum over a group; returns by how much it is off."""
    self.sums.append(Sum(total, group, said(at), product))
    return {('sum', len(self.sums) - 1): 1.0}

  def alike(self, at, powers: Sequence[Form], group: str) -> Form:
    """Wants one power of several."""
    for other in powers[1:]:
      self.want(scaled.plus(powers[0], other, -1.0), group, said(at))
    return powers[0] if powers else {}

  def same_log(self, at, xs: Sequence[Value]) -> Form:
    """Wants one factor of several values."""
    logs = [x.log for x in xs if not x.zero]
    for other in logs[1:]:
      if form := scaled.plus(logs[0], other, -1.0):
        self.logs.append((form, said(at)))
    return logs[0] if logs else {}

  # ------------------------------------------------------------ of the algebra

  def plain(self, aval) -> Value:
    return Value(tuple({} for _ in getattr(aval, 'shape', ())))

  def constant(self, x) -> Value:
    empty = scaled.Scaled({}).constant(x) is None
    return Value(tuple({} for _ in np.shape(x)), zero=empty, own=True)

  def unknown(self, at, inputs):
    for x, axes in zip(inputs, self.groups(at)[0], strict=True):
      self.plain_copy(x, axes, at)
    return self.plain_results(at)

  def apply(self, at, inputs):
    ratios = self._ratios.get(id(at.eqn), {})
    inputs = [
      x._replace(log=scaled.plus(x.log, {'': ratios[i]})) if i in ratios else x
      for i, x in enumerate(inputs)
    ]
    outs = super().apply(at, inputs)
    for x in inputs:
      if x.weight and not any(out.weight == x.weight for out in outs):
        self.places.uses.setdefault(x.weight, set()).add(at.place)
    own = all(x.own for x in inputs)
    return [out._replace(own=own) for out in outs]

  def join(self, cases, aval):
    first, *others = cases
    if first.loop is not None:
      # What is zero at first may carry anything in the next turn.
      others.append(self._first[first.loop])
    others = [x for x in others if not x.zero]
    for other in others:
      known = {(i, g) for i, axis in enumerate(first.axes) for g in axis}
      known |= {(i, g) for i, axis in enumerate(other.axes) for g in axis}
      if first.loop is not None:
        n = len(first.axes)
        known |= {(n + i, g) for i, g in self._met[first.loop]}
      for i, g in sorted(known):
        self.alike(None, [self.power(x, i, g) for x in (first, other)], g)
    return first._replace(log=self.same_log(None, [first, *others]), weight='')

  def carry(self, x, aval):
    self._first.append(x)
    self._met.append(set())
    loop = len(self._first) - 1
    return Value(tuple({} for _ in x.axes), {('loop', loop): 1.0}, loop=loop)

  def layer(self, x, turn, aval):
    return x._replace(axes=x.axes[1:])

  def stack(self, ys, aval):
    return ys[0]._replace(axes=({}, *ys[0].axes), weight='')

  def cut(self, at, x, spec, aval):
    return x

  def assemble(self, at, y, spec, aval):
    return y


def said(at) -> str:
  """Where an equation is, for the reader of a reason."""
  if at is None:
    return 'a result, or where branches or turns of a loop meet'
  return f'{at.eqn.primitive.name} at {at.source or at.path}'
