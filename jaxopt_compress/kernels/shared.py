"""Products that read the same rows, with the norm of these in front: one claim.

    q, k, v = norm(x) @ w_q + b_q, norm(x) @ w_k + b_k, norm(x) @ w_v + b_v

Rows are rounded once for all of them, and the norm is computed where they are read.
What else reads the norm, as the residual sum of a post-norm block does, gets it as a
further result.
"""

from collections.abc import Iterable
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
from jax import lax

from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift
from jaxopt_compress.kernels import dots
from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import flow as flow_lib
from jaxopt_compress.kernels import moments


class Member(NamedTuple):
  """A product of a leaf and the shared operand.

  Attributes:
    at: its position in the body.
    x: the other operand.
    weight: the operand that may be a leaf.
    side: which operand that is.
  """

  at: int
  x: Any
  weight: Any
  side: int


@dataclasses.dataclass(frozen=True)
class Group:
  """Products that are computed together.

  Attributes:
    members: the products.
    chains: what follows each.
    norm: of what they read, or None.
    indices: positions of all equations, in order.
    keeps: variables that are the norm and that others read.
  """

  members: tuple[Member, ...]
  chains: tuple[epilogues.Chain, ...]
  norm: moments.Found | None
  indices: tuple[int, ...]
  keeps: tuple[Any, ...]


def find(
  jaxpr, leaves: Iterable[Any], taken: Iterable[int] = ()
) -> list[Group]:
  """The groups of a body: of several products, or of one with a norm.

  Args:
    jaxpr: the body.
    leaves: variables that are leaves.
    taken: positions of equations that are left alone.
  """
  flow = flow_lib.Flow(jaxpr)
  groups, taken = [], {*taken}
  for members in _by_operand(flow, leaves):
    members = [m for m in members if m.at not in taken]
    group = _group(flow, members, taken) if members else None
    if group is not None:
      groups.append(group)
      taken.update(group.indices)
  return groups


def _by_operand(flow, leaves) -> list[list[Member]]:
  """The products with leaves, those that read the same in the same way together."""
  near, first = flow.perhaps_leaves(leaves), flow.first_alike()
  found = {}
  for at, eqn in enumerate(flow.jaxpr.eqns):
    product = epilogues.product(eqn)
    if product is None or product[0].primitive is not lax.dot_general_p:
      continue
    equation, operands = product
    sides = [
      i for i, v in enumerate(operands) if jaxprs.is_var(v) and v in near
    ]
    if len(sides) != 1 or not jaxprs.is_var(operands[1 - sides[0]]):
      continue
    (side,) = sides
    summed, batch = equation.params['dimension_numbers']
    x = operands[1 - side]
    if not any(batch):
      # Reshapes of one value count as one, if rows are summed over the same axes.
      key = first.get(x, x), tuple(summed[1 - side])
      member = Member(at, x, operands[side], side)
      found.setdefault(key, []).append(member)
  return list(found.values())


def _group(flow, members, taken) -> Group | None:
  """The products that read the same, if they are worth a claim."""
  norm = _norm(flow, members)
  if norm is not None and not taken.isdisjoint(norm.indices):
    norm = None
  if norm is None and len(members) == 1:
    return None
  inside = {m.at for m in members}.union(norm.indices if norm else ())
  # A chain may not take what another one has: the first product chooses first.
  chains, taken = [], taken | inside
  for member in members:
    chains.append(_chain(flow, member, inside, taken))
    taken = taken.union(chains[-1].indices)
  indices = inside.union(*(chain.indices for chain in chains))
  keeps = ()
  if norm is not None:
    # Several variables may be the norm, in other shapes; who is not of the group and
    # reads one of them gets it as a further result.
    alike = sorted(norm.equals, key=flow.makers.__getitem__)
    keeps = [v for v in alike if not indices.issuperset(flow.readers[v])]
  ordered = tuple(sorted(indices))
  return Group(tuple(members), tuple(chains), norm, ordered, tuple(keeps))


def _norm(flow, members) -> moments.Found | None:
  """The norm that products read the rows of."""
  for m in members:
    equation, _ = epilogues.product(flow.jaxpr.eqns[m.at])
    (summed, _) = equation.params['dimension_numbers']
    # The kernel norms rows, which is what a product reads if its last axis is summed.
    if tuple(summed[1 - m.side]) != (m.x.aval.ndim - 1,):
      return None
  return moments.find(flow, [m.x for m in members])


def _chain(flow, member, inside, taken) -> epilogues.Chain:
  """What follows a product and needs nothing that is computed with it."""
  if member.side == 0:  # its columns are not the last axes of results
    return epilogues.alone(member.at, flow.jaxpr)
  # What is made with the group cannot be read by it: the chain ends before that.
  later = set()
  while True:
    chain = epilogues.following(member.at, flow, taken, later)
    needed = [v for v in chain.reads if flow.needs(v, inside)]
    if not needed:
      return chain
    later.update(needed)


def claim(jaxpr, group: Group) -> lift.Claim:
  """Of the equations of a group."""
  members, norm = group.members, group.norm
  x = norm.x if norm else members[0].x
  equations = [epilogues.product(jaxpr.eqns[m.at])[0] for m in members]
  vectors = norm.reads if norm else ()
  dense = (x, *vectors, *(v for chain in group.chains for v in chain.reads))

  def run(read):
    weights = [read(m.weight) for m in members]
    if not all(isinstance(w, dots.PACKED) for w in weights) or any(
      array.is_compressed(read(v)) for v in dense
    ):
      return NotImplemented
    hows = []
    for m, eqn, weight in zip(members, equations, weights, strict=True):
      like = jax.ShapeDtypeStruct(m.x.aval.shape, m.x.aval.dtype)
      names = 'dimension_numbers', 'preferred_element_type'
      said = {name: eqn.params[name] for name in names}
      how = dots.arranged(like, weight, m.side, **said)
      if isinstance(how, lift.Dense):
        return how
      hows.append(how)
    outs = dots.together(
      read(x),
      hows,
      [chain.epilogue(read) for chain in group.chains],
      norm and norm.norm(read),
      bool(group.keeps),
    )
    if outs is NotImplemented:
      return outs
    ys = [y.reshape(v.aval.shape) for y, v in zip(outs, ends, strict=False)]
    return [*ys, *(outs[-1].reshape(v.aval.shape) for v in group.keeps)]

  ends = [jaxpr.eqns[chain.last].outvars[0] for chain in group.chains]
  reads = *dense, *(m.weight for m in members)
  outs = *ends, *group.keeps
  told = 'norm' if norm else ''
  return lift.Claim(equations[0], group.indices, reads, outs, run, told)
