"""Losses over what they cost: when a curve reaches a loss."""

from collections.abc import Sequence


def reached(curve: Sequence[tuple[float, float]], loss: float) -> float | None:
  """The cost at which a curve first has a loss, None if it never does.

  Between two points the curve is a straight line. Before its first point nothing is
  known of it, so a curve that begins below the loss reaches it there.

  Args:
    curve: [(cost, loss)], by cost.
    loss: to be reached.

  >>> reached([(1.0, 4.0), (3.0, 2.0), (4.0, 1.0)], 3.0)
  2.0
  >>> reached([(1.0, 4.0)], 3.0)
  """
  before = None
  for cost, value in curve:
    if value <= loss:
      if before is None:
        return cost
      c, v = before
      return c + (cost - c) * (v - loss) / (v - value)
    before = cost, value
  return None
