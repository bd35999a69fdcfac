"""Where values of a body come from, through moves, casts and constants."""

from collections.abc import Collection
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import jaxprs
from jaxopt_compress.kernels import flow as flow_lib
from jaxopt_compress.kernels.attends import axes

_FOLDED = {
  'sqrt': np.sqrt,
  'rsqrt': lambda x: np.float32(1) / np.sqrt(x),
  'neg': np.negative,
  'mul': np.multiply,
  'div': np.divide,
  'add': np.add,
  'sub': np.subtract,
}


@dataclasses.dataclass(frozen=True)
class Seen:
  """A value as it is seen from somewhere.

  Attributes:
    v: a variable or literal.
    layout: what its axes are there.
  """

  v: Any
  layout: axes.Layout


class Trace:
  """Goes from values to what they are made of.

  Attributes:
    flow: of the body.
    parts: of all axes of one question.
    ends: variables that are looked at from outside.
  """

  def __init__(
    self,
    flow: flow_lib.Flow,
    parts: axes.Parts | None = None,
    ends: Collection[Any] = (),
  ):
    self.flow = flow
    self.parts = axes.Parts() if parts is None else parts
    self.ends = ends

  def maker(self, v):
    """The equation that makes a variable, or None."""
    ended = jaxprs.is_var(v) and v in self.ends
    return None if ended else self.flow.maker(v)

  def made(self, seen: Seen) -> tuple[str, list[Seen]]:
    """What makes a value behind moves and casts: the primitive, and what it reads."""
    seen = self.back(seen)
    eqn = self.maker(seen.v)
    return (
      ('', [])
      if eqn is None
      else (eqn.primitive.name, self.operands(eqn, seen.layout))
    )

  def back(self, seen: Seen, casts: str = 'all') -> Seen:
    """What moves, and casts between floats, make a value of.

    Args:
      seen: the value.
      casts: 'all', or 'wider': those that keep every number, of types that kernels
        compute with.
    """
    while (eqn := self.maker(seen.v)) is not None:
      if eqn.primitive.name == 'convert_element_type':
        layout = seen.layout if _passes(eqn, casts) else None
      else:
        layout = axes.before(self.parts, eqn, seen.layout)
      if layout is None:
        break
      seen = Seen(eqn.invars[0], layout)
    return seen

  def operands(self, eqn, layout: axes.Layout) -> list[Seen]:
    """What an elementwise equation reads, by the layout of its result."""
    return [Seen(v, axes.beside(layout, v)) for v in eqn.invars]

  def constant(self, v) -> float | None:
    """The number that a value has everywhere, if it is known."""
    if not jaxprs.is_var(v):
      return float(v.val) if np.size(v.val) == 1 else None
    eqn = self.maker(v)
    if eqn is None or jaxprs.inside(eqn) or len(eqn.outvars) != 1:
      return None
    name = eqn.primitive.name
    # Of one number everywhere, where it lies is of no account.
    moved = name in ('broadcast_in_dim', 'reshape', 'squeeze', 'copy')
    if not (moved or name == 'convert_element_type' or name in _FOLDED):
      return None
    known = [self.constant(u) for u in eqn.invars]
    if None in known:
      return None
    if moved:
      return known[0]
    # As the program rounds it.
    dtype = eqn.invars[0].aval.dtype
    numbers = [np.asarray(x, dtype) for x in known]
    if name == 'convert_element_type':
      return float(numbers[0].astype(eqn.params['new_dtype']))
    with np.errstate(all='ignore'):
      return float(_FOLDED[name](*numbers))


def _passes(eqn, casts) -> bool:
  old, new = eqn.invars[0].aval.dtype, jnp.dtype(eqn.params['new_dtype'])
  if not all(jnp.issubdtype(t, jnp.floating) for t in (old, new)):
    return False
  # Who casts to eight bits or fewer rounds on purpose.
  if min(old.itemsize, new.itemsize) == 1:
    return False
  return casts == 'all' or flow_lib.keeps_numbers(old, new)
