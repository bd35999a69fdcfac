"""Softmax, by what is computed.

    exp(x - m) / sum exp(x - m),   m = max(x) along what is summed over

as `jax.nn.softmax` has it, or written out, or as exp(x - logsumexp(x)), or without
the division.
"""

import dataclasses

import numpy as np

from jaxopt_compress.core import jaxprs
from jaxopt_compress.kernels import flow as flow_lib
from jaxopt_compress.kernels.attends import axes
from jaxopt_compress.kernels.attends import traced


@dataclasses.dataclass(frozen=True)
class Softmax:
  """A softmax, or the numerator of one.

  Attributes:
    x: what it is of.
    keys: the parts of the axes that it is taken along.
    power: exp(x - m), in the body where it is computed.
  """

  x: traced.Seen
  keys: tuple[int, ...]
  power: traced.Seen


def find(trace: traced.Trace, seen: traced.Seen) -> Softmax | None:
  """The softmax that a value is, if it is one."""
  seen = trace.back(seen)
  eqn = trace.maker(seen.v)
  match eqn and eqn.primitive.name:
    case 'custom_jvp_call':
      return _within(trace, eqn, seen)
    case 'div':
      return _divided(trace, *trace.operands(eqn, seen.layout), inverse=False)
    case 'mul':
      a, b = trace.operands(eqn, seen.layout)
      by_second = _divided(trace, a, b, inverse=True)
      return by_second or _divided(trace, b, a, inverse=True)
    case 'exp':
      (x,) = trace.operands(eqn, seen.layout)
      return _normal(trace, x)
  return None


def power(trace: traced.Trace, seen: traced.Seen) -> Softmax | None:
  """The softmax of which a value is the numerator, if it is one."""
  seen = trace.back(seen)
  name, operands = trace.made(seen)
  if name != 'exp':
    return None
  name, operands = trace.made(operands[0])
  if name != 'sub':
    return None
  x, shift = operands
  x = trace.back(x)
  keys = _maximum_along(trace, shift, x)
  return Softmax(x, keys, seen) if keys else None


def divides(trace, seen, found: Softmax, *, inverse: bool) -> bool:
  """Whether a value is the sum of the powers of a softmax, or its inverse."""
  if inverse:
    seen = trace.back(seen)
    eqn = trace.maker(seen.v)
    name, operands = trace.made(seen)
    whole = name == 'div' and trace.constant(operands[0].v) == 1
    if not whole and (name != 'integer_pow' or eqn.params['y'] != -1):
      return False
    seen = operands[-1]
  return _is_sum(trace, seen, found)


def _within(trace, eqn, seen) -> Softmax | None:
  """A function with a derivative of its own: `jax.nn.softmax`."""
  body = jaxprs.inside(eqn)[0]
  if len(body.outvars) != 1 or len(body.invars) != 1 or body.constvars:
    return None
  # The body is looked at with the parts outside, so that its axes are theirs.
  inside = traced.Trace(flow_lib.Flow(body), trace.parts)
  found = find(inside, traced.Seen(body.outvars[0], seen.layout))
  x = found and inside.back(found.x)
  if not x or x.v is not body.invars[0]:
    return None
  x = trace.back(traced.Seen(eqn.invars[0], x.layout))
  return dataclasses.replace(found, x=x)


def _divided(trace, numerator, other, *, inverse) -> Softmax | None:
  """exp(x - m) / sum, or times 1 / sum."""
  found = power(trace, numerator)
  fits = found and divides(trace, other, found, inverse=inverse)
  return found if fits else None


def _normal(trace, seen) -> Softmax | None:
  """exp(x - logsumexp(x)) and exp((x - m) - log(sum exp(x - m)))."""
  name, operands = trace.made(seen)
  if name != 'sub':
    return None
  x = trace.back(operands[0])
  name, inside = trace.made(operands[1])
  if name == 'log':
    found, fresh = _of_sum(trace, inside[0])
    # What is exponentiated in the sum is x - m, and x here is that.
    shifted = found and trace.back(trace.made(found.power)[1][0])
    return found if found and _same(trace, shifted, x, fresh) else None
  for log, shift in (inside, inside[::-1]) if name == 'add' else ():
    name, total = trace.made(log)
    found, fresh = _of_sum(trace, total[0]) if name == 'log' else (None, ())
    if found and _same(trace, found.x, x, fresh):
      keys = trace.parts.known(found.keys)
      # log sum exp(x - m) + m: the shift must be the maximum along the same keys.
      if {*keys} == {*_maximum_along(trace, shift, x)}:
        return dataclasses.replace(found, x=x, keys=keys)
  return None


def _same(trace, a, b, fresh) -> bool:
  return a.v is b.v and trace.parts.same(a.layout, b.layout, fresh)


def _maximum_along(trace, seen, x) -> tuple[int, ...]:
  """The parts along which a value is the maximum of x; none if it is not."""
  while True:
    seen = trace.back(seen)
    eqn = trace.maker(seen.v)
    rest = eqn and _unless_infinite(trace, eqn)
    if not rest:
      break
    seen = traced.Seen(rest, axes.beside(seen.layout, rest))
  return _along(trace, 'reduce_max', seen, x)


def _unless_infinite(trace, eqn):
  """m of max(-inf, m), and of where(isfinite(m), m, 0); else None."""
  if eqn.primitive.name == 'max':
    for low, m in (eqn.invars, eqn.invars[::-1]):
      if trace.constant(low) == -np.inf:
        return m
  elif eqn.primitive.name == 'select_n' and len(eqn.invars) == 3:
    which, other, m = eqn.invars
    finite = trace.maker(which)
    if finite is not None and finite.primitive.name == 'is_finite':
      # Rows of -inf alone have a maximum of 0, so that x - m is no NaN.
      if finite.invars[0] is m and trace.constant(other) == 0:
        return m
  return None


def _is_sum(trace, seen, found: Softmax) -> bool:
  """Whether a value is the sum of the powers along the keys."""
  name, inside = trace.made(seen)
  # As `jax.nn.logsumexp` writes the sum.
  while name == 'abs':  # of what is positive
    seen = inside[0]
    name, inside = trace.made(seen)
  if name != 'reduce_sum':
    return False
  operand, fresh = _reduced(trace, trace.back(seen))
  # The powers may be written twice.
  other = power(trace, operand)
  if other is None or not _same(trace, other.x, found.x, fresh):
    return False
  known = trace.parts.known
  return {*known(fresh)} == {*known(other.keys)} == {*known(found.keys)}


def _of_sum(trace, seen) -> tuple[Softmax | None, tuple[int, ...]]:
  """The softmax whose powers a value is the sum of, and the parts of that sum."""
  name, inside = trace.made(seen)
  while name == 'abs':
    seen = inside[0]
    name, inside = trace.made(seen)
  if name != 'reduce_sum':
    return None, ()
  operand, fresh = _reduced(trace, trace.back(seen))
  found = power(trace, operand)
  return (found if found and _is_sum(trace, seen, found) else None), fresh


def _along(trace, name, seen, x) -> tuple[int, ...]:
  """The parts over which a value is a reduction of x; none if it is not."""
  eqn = trace.maker(seen.v)
  if eqn is None or eqn.primitive.name != name:
    return ()
  operand, fresh = _reduced(trace, seen)
  same = _same(trace, trace.back(operand), x, fresh)
  return trace.parts.known(fresh) if same else ()


def _reduced(trace, seen) -> tuple[traced.Seen, tuple[int, ...]]:
  """What a reduction reads, and the parts of the axes that it goes over."""
  eqn = trace.maker(seen.v)
  (x,), over = eqn.invars, eqn.params['axes']
  # Axes that are summed over are new; the others are those of the result, in order.
  fresh = trace.parts.new([x.aval.shape[i] for i in over])
  of_axis = {int(i): axis for i, axis in zip(over, fresh, strict=True)}
  rest = iter(seen.layout)
  layout = tuple(
    of_axis[i] if i in of_axis else next(rest) for i in range(x.aval.ndim)
  )
  return traced.Seen(x, layout), trace.parts.flat(fresh)
