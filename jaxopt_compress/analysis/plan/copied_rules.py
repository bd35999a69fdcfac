"""What each operation does to the shares that its operands carry.

    a + b          both carry the same
    x W            the powers along what is summed over add up to one
    exp(x)         x carries none

A rule is `(asked, at, inputs) -> values`, or None where all operands have to be plain
copies: `asked` is the `copied.Copied` that collects, `at` the equation. The table is at
the end.
"""

from collections.abc import Callable

import numpy as np

from jaxopt_compress.analysis.plan import copied
from jaxopt_compress.analysis.plan import scaled
from jaxopt_compress.analysis.plan.copied import Value
from jaxopt_compress.core import jaxprs

# A number that is added to keep what is inverted from zero: it counts as nothing where
# what it is added to has to be another.
_EPSILON = 1e-3

# ----------------------------------------------------------------- entry by entry


def _same(asked, at, inputs):
  return [inputs[0]] * len(at.eqn.outvars)


def _convert(asked, at, inputs):
  kept = np.issubdtype(at.eqn.outvars[0].aval.dtype, np.integer)
  return None if kept else [inputs[0]]


def _alike(asked, at, inputs):
  """What meets entry by entry, and has to carry the same."""
  known = [x for x in inputs if not x.zero]
  if not known:
    return [inputs[0]]
  axes = tuple(
    {g: asked.alike(at, [asked.power(x, i, g) for x in known], g) for g in gs}
    for i, gs in enumerate(asked.groups(at)[1][0])
  )
  return [Value(axes, asked.same_log(at, known))]


def _sum(asked, at, inputs):
  for x, v in zip(inputs, reversed(at.eqn.invars), strict=True):
    # What is added to a mean square: exact where that stays what it was, and else next
    # to nothing, whatever its factor.
    small = not jaxprs.is_var(v) and np.shape(v.val) == ()
    if small and 0 < abs(float(v.val)) <= _EPSILON:
      forms = [x.log, *(f for axis in x.axes for f in axis.values())]
      said = f'{float(v.val):g} at {at.source}'
      asked.near += [(form, said) for form in forms if form]
      return [x]
  return _alike(asked, at, inputs)


def _select(asked, at, inputs):
  asked.plain_copy(inputs[0], asked.groups(at)[0][0], at)
  return _alike(asked, at, inputs[1:])


def _compare(asked, at, inputs):
  _alike(asked, at, inputs)
  return asked.plain_results(at)


def _join(asked, at, inputs):
  """One after the other: a group is carried by those that have it."""
  ins, (out,) = asked.groups(at)
  along = at.eqn.params.get('axis')
  known = [(x, gs) for x, gs in zip(inputs, ins, strict=True) if not x.zero]
  axes = [
    {
      g: asked.alike(
        at, [asked.power(x, i, g) for x, gs in known if g in gs[i]], g
      )
      for g in groups
    }
    for i, groups in enumerate(o for j, o in enumerate(out) if j != along)
  ]
  if along is not None:
    axes.insert(along, {})  # of a stack, which has no groups there
  return [Value(tuple(axes), asked.same_log(at, inputs))]


def _pad(asked, at, inputs):
  x, filling = inputs
  if not filling.zero:
    asked.plain_copy(x, asked.groups(at)[0][0], at)
  return [x._replace(weight='')]


def _product(sign):
  def product(asked, at, inputs):
    x, y = inputs
    if x.zero or (sign > 0 and y.zero):
      return [asked.plain_results(at)[0]._replace(zero=True)]
    axes = tuple(
      {
        g: scaled.plus(asked.power(x, i, g), asked.power(y, i, g), sign)
        for g in gs
      }
      for i, gs in enumerate(asked.groups(at)[1][0])
    )
    for a, b in ((x, y), (y, x)):
      if a.weight and not b.weight:
        asked.places.gains |= {
          k for axis in a.axes for f in axis.values() for k in f
        }
    # Of numbers and weights alone: still a weight.
    number = not all(map(jaxprs.is_var, at.eqn.invars))
    weight = x.weight if number or y.weight else ''
    return [Value(axes, scaled.plus(x.log, y.log, sign), weight)]

  return product


def _power(of: Callable):
  def power(asked, at, inputs):
    times = of(at.eqn)
    if times is None:
      return None
    axes = tuple(
      {g: _times(asked.power(inputs[0], i, g), times) for g in gs}
      for i, gs in enumerate(asked.groups(at)[1][0])
    )
    return [Value(axes, _times(inputs[0].log, times))]

  return power


def _times(form, factor):
  return {k: factor * v for k, v in form.items() if factor}


def _exponent(eqn):
  y = eqn.invars[1]
  return None if jaxprs.is_var(y) or np.shape(y.val) else float(y.val)


# ------------------------------------------------------------------ moving entries


def _move(asked, at, inputs):
  """Entries of one operand, at other places; the groups of an axis go with it."""
  ins, outs = asked.groups(at)
  values = []
  for out in outs:
    axes, met = [], {}
    for groups in out:
      # A group that lies along several axes keeps their order.
      axis = {}
      for g in groups:
        places = [i for i, gs in enumerate(ins[0]) if g in gs]
        n = met[g] = met.get(g, -1) + 1
        axis[g] = (
          asked.power(inputs[0], places[n], g) if n < len(places) else {}
        )
      axes.append(axis)
    values.append(
      Value(tuple(axes), inputs[0].log, inputs[0].weight, None, inputs[0].zero)
    )
  return values


def _transpose(asked, at, inputs):
  (x,), ins = inputs, asked.groups(at)[0][0]
  order = at.eqn.params['permutation']
  axes = tuple({g: asked.power(x, i, g) for g in ins[i]} for i in order)
  return [x._replace(axes=axes, loop=None)]


def _first_of(asked, at, inputs):
  """Entries of the first operand, at places that the others say."""
  for x, axes in zip(inputs[1:], asked.groups(at)[0][1:], strict=True):
    asked.plain_copy(x, axes, at)
  return _move(asked, at, inputs)


def _gather(asked, at, inputs):
  table, ins = inputs[0], asked.groups(at)[0][0]
  for i in at.eqn.params['dimension_numbers'].start_index_map:
    # Which copy an index means is for the program to say: all have to be alike.
    for g in ins[i]:
      asked.want(asked.power(table, i, g), g, copied.said(at))
  asked.places.products |= {table.weight} - {''}
  (out,) = _first_of(asked, at, inputs)
  return [out._replace(weight='')]


def _write(asked, at, inputs):
  # What is written, and what it is written over; indices between or behind.
  n = 3 if at.eqn.primitive.name.startswith('scatter') else 2
  ins, (out,) = asked.groups(at)
  x, y = inputs[0], inputs[n - 1]
  others = [i for i in range(1, len(inputs)) if i != n - 1]
  for i in others:
    asked.plain_copy(inputs[i], ins[i], at)
  known = [(v, i) for v, i in ((x, 0), (y, n - 1)) if not v.zero]
  axes = []
  for groups in out:
    axes.append(
      {
        g: asked.alike(
          at, [p for v, i in known for p in _powers(asked, v, ins[i], g)], g
        )
        for g in groups
      }
    )
  return [Value(tuple(axes), asked.same_log(at, [x, y]))]


def _powers(asked, x, ins, group):
  return [asked.power(x, i, group) for i, gs in enumerate(ins) if group in gs][
    :1
  ]


# ----------------------------------------------------------------------- reductions


def _reduce_sum(asked, at, inputs):
  (x,), ins = inputs, asked.groups(at)[0][0]
  gone, log = at.eqn.params['axes'], x.log
  for i in gone:
    for g in ins[i]:
      _own(asked, at, x, g)
      off = asked.summed(at, asked.power(x, i, g), g, product=False)
      log = scaled.plus(log, off)
  return [Value(_left(asked, x, ins, gone), log)]


def _own(asked, at, x, group):
  """Meets what goes over all of a group."""
  if x.own:
    asked.places.reduced.setdefault(group, copied.said(at))


def _left(asked, x, ins, gone):
  return tuple(
    {g: asked.power(x, i, g) for g in gs}
    for i, gs in enumerate(ins)
    if i not in gone
  )


def _extreme(asked, at, inputs):
  (x,), ins = inputs, asked.groups(at)[0][0]
  for i in at.eqn.params['axes']:
    for g in ins[i]:
      asked.want(asked.power(x, i, g), g, copied.said(at))
      asked.repeats[g] = copied.said(at)
      _own(asked, at, x, g)
  return [Value(_left(asked, x, ins, at.eqn.params['axes']), x.log)]


def _rank(asked, at, inputs):
  """Which entry comes first is another question among copies."""
  p = at.eqn.params
  along = p.get('axes', (p.get('axis', p.get('dimension', -1)),))
  for x, axes in zip(inputs, asked.groups(at)[0], strict=True):
    asked.plain_copy(x, axes, at)
    for g in (g for i in along for g in axes[i]):
      asked.broken[g] = f'{copied.said(at)} chooses among them'
  return asked.plain_results(at)


def _drawn(asked, at, inputs):
  for out in asked.groups(at)[1]:
    for groups in out:
      for g in groups:
        asked.broken[g] = f'{copied.said(at)} draws other numbers'
  return None


# ------------------------------------------------------------------------- products


def _contracted(asked, at, x, y, pairs, ins, log):
  """Meets the sums of a product over pairs of axes; returns the factor."""
  alike = at.eqn.invars[0] is at.eqn.invars[1]
  for i, j in pairs:
    for g in ins[0][i]:
      if alike or x.weight == y.weight != '':
        _own(asked, at, x, g)
      powers = asked.power(x, i, g), asked.power(y, j, g)
      for value, power in zip((x, y), powers, strict=True):
        if value.weight:
          asked.places.reads |= power.keys() - {''}
      off = asked.summed(at, scaled.plus(*powers), g, product=not alike)
      log = scaled.plus(log, off)
  return log


def _dot(asked, at, inputs):
  x, y = inputs
  (lc, rc), (lb, rb) = at.eqn.params['dimension_numbers']
  return _dotted(asked, at, x, y, (lc, rc), (lb, rb), ())


def _ragged_dot(asked, at, inputs):
  x, y, sizes = inputs
  d = at.eqn.params['ragged_dot_dimension_numbers']
  asked.plain_copy(sizes, asked.groups(at)[0][2], at)
  groups = tuple(d.rhs_group_dimensions)
  for i in groups:
    for g in asked.groups(at)[0][1][i]:
      asked.broken[g] = f'{copied.said(at)} has a group of rows for each'
  return _dotted(asked, at, x, y, *d.dot_dimension_numbers, groups)


def _dotted(asked, at, x, y, contracted, batch, skipped):
  ins = asked.groups(at)[0]
  asked.places.products |= {x.weight, y.weight} - {''}
  log = scaled.plus(x.log, y.log)
  log = _contracted(asked, at, x, y, zip(*contracted, strict=True), ins, log)
  (lc, rc), (lb, rb) = contracted, batch
  axes = [
    {
      g: scaled.plus(asked.power(x, i, g), asked.power(y, j, g))
      for g in ins[0][i]
    }
    for i, j in zip(lb, rb, strict=True)
  ]
  for value, k, gone in ((x, 0, (*lc, *lb)), (y, 1, (*rc, *rb, *skipped))):
    axes += _left(asked, value, ins[k], gone)
  return [Value(tuple(axes), log)]


def _conv(asked, at, inputs):
  x, w = inputs
  if at.eqn.params['batch_group_count'] != 1:
    return None
  lhs, rhs, out = at.eqn.params['dimension_numbers']
  ins, (outs,) = asked.groups(at)
  channels, into, made = lhs[1], rhs[1], rhs[0]
  asked.places.products |= {w.weight} - {''}
  # Of a grouped convolution an input channel is one of its group: `into` has those.
  log = scaled.plus(x.log, w.log)
  for g in ins[1][into]:
    power = asked.power(w, into, g)
    if w.weight:
      asked.places.reads |= power.keys() - {''}
    total = scaled.plus(asked.power(x, channels, g), power)
    log = scaled.plus(log, asked.summed(at, total, g, product=True))
  axes = [{} for _ in outs]
  passed = ins[0][channels] - ins[1][into]
  axes[out[1]] = {
    g: scaled.plus(
      asked.power(w, made, g),
      asked.power(x, channels, g) if g in passed else {},
    )
    for g in outs[out[1]]
  }
  for i, o in ((lhs[0], out[0]), *zip(lhs[2:], out[2:], strict=True)):
    axes[o] = {g: asked.power(x, i, g) for g in outs[o]}
  return [Value(tuple(axes), log)]


_TABLE = {
  _same: (
    'neg abs real copy copy_p stop_gradient optimization_barrier pvary reshard'
    ' sharding_constraint name reduce_precision all_gather psum cumsum cummax'
    ' cummin reduce_window_sum reduce_window_max reduce_window_min rev'
  ),
  _convert: 'convert_element_type',
  _alike: 'max min clamp',
  _join: 'concatenate stack',
  _pad: 'pad',
  _sum: 'add sub add_any',
  _select: 'select_n',
  _compare: 'eq ne lt le gt ge',
  _product(1.0): 'mul',
  _product(-1.0): 'div',
  _power(lambda eqn: float(eqn.params['y'])): 'integer_pow',
  _power(lambda eqn: 2.0): 'square',
  _power(lambda eqn: 0.5): 'sqrt',
  _power(lambda eqn: -0.5): 'rsqrt',
  _power(_exponent): 'pow',
  _move: (
    'reshape squeeze expand_dims broadcast_in_dim tile slice split unstack'
  ),
  _transpose: 'transpose',
  _first_of: 'dynamic_slice',
  _gather: 'gather',
  _write: 'dynamic_update_slice scatter scatter-add scatter_add',
  _reduce_sum: 'reduce_sum',
  _extreme: 'reduce_max reduce_min',
  _rank: 'sort top_k argmax argmin',
  _drawn: 'random_bits rng_uniform rng_bit_generator random_gamma',
  _dot: 'dot_general',
  _ragged_dot: 'ragged_dot_general',
  _conv: 'conv_general_dilated',
}

RULES: dict[str, Callable] = {
  name: rule for rule, names in _TABLE.items() for name in names.split()
}
