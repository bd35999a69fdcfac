"""Claims: equations of a body that one rule computes together.

    y = x @ w;  t = exp(z);  u = y + b     with a claim on the first and the last:
    t = exp(z);  (y, u) at once

The equations of a claim need not follow each other. A body is put in an order in which
they do: that of the body, but for what has to wait for what a claim reads.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import heapq
from typing import Any

from jaxopt_compress.core import jaxprs


@dataclasses.dataclass(frozen=True)
class Claim:
  """Several equations of a body that one rule computes together.

  Attributes:
    equation: what is recorded as met: one of them, or one inside it.
    indices: their positions in the body, in order.
    reads: variables and literals that `run` reads: what the equations read and do not
      make, or what that was made of.
    outs: variables that they make and others read, in order.
    run: read -> the values of `outs`, where `read` gives the value of each of
      `reads`; `NotImplemented` or `Dense` where the equations are left to run one
      by one.
    told: what `explain` calls that which no leaf takes part in, attention say; then it
      also tells the reason of a `Dense`.
  """

  equation: Any
  indices: tuple[int, ...]
  reads: tuple[Any, ...]
  outs: tuple[Any, ...]
  run: Callable[[Callable[[Any], Any]], Any]
  told: str = ''


def in_order(jaxpr, claims: Sequence[Claim]) -> list[tuple[Claim | None, list]]:
  """[(claim or None, its equations)]: each after those that it needs.

  Of two claims of one equation, of those that need each other, and of one that reads
  what another one does not tell, the first stays.
  """
  apart, taken, untold, read = [], set(), set(), set()
  for claim in claims:
    made = {v for i in claim.indices for v in jaxpr.eqns[i].outvars}
    own, needed = made - {*claim.outs}, {*filter(jaxprs.is_var, claim.reads)}
    clear = untold.isdisjoint(needed) and read.isdisjoint(own)
    if clear and taken.isdisjoint(claim.indices):
      taken.update(claim.indices)
      untold |= own
      read |= needed
      apart.append(claim)
  order, circle = _order(jaxpr.eqns, apart)
  if circle:
    closing = [claim for claim in apart if claim.indices[0] in circle]
    # One that needs itself goes before one that another one needs.
    alone = [claim for claim in closing if _order(jaxpr.eqns, [claim])[1]]
    worst = (alone or closing)[-1]
    # Those that it overlapped have their turn again.
    return in_order(jaxpr, [claim for claim in claims if claim is not worst])
  by_first = {claim.indices[0]: claim for claim in apart}
  steps = [(by_first.get(i), i) for i in order]
  return [
    (claim, [jaxpr.eqns[j] for j in (claim.indices if claim else (i,))])
    for claim, i in steps
  ]


def _order(eqns, claims) -> tuple[list[int], list[int]]:
  """(steps by the positions of their first equations, a circle that forbids that)."""
  first = {i: claim.indices[0] for claim in claims for i in claim.indices}
  # All that a claim reads is made before its last equation: an operand of that, or
  # what an operand was made of.
  reads = {claim.indices[-1]: claim.reads for claim in claims}
  needs, makers, last_effect = {}, {}, None
  for i, eqn in enumerate(eqns):
    step = first.get(i, i)
    read = filter(jaxprs.is_var, (*eqn.invars, *reads.get(i, ())))
    needed = {makers[v] for v in read if v in makers}
    if eqn.effects:  # these stay in their order
      needed |= set() if last_effect is None else {last_effect}
      last_effect = step
    needs.setdefault(step, set()).update(needed - {step})
    makers |= dict.fromkeys(eqn.outvars, step)
  order = _sorted(needs)
  left = needs.keys() - {*order}
  return order, _circle({i: needs[i] & left for i in left}) if left else []


def _sorted(needs: Mapping[int, set[int]]) -> list[int]:
  """Steps, each after those it needs, the earliest first; without circles."""
  waits = {i: len(needed) for i, needed in needs.items()}
  readers = {i: [] for i in needs}
  for i, needed in needs.items():
    for j in needed:
      readers[j].append(i)
  ready = [i for i, n in waits.items() if not n]
  heapq.heapify(ready)
  order = []
  while ready:
    order.append(heapq.heappop(ready))
    for i in readers[order[-1]]:
      waits[i] -= 1
      if not waits[i]:
        heapq.heappush(ready, i)
  return order


def _circle(needs: Mapping[int, set[int]]) -> list[int]:
  """Steps of which each needs the next, and the last the first."""
  path = [min(needs)]
  while (following := min(needs[path[-1]])) not in path:
    path.append(following)
  return path[path.index(following) :]
