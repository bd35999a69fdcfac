"""Attention in a program: two products around a softmax.

    y = softmax(where(mask, scale (q k) + bias, masked)) v

It is found by what is computed, whatever axes there are and however they lie, as
libraries and people write it. A program that does something else with scores or
weights is none: dropout, a soft cap.
"""

import dataclasses
from typing import Any

from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import jaxprs
from jaxopt_compress.kernels import flow as flow_lib
from jaxopt_compress.kernels.attends import axes
from jaxopt_compress.kernels.attends import logits as logits_lib
from jaxopt_compress.kernels.attends import roles as roles_lib
from jaxopt_compress.kernels.attends import softmaxes
from jaxopt_compress.kernels.attends import stacked
from jaxopt_compress.kernels.attends import traced
from jaxopt_compress.kernels.attends import visible as visible_lib
from jaxopt_compress.quantization import product

# Masked scores count as nothing beside others; a program may say so with any
# number that is as small.
_MASKED = -1e4
# What makes numbers of codes, besides moves: a cast and a scale.
_UNROUNDS = (
  'convert_element_type',
  'mul',
  'sub',
  'reshape',
  'transpose',
  'broadcast_in_dim',
  'squeeze',
)


@dataclasses.dataclass(frozen=True)
class Attention:
  """Attention of a body.

  Attributes:
    scores: what is made of the product of queries and keys.
    visible: which keys a query may see.
    query, key, value: where they were written.
    out: the result, behind moves and casts.
    roles: what its axes are for.
    parts: of all axes.
    layer: None, or the number or variable of the layer that key and value are of
      caches of all layers: then these have another axis first of all.
  """

  scores: logits_lib.Scores
  visible: visible_lib.Visible
  query: logits_lib.Operand
  key: logits_lib.Operand
  value: logits_lib.Operand
  out: traced.Seen
  roles: roles_lib.Roles
  parts: axes.Parts
  layer: Any = None

  @property
  def sources(self) -> list[Any]:
    """The variables that it is computed from."""
    s = self.scores
    seen = [x.seen for x in (self.query, self.key, self.value)]
    more = (*s.biases, *self.visible.masks, *self.visible.lengths)
    seen += [*s.factors, *(x for x, _ in more)]
    found = [x.v for x in seen if jaxprs.is_var(x.v)]
    return found if not hasattr(self.layer, 'aval') else [*found, self.layer]


@dataclasses.dataclass(frozen=True)
class Other:
  """A product of a softmax that the kernel does not compute, and why."""

  product: Any
  reason: str


def find(flow: flow_lib.Flow) -> list[Attention | Other]:
  """All attention of a body, by its second products, in order."""
  found = []
  for eqn in flow.jaxpr.eqns:
    if eqn.primitive is lax.dot_general_p:
      # The softmax is either operand. What other attention makes is its result.
      ends = {a.out.v for a in found if isinstance(a, Attention)}
      sides = [_with_weights(flow, eqn, side, ends) for side in (0, 1)]
      ours = [a for a in sides if isinstance(a, Attention)]
      reasons = [a for a in sides if isinstance(a, str)]
      reasons += _of_codes(flow, eqn) + _of_others(flow, eqn)
      found += ours[:1] or [Other(eqn, reason) for reason in reasons[:1]]
  return found


def _with_weights(flow, eqn, side, ends) -> Attention | str | None:
  """The attention that ends in a product, one operand of which is the softmax.

  What has a softmax there and is none of ours is the reason why.
  """
  trace = traced.Trace(flow, ends=ends)
  out = traced.Seen(eqn.outvars[0], trace.parts.new(eqn.outvars[0].aval.shape))
  both, summed = _operands(trace, eqn, out.layout)
  weights, value = both[side], both[1 - side]
  soft = softmaxes.find(trace, weights)
  rest = None if soft else (soft := softmaxes.power(trace, weights))
  if soft is None or {*trace.parts.flat(summed)} != {
    *trace.parts.known(soft.keys)
  }:
    return None
  out = _result(trace, out, rest)
  if out is None:
    return None
  why = 'scores are something else than a product, scaled, biased and masked'
  for scores in logits_lib.find(trace, soft.x):
    if scores.masks and scores.masked > _MASKED:
      why = f'masked scores are {scores.masked:g}, which counts beside others'
      continue
    found = _attention(trace, scores, soft, value, out)
    if isinstance(found, Attention):
      return found
    why = found
  return why


def _of_codes(flow, eqn) -> list[str]:
  """Why a product of rounded activations is no attention for the kernel."""
  kinds = [_codes_behind(flow, v) for v in eqn.invars]
  if None in kinds:
    return []
  words = ' and '.join(dict.fromkeys(map(str, kinds)))
  return [f'both operands are rounded to {words}: the kernel multiplies floats']


def _of_others(flow, eqn) -> list[str]:
  """Why a product whose operand is made of a softmax is no attention for the kernel."""
  if not any(_softmax_behind(flow, v) for v in eqn.invars):
    return []
  return ['its weights are something else than a softmax over the keys']


def _softmax_behind(flow, v) -> bool:
  """Whether there are powers and their sum between a value and products before it."""
  # As far back as the products before: what they read is none of this softmax.
  due, names = [v], set()
  seen = set()
  while due:
    eqn = flow.maker(v) if jaxprs.is_var(v := due.pop()) else None
    if eqn is None or id(eqn) in seen or eqn.primitive is lax.dot_general_p:
      continue
    seen.add(id(eqn))
    bodies = [eqn, *(e for body in jaxprs.inside(eqn) for e in body.eqns)]
    names.update(e.primitive.name for e in bodies)
    due += eqn.invars
  return {'exp', 'reduce_sum'} <= names


def _codes_behind(flow, v):
  """The type of the codes that a value is, or is made of by scales; else None."""
  while jaxprs.is_var(v):
    if v.aval.dtype.itemsize == 1 and v.aval.dtype != bool:
      return v.aval.dtype
    eqn = flow.maker(v)
    if eqn is None or eqn.primitive.name not in _UNROUNDS:
      return None
    v = eqn.invars[0]
  return None


def _operands(trace, eqn, layout):
  """([lhs, rhs], the axes summed over) of a product, by the layout of its result."""
  d = product.dims(eqn.params['dimension_numbers'])
  shapes = [v.aval.shape for v in eqn.invars]
  summed = trace.parts.new([shapes[0][i] for i in d.contracting[0]])
  # A product's result has batch axes first, then those of lhs, then those of rhs that
  # are left: walking through them in order gives each operand its axes back.
  rest, found = iter(layout[len(d.batch[0]) :]), []
  for side, v in enumerate(eqn.invars):
    known = dict(zip(d.batch[side], layout, strict=False))
    known |= dict(zip(d.contracting[side], summed, strict=True))
    whole = tuple(
      known[i] if i in known else next(rest) for i in range(v.aval.ndim)
    )
    found.append(traced.Seen(v, whole))
  return found, summed


def _result(trace, out, rest) -> traced.Seen | None:
  """The result behind what moves it, and behind the division if that is missing."""
  while (readers := trace.flow.readers.get(out.v, ())) and len(readers) == 1:
    if readers[0] is None:
      break
    eqn = trace.flow.jaxpr.eqns[readers[0]]
    name = eqn.primitive.name
    if name == 'convert_element_type':
      layout = out.layout if logits_lib.floats(eqn.outvars[0]) else None
    elif rest is not None and name in ('div', 'mul'):
      layout = _if_divided(trace, eqn, out, rest)
      rest = None if layout else rest
    else:
      layout = axes.after(trace.parts, eqn, out.layout)
    if layout is None:
      break
    out = traced.Seen(eqn.outvars[0], layout)
  return out if rest is None else None


def _if_divided(trace, eqn, out, rest):
  """The layout of a result that an equation divides by the sum of powers."""
  operands = trace.operands(eqn, out.layout)
  others = [x for x in operands if x.v is not out.v]
  inverse = eqn.primitive.name == 'mul'
  if len(others) != 1 or not (inverse or eqn.invars[0] is out.v):
    return None
  fits = softmaxes.divides(trace, others[0], rest, inverse=inverse)
  return out.layout if fits else None


def _attention(trace, scores, soft, value, out) -> Attention | str:
  """What scores are part of, if it all fits together; else why it does not."""
  parts = trace.parts
  # The keys tell which operand is which: queries have none of their parts.
  both, summed = _operands(trace, scores.product, scores.layout)
  keys = {*parts.known(soft.keys)}
  with_keys = [bool(keys & {*parts.flat(x.layout)}) for x in both]
  if sum(with_keys) != 1:
    return 'scores are no product of queries and keys'
  key, query = both[with_keys.index(True)], both[with_keys.index(False)]
  query, key, value = (
    logits_lib.operand(trace, x) for x in (query, key, value)
  )
  operands = query, key, value
  if value.scale != 1:
    return 'values are scaled where they are read'
  for v in (*(x.seen.v for x in operands), out.v):
    if not logits_lib.floats(v):
      return f'the kernel has no {v.aval.dtype}'
  if out.v.aval.dtype == jnp.float16:
    return 'the kernel writes no float16'
  if 0 in out.v.aval.shape:
    return 'its result is empty'
  scores = dataclasses.replace(
    scores,
    scale=scores.scale * query.scale * key.scale,
    biases=tuple((trace.back(x), f) for x, f in scores.biases),
  )
  # A key's number counts its parts in the order in which the keys lie.
  in_order = tuple(p for p in parts.flat(key.seen.layout) if p in keys)
  conditions = [
    c
    for x, yes in scores.masks
    for c in visible_lib.conditions(trace, x, yes, in_order)
  ]
  roles = _roles(trace, scores, conditions, operands, out, keys, summed)
  if roles is None:
    return 'its axes are not those of attention'
  visible = visible_lib.resolve(conditions, parts, roles.batch, roles.places)
  key, value, layer = _whole(trace, roles, key, value)
  return Attention(scores, visible, query, key, value, out, roles, parts, layer)


def _whole(trace, roles, key, value):
  """(key, value, None), or the caches of all layers that they are cut from."""
  found = []
  for name, x in (('key', key), ('value', value)):
    cut = stacked.find(trace, x.seen)
    axes_of = cut and tuple(map(trace.parts.known, cut.whole.layout))
    found.append(cut if cut and roles.as_it_is(name, axes_of) else None)
  k, v = found
  # The kernel takes one number of a layer for both.
  if k is None or v is None or k.meant != v.meant:
    return key, value, None
  if k.whole.v.aval.shape[0] != v.whole.v.aval.shape[0]:
    return key, value, None
  key, value = (
    dataclasses.replace(x, seen=cut.whole) for x, cut in ((key, k), (value, v))
  )
  return key, value, k.index


def _roles(trace, scores, conditions, operands, out, keys, summed):
  """What the axes are for."""
  parts = trace.parts
  beside = [x for x, _ in scores.biases]
  beside += [c.seen for c in conditions if c.places is None and c.last is None]
  diagonals = [c.places for c in conditions if c.places is not None]
  layouts = [x.layout for x in (*(x.seen for x in operands), out)]
  flat = [parts.flat(x) for x in layouts]
  index = tuple(p for p in parts.flat(scores.layout) if p not in keys)
  shapes = roles_lib.Shapes(
    parts,
    index,
    *flat,
    tuple(parts.flat(x.layout) for x in beside),
    diagonals[0] if diagonals else None,
    tuple(tuple(map(parts.known, x)) for x in layouts),
  )
  return roles_lib.choose(shapes, keys, parts.flat(summed))
