"""Who makes the variables of a body, who reads them, and which may be leaves."""

from collections.abc import Collection
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from jaxopt_compress.core import jaxprs

# What gives the same entries in another form.
MOVES = (
  'reshape',
  'squeeze',
  'expand_dims',
  'broadcast_in_dim',
  'transpose',
  'rev',
  'convert_element_type',
  'slice',
  'dynamic_slice',
  'copy',
  'pvary',
  'stop_gradient',
  'sharding_constraint',
  'optimization_barrier',
)
_ALIKE = ('reshape', 'squeeze', 'transpose', 'convert_element_type')


def keeps_numbers(old, new) -> bool:
  """Whether a float type has every number of another."""
  old, new = jnp.dtype(old), jnp.dtype(new)
  if not all(jnp.issubdtype(t, jnp.floating) for t in (old, new)):
    return False
  a, b = jnp.finfo(old), jnp.finfo(new)
  # Types of 8 bits have no promotion that could be asked.
  return a.nmant <= b.nmant and a.minexp >= b.minexp and a.maxexp <= b.maxexp


class Flow:
  """Makers and readers of the variables of a body.

  Attributes:
    jaxpr: the body.
    makers: the position of the equation that makes each variable.
    readers: the positions of those that read it, in order, one for each time;
      None stands for the results of the body.
  """

  def __init__(self, jaxpr):
    self.jaxpr = jaxpr
    self.makers: dict[Any, int] = {}
    self.readers: dict[Any, list[int | None]] = {}
    for i, eqn in enumerate(jaxpr.eqns):
      for v in filter(jaxprs.is_var, eqn.invars):
        self.readers.setdefault(v, []).append(i)
      self.makers |= dict.fromkeys(eqn.outvars, i)
    for v in filter(jaxprs.is_var, jaxpr.outvars):
      self.readers.setdefault(v, []).append(None)

  def maker(self, v) -> Any | None:
    """The equation that makes a variable; None for arguments and literals."""
    at = self.makers.get(v) if jaxprs.is_var(v) else None
    return None if at is None else self.jaxpr.eqns[at]

  def needs(self, v: Any, made: Collection[int]) -> bool:
    """Whether a variable is made of what the equations at some positions make."""
    first, seen, waiting = min(made), set(), [v]
    while waiting:
      v = waiting.pop()
      at = self.makers.get(v, -1) if jaxprs.is_var(v) else -1
      if at in made:
        return True
      if at > first and at not in seen:
        seen.add(at)
        waiting.extend(self.jaxpr.eqns[at].invars)
    return False

  def perhaps_leaves(self, leaves: Iterable[Any]) -> set[Any]:
    """The variables that may be leaves: those given, and what moves make of them."""
    found = {*leaves}
    for eqn in self.jaxpr.eqns:
      if eqn.primitive.name in MOVES or jaxprs.inside(eqn):
        if any(jaxprs.is_var(v) and v in found for v in eqn.invars):
          found.update(eqn.outvars)
    return found

  def first_alike(self) -> dict[Any, Any]:
    """For what moves make, the first variable that the same moves make of the same."""
    first, known = {}, {}
    for eqn in self.jaxpr.eqns:
      if eqn.primitive.name not in _ALIKE:
        continue
      v, *more = eqn.invars
      if more or not jaxprs.is_var(v):
        continue
      how = (*sorted((k, str(p)) for k, p in eqn.params.items()),)
      key = eqn.primitive.name, first.get(v, v), how
      first[eqn.outvars[0]] = known.setdefault(key, eqn.outvars[0])
    return first
