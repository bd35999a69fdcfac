"""By how much every value of a program is off, were some of its numbers others.

    mean(x^2) over 8 instead of 16 channels, the others being zero: twice as large
    x rsqrt(mean(x^2)) gain:   sqrt(1/2) as large, unless gain takes up sqrt(2)

The walk of `algebra` goes through a program with, in place of each value, the logarithm
of its factor: a linear form of the unknown logarithms of the factors of parameters.
What does not commute with a factor asks for a form that is zero; what is added asks for
one form of all. `fold_sizes` solves for the unknowns.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import walk
from jaxopt_compress.core import jaxprs

# {name of a parameter: how often its factor is in; '': what is known}. None is of
# what is zero or infinite, and so has any factor.
Form = dict[str, float] | None

# A number that is added to keep what is inverted from zero: it counts as nothing.
_EPSILON = 1e-3


class Scaled(algebra.Algebra):
  """Collects what the forms of a program have to fulfil.

  Attributes:
    wanted: [(form that has to be zero, why)].
    near: places where a small number was taken for nothing.
  """

  def __init__(self, ratios: Mapping[int, dict[int, float]]):
    # {id of an equation: {operand: log of its number there over that here}}.
    self._ratios = ratios
    self.wanted: list[tuple[dict[str, float], str]] = []
    self.near: dict[str, None] = {}

  def plain(self, aval) -> Form:
    return {}

  def constant(self, x) -> Form:
    try:
      values = np.asarray(x)
      empty = values.size and np.all((values == 0) | np.isinf(values))
    except (TypeError, ValueError):  # keys
      return {}
    return None if empty else {}

  def unknown(self, at, inputs):
    for x in inputs:
      self.zero(x, at)
    return [{} for _ in at.eqn.outvars]

  def apply(self, at, inputs):
    ratios = self._ratios.get(id(at.eqn), {})
    inputs = [
      plus(x or {}, {'': ratios[i]}) if i in ratios else x
      for i, x in enumerate(inputs)
    ]
    return super().apply(at, inputs)

  def join(self, cases, aval) -> Form:
    return self.alike(cases, None)

  def carry(self, x, aval) -> Form:
    return x

  def layer(self, x, turn, aval) -> Form:
    return x

  def stack(self, ys, aval) -> Form:
    return ys[0]

  def cut(self, at, x, spec, aval) -> Form:
    return x

  def assemble(self, at, y, spec, aval) -> Form:
    return y

  # ----------------------------------------------------------------- for rules

  def zero(self, x: Form, at) -> None:
    """Wants a form to be zero."""
    if x:
      why = (
        'a result' if at is None else f'{at.eqn.primitive.name} at {at.source}'
      )
      self.wanted.append((x, why))

  def alike(self, xs, at) -> Form:
    """Wants one form of several, and returns it."""
    known = [x for x in xs if x is not None]
    for other in known[1:]:
      self.zero(plus(known[0], other, -1.0), at)
    return known[0] if known else None


def plus(x: dict, y: dict, times: float = 1.0) -> dict:
  """x + times y, without what cancels."""
  out = dict(x)
  for k, v in y.items():
    out[k] = out.get(k, 0.0) + times * v
  return {k: v for k, v in out.items() if abs(v) > 1e-12}


def _times(x: Form, factor: float) -> Form:
  return None if x is None else {k: factor * v for k, v in x.items()}


# ------------------------------------------------------------------------ rules


def _same(asked, at, inputs):
  return [inputs[0]] * len(at.eqn.outvars)


def _alike(asked, at, inputs):
  return [asked.alike(inputs, at)]


def _sum(asked, at, inputs):
  for i, v in enumerate(at.eqn.invars):
    # What is added to a mean square: next to nothing, whatever its factor.
    small = not jaxprs.is_var(v) and np.shape(v.val) == ()
    if small and 0 < abs(float(v.val)) <= _EPSILON:
      asked.near[f'{float(v.val):g} at {at.source}'] = None
      return [inputs[1 - i]]
  return [asked.alike(inputs, at)]


def _select(asked, at, inputs):
  asked.zero(inputs[0], at)
  return [asked.alike(inputs[1:], at)]


def _compare(asked, at, inputs):
  asked.alike(inputs, at)
  return [{}]


def _order(asked, at, inputs):
  # Which entry is largest is so for all positive factors.
  return [
    {} if np.issubdtype(v.aval.dtype, np.integer) else inputs[0]
    for v in at.eqn.outvars
  ]


def _product(asked, at, inputs):
  if any(x is None for x in inputs):
    return [None]
  return [plus(inputs[0], inputs[1])]


def _quotient(asked, at, inputs):
  x, y = inputs
  return [None if x is None else plus(x, y or {}, -1.0)]


def _power(of: Callable[[Any], float]):
  def power(asked, at, inputs):
    return [_times(inputs[0], of(at.eqn))]

  return power


def _first_of(asked, at, inputs):
  for x in inputs[1:]:
    asked.zero(x, at)
  return [inputs[0]] * len(at.eqn.outvars)


def _write(asked, at, inputs):
  # What is written, and what it is written over; indices between or behind.
  n = 3 if at.eqn.primitive.name.startswith('scatter') else 2
  values = [inputs[0], inputs[n - 1]]
  return [asked.alike(values, at)]


Scaled.rules = {
  **dict.fromkeys(
    'neg abs real reduce_sum reduce_max reduce_min cumsum cummax cummin'
    ' reduce_window_sum reduce_window_max reduce_window_min reshape transpose'
    ' squeeze expand_dims broadcast_in_dim tile slice rev split unstack copy copy_p'
    ' stop_gradient optimization_barrier pvary sharding_constraint name'
    ' convert_element_type reduce_precision all_gather psum'.split(),
    _same,
  ),
  **dict.fromkeys('add sub add_any'.split(), _sum),
  **dict.fromkeys('max min concatenate pad stack clamp'.split(), _alike),
  **dict.fromkeys('eq ne lt le gt ge'.split(), _compare),
  **dict.fromkeys('sort argmax argmin top_k'.split(), _order),
  **dict.fromkeys('gather dynamic_slice'.split(), _first_of),
  **dict.fromkeys('dynamic_update_slice scatter'.split(), _write),
  **dict.fromkeys('mul dot_general conv_general_dilated'.split(), _product),
  'select_n': _select,
  'div': _quotient,
  'ragged_dot_general': _product,
  'integer_pow': _power(lambda eqn: float(eqn.params['y'])),
  'square': _power(lambda eqn: 2.0),
  'sqrt': _power(lambda eqn: 0.5),
  'rsqrt': _power(lambda eqn: -0.5),
  'iota': lambda asked, at, inputs: [{}],
}


def ratio(v, w) -> float | None:
  """log(w / v) of two numbers of a program, 0 where they are alike.

  None where no factor makes one of the other.
  """
  if jaxprs.is_var(v) or np.shape(v.val) or not _is_float(v.val):
    return 0.0
  a, b = float(v.val), float(w.val)
  if a == b or (math.isnan(a) and math.isnan(b)):
    return 0.0
  return math.log(b / a) if a * b > 0 else None


def _is_float(x) -> bool:
  dtype = getattr(x, 'dtype', None)
  return isinstance(x, float) or (
    dtype is not None and np.issubdtype(dtype, np.floating)
  )


def ratios(closed, other) -> dict[int, dict[int, float]]:
  """{id of an equation: {operand: log of its number there over that here}}.

  Args:
    closed, other: programs of the same operations.

  Raises:
    ValueError: they are not, or no factor makes one number of the other.
  """
  here, there = list(walk.places(closed)), list(walk.places(other))
  if [at.eqn.primitive for at in here] != [at.eqn.primitive for at in there]:
    raise ValueError(
      'The program of the new sizes has other operations than that of the old ones,'
      ' so their numbers cannot be compared.'
    )
  found = {}
  for at, again in zip(here, there, strict=True):
    logs = {}
    for i, (v, w) in enumerate(
      zip(at.eqn.invars, again.eqn.invars, strict=True)
    ):
      log = ratio(v, w)
      if log is None:
        raise ValueError(
          f'{at.eqn.primitive.name} at {at.source} has {v} and then {w}: no factor'
          ' makes one of the other.'
        )
      if log:
        logs[i] = log
    # A program that is called twice has its equations once.
    if found.setdefault(id(at.eqn), logs) != logs:
      raise ValueError(
        f'{at.eqn.primitive.name} at {at.source} has several numbers in place of one.'
      )
  return found
