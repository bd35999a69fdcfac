"""What equations compute of one variable, up to names and shapes.

    y = x * logistic(x)   ->   (('logistic', X), ('mul', X, line 1)), line 2

Two programs with one formula compute the same, and so do their derivatives: functions
with a derivative rule of their own are not looked into, unless that is asked for.
Functions are known by this, not by where they were written.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from jaxopt_compress.core import jaxprs

JIT = ('jit', 'pjit')
X = ('of', 0)  # the variable that a formula is of
# Parameters that change what an equation computes; others say shapes and types.
_PARAMETERS = ('y', 'new_dtype', 'accuracy', 'exponent')

# Operands of these have no order.
_COMMUTE = ('add', 'mul', 'max', 'min')


def of_equations(eqns, v, out, enter=JIT) -> tuple | None:
  """The formula of equations that make a variable of another one.

  Args:
    eqns: equations of a jaxpr, in order.
    v: the variable that they read; they read nothing else.
    out: the variable that they are for.
    enter: names of primitives whose bodies are read in their place.

  Returns:
    (lines, the line of the result), or None: they read something else, or call
    functions that are not entered.
  """
  lines, words = [], {v: X}
  if not _write(eqns, {out}, words, lines, enter):
    return None
  return tuple(lines), words[out]


def of_function(
  f: Callable, x: jax.ShapeDtypeStruct, enter=JIT
) -> tuple | None:
  """The formula of a function of one array of a shape and dtype."""
  jaxpr = jax.make_jaxpr(f)(x).jaxpr
  return of_equations(jaxpr.eqns, jaxpr.invars[0], jaxpr.outvars[0], enter)


def of_derivative(
  f: Callable, x: jax.ShapeDtypeStruct, enter=JIT
) -> tuple | None:
  """The formula of f'(x) t, as the rules of `f` say, not its definition."""

  def tangent(both):
    return jax.jvp(f, (both[0],), (both[1],))[1]

  jaxpr = jax.make_jaxpr(tangent)((x, x)).jaxpr
  lines, words = [], {v: ('of', i) for i, v in enumerate(jaxpr.invars)}
  (out,) = jaxpr.outvars
  # The rule also calls f for its value, and f is not looked into: what the tangent
  # does not need is left out.
  if is_literal(out) or not _write(jaxpr.eqns, {out}, words, lines, enter):
    return None
  return tuple(lines), words[out]


@functools.cache
def of_curve(f: Callable, dtype) -> tuple | None:
  """`of_function` of a scalar: elementwise functions have one formula for all shapes."""
  return of_function(f, jax.ShapeDtypeStruct((), dtype))


@functools.cache
def of_known_derivative(f: Callable, shape, dtype, enter=JIT) -> tuple | None:
  """`of_derivative`, kept: for functions of a module."""
  return of_derivative(f, jax.ShapeDtypeStruct(shape, dtype), enter)


def as_function(eqns, v, out) -> Callable[[jax.Array], jax.Array]:
  """What equations make of a variable, with their own derivatives."""

  def run(x):
    return jaxprs.run_together(eqns, {v: x}, [out])[0]

  return run


def only_body(eqn) -> Any | None:
  """The one body of a call, of which the call returns all results."""
  found = jaxprs.inside(eqn)
  return found[0] if len(found) == 1 and not found[0].constvars else None


def line(number: int, result: int = 0) -> tuple:
  """How a formula names a result of one of its lines, counted from one."""
  return 'line', number, result


def is_literal(v) -> bool:
  return hasattr(v, 'val')


def _write(eqns, wanted, words, lines, enter) -> bool:
  """Adds what makes the wanted variables to `lines`, and results to `words`.

  False where one of these equations cannot be written down.
  """
  needed, eqns = _needed(eqns, wanted)
  for eqn in eqns:
    operands = tuple(_word(o, words) for o in eqn.invars)
    if None in operands:
      return False
    if eqn.primitive.name in enter:
      body = only_body(eqn)
      if body is None:
        return False
      inside = dict(zip(body.invars, operands, strict=True))
      outs = list(zip(body.outvars, eqn.outvars, strict=True))
      wanted = {v for v, out in outs if out in needed and not is_literal(v)}
      if not _write(body.eqns, wanted, inside, lines, enter):
        return False
      results = [_word(v, inside) for v, _ in outs]
    elif jaxprs.inside(eqn):
      return False
    elif (value := _constant(eqn, operands)) is not None:
      results = [value]
    else:
      if eqn.primitive.name in _COMMUTE:
        operands = tuple(sorted(operands, key=repr))
      told = tuple(str(eqn.params.get(name)) for name in _PARAMETERS)
      lines.append((eqn.primitive.name, told, operands))
      # Results are known by the line that makes them, whatever they are called.
      results = [line(len(lines), j) for j in range(len(eqn.outvars))]
    words.update(zip(eqn.outvars, results, strict=True))
  return True


def _needed(eqns, wanted) -> tuple[set, list]:
  """All variables that the wanted ones are made of, and the equations of that."""
  needed, found = set(wanted), []
  for eqn in reversed(eqns):
    if not needed.isdisjoint(eqn.outvars):
      needed.update(v for v in eqn.invars if not is_literal(v))
      found.append(eqn)
  return needed, found[::-1]


def _constant(eqn, operands) -> float | None:
  """The number that an equation only spreads over an array, or converts exactly."""
  if len(operands) != 1 or not isinstance(operands[0], float):
    return None
  (value,) = operands
  if eqn.primitive.name == 'broadcast_in_dim':
    return value
  if eqn.primitive.name == 'convert_element_type':
    same = float(np.asarray(value, eqn.params['new_dtype'])) == value
    return value if same else None
  return None


def _word(v, words) -> Any | None:
  """A number for a literal, a place for a variable, None for what is not known."""
  if not is_literal(v):
    return words.get(v)
  return float(v.val) if np.ndim(v.val) == 0 else None
