"""Scores of attention, by what is computed between two products.

    x = where(mask, scale (q k) + bias, masked)

in any order in which that comes: factors before or after the product, several masks,
masks as bias. A program that does anything else with scores is left as it is.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.attends import traced


@dataclasses.dataclass(frozen=True)
class Scores:
  """What is made of a product before the softmax.

  Attributes:
    product: the equation.
    layout: of its result.
    scale: a number.
    factors: values of one entry that scores are multiplied by, too.
    biases: what is added to scaled scores, each with its factor.
    masks: bool, and what stands for "may be seen" in it.
    masked: the score of what may not be seen.
  """

  product: Any
  layout: Any
  scale: float = 1.0
  factors: tuple[traced.Seen, ...] = ()
  biases: tuple[tuple[traced.Seen, float], ...] = ()
  masks: tuple[tuple[traced.Seen, bool], ...] = ()
  masked: float = 0.0


def find(trace: traced.Trace, seen: traced.Seen) -> Iterator[Scores]:
  """What a value may be as scores: in most programs one thing or none."""
  seen = trace.back(seen)
  eqn = trace.maker(seen.v)
  if eqn is None:
    return
  operands = trace.operands(eqn, seen.layout)
  match eqn.primitive.name:
    case 'dot_general':
      yield Scores(eqn, seen.layout)
    case 'mul':
      for x, factor in (operands, operands[::-1]):
        yield from _scaled(trace, x, factor, 1)
    case 'div':
      yield from _scaled(trace, *operands, -1)
    case 'add':
      # Either side may be the scores: the other one is tried where that is none.
      for x, bias in (operands, operands[::-1]):
        yield from _shifted(trace, x, bias, 1.0)
    case 'sub':
      yield from _shifted(trace, *operands, -1.0)
    case 'select_n' if len(operands) == 3:
      which, *cases = operands
      for seen_if in (False, True):
        yield from _masked(trace, which, cases, seen_if)


def _scaled(trace, seen, factor, power) -> Iterator[Scores]:
  number = trace.constant(factor.v)
  for s in find(trace, seen) if _is_one(factor.v) or number is not None else ():
    if number is None:
      # Biases and masks would have to be multiplied, too.
      if power == 1 and not s.biases and not s.masks:
        yield dataclasses.replace(s, factors=(*s.factors, factor))
    elif number > 0:
      # What was added or masked before is scaled with them.
      number = float(number**power)
      yield dataclasses.replace(
        s,
        scale=s.scale * number,
        biases=tuple((b, f * number) for b, f in s.biases),
        masked=s.masked * number,
      )


def _is_one(v) -> bool:
  return np.prod(v.aval.shape, dtype=int) == 1


def _shifted(trace, seen, bias, sign) -> Iterator[Scores]:
  for s in find(trace, seen):
    # What is added to masked scores, too, changes nothing if they are -inf.
    if not s.masks or s.masked == -np.inf:
      yield dataclasses.replace(s, biases=(*s.biases, (bias, sign)))


def _masked(trace, which, cases, seen_if) -> Iterator[Scores]:
  number = trace.constant(cases[not seen_if].v)
  if number is None:
    return
  for s in find(trace, cases[seen_if]):
    if not s.masks or s.masked == number:
      masks = (*s.masks, (which, seen_if))
      yield dataclasses.replace(s, masks=masks, masked=number)


# ------------------------------------------------------------------- operands


@dataclasses.dataclass(frozen=True)
class Operand:
  """What a product reads, where it was written.

  Attributes:
    seen: the value, behind moves and casts that keep its numbers.
    scale: a number that it is multiplied by.
  """

  seen: traced.Seen
  scale: float = 1.0


def operand(trace: traced.Trace, seen: traced.Seen) -> Operand:
  """A factor of a product, without what scales it."""
  scale = 1.0
  while True:
    seen = trace.back(seen, casts='wider')
    eqn = trace.maker(seen.v)
    name = eqn.primitive.name if eqn is not None else ''
    if name not in ('mul', 'div'):
      return Operand(seen, scale)
    first, second = trace.operands(eqn, seen.layout)
    for x, factor in ((first, second), (second, first))[
      : 2 if name == 'mul' else 1
    ]:
      number = trace.constant(factor.v)
      if (
        number is not None
        and number > 0
        and x.v.aval.shape == seen.v.aval.shape
      ):
        scale *= number if name == 'mul' else 1 / number
        seen = x
        break
    else:
      return Operand(seen, scale)


def floats(v) -> bool:
  """Whether kernels compute with the numbers of a value."""
  return v.aval.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
