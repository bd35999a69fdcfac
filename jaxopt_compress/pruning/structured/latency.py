"""How long a program takes with other sizes, from a table of its products.

    t(sizes) = sum of the products at these sizes + rest * (what the others write)

Products (dots and convolutions) are measured one by one at a few sizes of the groups
that they depend on, and interpolated. What they leave of the time of the whole program
goes to all other operations, by how much they write. Where products take longer one by
one than together, as on several cores, they count in proportion.

It is a prediction, and no promise that narrower is faster: sizes between those that
kernels are made for may take longer than larger ones. `Budget.measured` runs the network
of a plan.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
from types import MappingProxyType

from jaxopt_compress.analysis.plan import resized
from jaxopt_compress.pruning.structured import stopwatch

_PRODUCTS = frozenset(
  ('conv_general_dilated', 'dot_general', 'ragged_dot_general')
)
# Of each group, the fractions at which products are measured.
_FRACTIONS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)


class Latency:
  """Predicts the time of a program.

  Attributes:
    now: seconds of the program as it is, measured.
  """

  def __init__(
    self, program: resized.Resized, now: float, table: stopwatch.Table
  ):
    """Args are what can be resized, its time, and where times of products are."""
    self._program, self._table, self.now = program, table, now
    products, others = self._parts({}, {})
    if products < now:
      self._product, self._other = 1.0, (now - products) / max(others, 1)
    else:
      self._product, self._other = now / products, 0.0

  def seconds(
    self,
    sizes: Mapping[str, int],
    layers: Mapping[str, Sequence[int]] = MappingProxyType({}),
  ) -> float:
    """How long the program takes; arguments are those of `resized.Resized.flops`."""
    products, others = self._parts(sizes, layers)
    return self._product * products + self._other * others

  def _parts(self, sizes, layers):
    """(seconds of the products one by one, bytes that the others write)."""
    known, products, others = self._program.sizes | dict(sizes), 0.0, 0
    for equation in self._program.equations:
      copies = equation.copies(layers)
      if equation.eqn.primitive.name in _PRODUCTS:
        products += copies * self._of_product(equation, known)
        continue
      operation = equation.at(known)
      written = [
        math.prod(v.aval.shape) * v.aval.dtype.itemsize
        for v in operation.outvars
      ]
      others += copies * operation.times * sum(written)
    self._table.save()
    return products, others

  def _of_product(self, equation, sizes) -> float:
    """Seconds of a product, linear between the sizes that are measured."""
    sides = []
    for group in sorted(equation.groups):
      full, n = self._program.sizes[group], sizes[group]
      grid = sorted({max(round(f * full), 1) for f in _FRACTIONS} | {full})
      high = next((g for g in grid if g >= n), n)
      low = max((g for g in grid if g <= n), default=n)
      weight = 0.0 if high == low else (n - low) / (high - low)
      sides.append([(group, low, 1 - weight), (group, high, weight)])
    total = 0.0
    for corner in itertools.product(*sides):
      weight = math.prod(w for _, _, w in corner)
      if weight:
        at = equation.at(sizes | {group: n for group, n, _ in corner})
        total += weight * at.times * self._table.seconds_of(at)
    return total
