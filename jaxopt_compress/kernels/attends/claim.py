"""Attention of a program, computed by one kernel.

What `match` finds is claimed where nothing else reads what is in between. The kernel
reads queries, keys and values where they were written, and its results lie as what
follows them reads them. Derivatives are those of the program.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift
from jaxopt_compress.kernels import flow as flow_lib
from jaxopt_compress.kernels import scores as scores_lib
from jaxopt_compress.kernels.attends import match
from jaxopt_compress.kernels.attends import operands
from jaxopt_compress.kernels.attends import roles as roles_lib
from jaxopt_compress.kernels.cpu import attention
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.quantization import straight

# What `explain` calls it.
_TOLD = 'attention'


def find(jaxpr, leaves) -> list[lift.Claim]:
  """The claims of attention in a body, and of what is told to be none for the kernel."""
  if not native.available():
    return []
  flow = flow_lib.Flow(jaxpr)
  near = flow.perhaps_leaves(leaves)
  claims = []
  for found in match.find(flow):
    if isinstance(found, match.Attention):
      claims.append(_claim(flow, found))
    elif near.isdisjoint(filter(jaxprs.is_var, found.product.invars)):
      # Products of leaves are for their rules, which tell what they do.
      claims.append(_declined(flow, found.product, found.reason))
  return claims


def _declined(flow, product, reason) -> lift.Claim:
  """What leaves a product as it is, and tells why."""
  at = flow.makers[product.outvars[0]]
  reads = tuple(filter(jaxprs.is_var, product.invars))
  outs = tuple(product.outvars)

  def run(read):
    del read
    return lift.Dense(reason)

  return lift.Claim(product, (at,), reads, outs, run, _TOLD)


def _claim(flow, found: match.Attention) -> lift.Claim:
  """The claim of attention, which declines where others read what is in between."""
  eqns = flow.jaxpr.eqns
  path = _slice(flow, found.out.v, set(found.sources))
  members = _alone(flow, path, found.out.v)
  first = found.scores.product
  if not {flow.makers[first.outvars[0]], path[-1]} <= {*members}:
    why = 'scores or weights are also read elsewhere, so they have to be stored'
    return _declined(flow, first, why)
  made = {v for i in path for v in eqns[i].outvars}
  inputs = [v for i in path for v in eqns[i].invars if jaxprs.is_var(v)]
  reads = [v for v in dict.fromkeys([*found.sources, *inputs]) if v not in made]

  def dense(*values):
    known = dict(zip(reads, array.materialize(list(values)), strict=True))
    return jaxprs.run_together([eqns[i] for i in path], known, [found.out.v])[0]

  def run(read):
    values = [read(v) for v in reads]
    for v, x in zip(reads, values, strict=True):
      if array.is_compressed(x) and not operands.readable(found, v, x):
        return lift.Dense(
          'of compressed operands it reads a cache in int8, a scale for each row'
        )
    return (_compute(found, dense, dict(zip(reads, values, strict=True))),)

  # Members that nothing reads are no part of the path, and may read more than it does.
  outside = [v for i in members for v in eqns[i].invars if jaxprs.is_var(v)]
  mine = {v for i in members for v in eqns[i].outvars}
  outside = [v for v in dict.fromkeys([*reads, *outside]) if v not in mine]
  return lift.Claim(first, members, tuple(outside), (found.out.v,), run, _TOLD)


def _slice(flow, out, sources) -> tuple[int, ...]:
  """The positions of the equations that make `out` of its sources."""
  found, due = set(), [out]
  while due:
    at = flow.makers.get(due.pop())
    if at is not None and at not in found:
      found.add(at)
      inputs = filter(jaxprs.is_var, flow.jaxpr.eqns[at].invars)
      due += [v for v in inputs if v not in sources]
  return tuple(sorted(found))


def _alone(flow, path, out) -> tuple[int, ...]:
  """Those of a path that are read by others of it alone, and what nothing reads."""
  eqns = flow.jaxpr.eqns
  members = set(path)
  unread = {
    i
    for i, eqn in enumerate(eqns)
    if not eqn.effects and not any(flow.readers.get(v) for v in eqn.outvars)
  }
  # From the end, as an equation can only stay if all that reads it stays.
  for i in reversed(path):
    readers = {
      j
      for v in eqns[i].outvars
      if v is not out
      for j in flow.readers.get(v, ())
    }
    if not readers <= members | unread:
      members.remove(i)
    else:
      members |= readers & unread
  return tuple(sorted(members))


# ---------------------------------------------------------------------- running


def _compute(found: match.Attention, dense, values):
  """Attention by the kernel of CPUs, elsewhere as the program has it."""

  def on_cpu(*args):
    return _by_kernel(found, dict(zip(values, args, strict=True)))

  args = tuple(values.values())
  # The kernel has no derivative: `as_if` takes that of the program.
  fixed = jax.tree.map(lax.stop_gradient, args)
  out = lax.platform_dependent(*fixed, cpu=on_cpu, default=dense)
  return straight.as_if(dense, out, *args)


def _by_kernel(found: match.Attention, values):
  """Attention by the kernel.

  Args:
    found: what is computed.
    values: of its sources.
  """
  s, r, parts = found.scores, found.roles, found.parts
  placed, orders = operands.of(found, values)
  read = functools.partial(operands.read, values)
  bias = mask = lengths = None
  for seen, factor in s.biases:
    more = _beside(found, seen, read(seen).astype(jnp.float32) * factor)
    bias = more if bias is None else bias + more
  for seen, yes in found.visible.masks:
    x = read(seen).astype(bool)
    more = _beside(found, seen, x if yes else ~x)
    mask = more if mask is None else mask & more
  for seen, more in found.visible.lengths:
    here = _lengths(found, seen, read(seen), more)
    lengths = here if lengths is None else jnp.minimum(lengths, here)
  word = r.order('out', parts.flat(found.out.layout)) or 'bthd'
  form = attention.Form(
    **orders,
    out=word,
    scale=s.scale,
    **(dict(masked=s.masked) if s.masks else {}),
    **_bounds(found),
  )
  read_by_it = attention.Operands(
    **placed, bias=bias, mask=mask, key_lengths=lengths
  )
  wanted = found.out.v.aval
  y = scores_lib.attend(read_by_it, form, operands.dtype([wanted]))
  y = roles_lib.from_result(y, word, parts.flat(found.out.layout), r, parts)
  return y.reshape(wanted.shape).astype(wanted.dtype)


def _beside(found, seen, x):
  flat = found.parts.flat(seen.layout)
  return roles_lib.as_scores(x, flat, found.roles, found.parts)


def _lengths(found, seen, x, more):
  """The largest of a value for each batch, plus a number: [batch] int32."""
  r, parts = found.roles, found.parts
  x = roles_lib.as_scores(x, parts.flat(seen.layout), r, parts)
  size = parts.size(r.batch)
  # Of what differs along places, the last place sees most.
  x = x.max((1, 2, 3))
  # Of numbers far beyond all keys none is to wrap in the cast or the addition.
  most, known = parts.size(r.keys) + abs(more), jnp.iinfo(x.dtype)
  x = jnp.clip(x, max(-most, known.min), min(most, known.max))
  return jnp.broadcast_to(x, (size,)).astype(jnp.int32) + more


def _bounds(found):
  """`causal` and `window` of a form."""
  right, left = found.visible.right, found.visible.left
  # A side without a bound is a window that is wider than there are places and keys.
  most = found.parts.size(found.roles.places) + found.parts.size(
    found.roles.keys
  )
  if left is None and right in (None, 0):
    return dict(causal=right == 0)
  window = (most if left is None else left), (most if right is None else right)
  return dict(causal=right == 0, window=window)
