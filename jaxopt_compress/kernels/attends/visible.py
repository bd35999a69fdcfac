"""Which keys a query may see: masks taken apart into what a kernel knows without them.

    s <= t + right,  s >= t - left     known from the program: tiles are left out
    s < length                         known when it runs: no key behind is read
    else                               a mask, as small as it was before it was spread

for place t and key s. What follows from a mask is used beside it, too: a query of a
decoder at position p sees no key behind p.
"""

from collections.abc import Iterator
import dataclasses

import jax.numpy as jnp

from jaxopt_compress.core import jaxprs
from jaxopt_compress.kernels.attends import axes
from jaxopt_compress.kernels.attends import traced

# a < b is b > a, and not a < b is a >= b.
_TURNED = {'lt': 'gt', 'gt': 'lt', 'le': 'ge', 'ge': 'le'}
_OPPOSITE = {'lt': 'ge', 'gt': 'le', 'le': 'gt', 'ge': 'lt'}


@dataclasses.dataclass(frozen=True)
class Condition:
  """What must hold for a key to be seen.

  Attributes:
    seen, yes: the value, and what it is where a key may be seen.
    places: where it compares keys with places, the parts of these; else None.
    right, left: s <= t + right, s >= t - left; None where not so.
    last: where keys are compared with a value: s <= last + `right`, of which nothing
      else may be known; else None.
  """

  seen: traced.Seen
  yes: bool
  places: tuple[int, ...] | None = None
  right: int | None = None
  left: int | None = None
  last: traced.Seen | None = None


def conditions(
  trace: traced.Trace, seen: traced.Seen, yes: bool, keys: tuple[int, ...]
) -> Iterator[Condition]:
  """All that must hold where a mask is `yes`.

  Args:
    trace: of the body.
    seen: the mask.
    yes: what it is where a key may be seen.
    keys: the parts of scores that are keys, in order.
  """
  seen, yes = _truth(trace, seen, yes)
  if (number := trace.constant(seen.v)) is not None and bool(number) == yes:
    return
  eqn = trace.maker(seen.v)
  name = '' if eqn is None else eqn.primitive.name
  inside = trace.made(seen)[1]
  both = _both(trace, name, inside, yes)
  for x, wanted in both:
    yield from conditions(trace, x, wanted, keys)
  if not both:
    found = _compared(trace, name, inside, yes, keys) if name in _TURNED else {}
    yield Condition(seen, yes, **found)


def _truth(trace, seen, yes):
  """Behind moves, negations, and casts there and back."""
  while True:
    seen = trace.back(seen)
    name, inside = trace.made(seen)
    if name == 'not':
      seen, yes = inside[0], not yes
    elif name == 'convert_element_type' and _was_bool(trace, inside[0]):
      seen = inside[0]
    elif name in ('ne', 'eq') and _was_bool(trace, inside[0]):
      if trace.constant(inside[1].v) != 0:
        return seen, yes
      seen, yes = inside[0], yes == (name == 'ne')
    else:
      return seen, yes


def _was_bool(trace, seen) -> bool:
  """Whether a value is a bool, maybe cast or a product of such."""
  seen = trace.back(seen)
  if seen.v.aval.dtype == jnp.bool_:
    return True
  name, inside = trace.made(seen)
  casts = name == 'convert_element_type' or name == 'mul'
  return casts and all(_was_bool(trace, x) for x in inside)


def _both(trace, name, inside, yes):
  """[(value, what it must be)] of two that must both hold; none for others."""
  if (name in ('and', 'mul') and yes) or (name == 'or' and not yes):
    return [(x, yes) for x in inside]
  if name == 'select_n' and len(inside) == 3:
    which, *cases = inside
    for i, case in enumerate(cases):
      known = trace.constant(case.v)
      # One case is never so: it must be the other one, and that must be so.
      if known is not None and bool(known) != yes:
        return [(which, i == 0), (cases[1 - i], yes)]
  return []


def _compared(trace, name, inside, yes, keys):
  """The fields of a `Condition` that compares keys with something."""
  name = name if yes else _OPPOSITE[name]
  first, second = (_number(trace, x) for x in inside)
  if second.parts == keys and first.parts != keys:
    # Keys are the left side from here on.
    first, second, name = second, first, _TURNED[name]
  if first.parts != keys or first.value or not keys:
    return {}
  # s + a (<=, <, >=, >) t + b
  shift = second.offset - first.offset
  if name in ('lt', 'le'):
    # s + a <= t + b  is  s <= t + (b - a); s < t is s <= t - 1.
    right = shift - (name == 'lt')
    if second.value is not None:
      return dict(right=right, last=second.value)
    fits = second.parts and right >= 0
    return dict(places=second.parts, right=right) if fits else {}
  # s > t + shift  is  s >= t + shift + 1, and s >= t - left is asked for.
  left = -(shift + (name == 'gt'))
  fits = second.parts and second.value is None and left >= 0
  return dict(places=second.parts, left=left) if fits else {}


@dataclasses.dataclass(frozen=True)
class _Number:
  """A whole number: the index along `parts`, plus `offset`, or value + offset."""

  parts: tuple[int, ...] = ()
  offset: int = 0
  value: traced.Seen | None = None


def _number(trace, seen) -> _Number:
  """What is known of whole numbers."""
  seen = trace.back(seen)
  plain = _Number(value=seen)
  eqn = trace.maker(seen.v)
  if not jnp.issubdtype(seen.v.aval.dtype, jnp.integer):
    return _Number(value=seen)
  if not jaxprs.is_var(seen.v):
    return _Number(offset=int(seen.v.val))
  if eqn is None:
    return plain
  if eqn.primitive.name == 'iota':
    axis = seen.layout[eqn.params['dimension']]
    return _Number(trace.parts.known(axis))
  if eqn.primitive.name in ('add', 'sub'):
    a, b = trace.operands(eqn, seen.layout)
    sign = 1 if eqn.primitive.name == 'add' else -1
    for x, y in ((a, b), (b, a))[: 2 if sign == 1 else 1]:
      number = trace.constant(y.v)
      if number is not None:
        found = _number(trace, x)
        return dataclasses.replace(
          found, offset=found.offset + sign * int(number)
        )
  return plain


# --------------------------------------------------------------------- resolved


@dataclasses.dataclass(frozen=True)
class Visible:
  """Which keys may be seen.

  Attributes:
    right, left: as in `Condition`, of all places.
    lengths: (value, number): keys from the largest value of a batch plus the number
      on are not seen.
    masks: (bool, what it is where a key may be seen).
  """

  right: int | None = None
  left: int | None = None
  lengths: tuple[tuple[traced.Seen, int], ...] = ()
  masks: tuple[tuple[traced.Seen, bool], ...] = ()


def resolve(
  found: list[Condition],
  parts: axes.Parts,
  batch: tuple[int, ...],
  places: tuple[int, ...],
) -> Visible:
  """What conditions say, once it is known what the axes of scores are for."""
  right, left, lengths, masks = [], [], [], []
  for c in found:
    if c.places is not None and c.places == places:
      right += [] if c.right is None else [c.right]
      left += [] if c.left is None else [c.left]
      continue
    here = parts.flat(c.last.layout) if c.last is not None else ()
    if c.last is not None and {*here} <= {*batch, *places}:
      # Of several places of a batch the last sees most, so no key behind is read; which
      # place sees which key, the mask still says.
      lengths.append((c.last, c.right + 1))
      if {*here} <= {*batch}:
        continue  # the length says it all
    masks.append((c.seen, c.yes))
  return Visible(
    min(right, default=None),
    min(left, default=None),
    tuple(lengths),
    tuple(masks),
  )
