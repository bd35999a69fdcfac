"""What each operation says of the channels of its operands.

    a + b          their axes hold the same channels
    x W            what is summed over holds the same channels in both

An operation that is not in the table locks all channels that it meets: channels may
be kept that could have gone, none goes that has to stay. A rule is `(asked, at, inputs)
-> values`, or None for that; `asked` is the `structure.Tied` that collects, `at` the
equation. The table is at the end.
"""

from collections.abc import Callable

from jaxopt_compress.analysis.structure import devices as structure_devices
from jaxopt_compress.analysis.structure import moves as structure_moves
from jaxopt_compress.analysis.structure.tied import nowhere
from jaxopt_compress.analysis.structure.tied import Value
from jaxopt_compress.core import jaxprs

# --------------------------------------------------------------- entry by entry


def _entries(asked, at, inputs, zeros):
  """Entries meet entries; an operand of size 1 meets all.

  `zeros` tells where the result vanishes, from where the operands do.
  """
  axes = []
  for i, n in enumerate(at.shape()):
    meet = [
      x.axes[i]
      for x in inputs
      if x.axes and asked.channels.size(x.axes[i]) == n
    ]
    for other in meet[1:]:
      asked.channels.tie(meet[0], other)
    axes.append(meet[0] if meet else asked.channels.axis(n))
  # Not before: channels that are tied have one name.
  value = Value(tuple(axes), zeros([x.zeros for x in inputs]))
  return [value] * len(at.eqn.outvars)


def _any(asked, at, inputs):
  """Zero says nothing about the result."""
  return _entries(asked, at, inputs, lambda zeros: nowhere)


def _keeps_zero(asked, at, inputs):
  """f(0) = 0, of each operand."""
  return inputs


def _power(asked, at, inputs):
  (x,) = inputs
  if at.eqn.params['y'] < 0:
    return _infinite(asked, at, inputs)
  return [Value(x.axes, x.zeros if at.eqn.params['y'] else nowhere)]


def _root(asked, at, inputs):
  """f(0) = 0 with an infinite slope: a gradient of zero times that is NaN."""
  asked.meets_zero(at, inputs[0], 'has no gradient where they are masked')
  return inputs


def _pow(asked, at, inputs):
  y = at.eqn.invars[1]
  if jaxprs.is_var(y) or y.aval.shape or not y.val > 0:
    return _infinite(asked, at, inputs)
  return (_root if y.val < 1 else _keeps_zero)(asked, at, inputs[:1])


def _infinite(asked, at, inputs):
  """f(0) is not finite."""
  out = _any(asked, at, inputs)
  asked.meets_zero(at, inputs[0])
  return out


def _zero_if_all(asked, at, inputs):
  """Zero where every operand is."""
  return _entries(asked, at, inputs, asked.meet)


def _select(asked, at, inputs):
  return _entries(asked, at, inputs, lambda zeros: asked.meet(zeros[1:]))


def _zero_if_one(asked, at, inputs):
  """Zero where one operand is."""
  return _entries(asked, at, inputs, asked.unite)


def _divide(asked, at, inputs):
  (out,) = _entries(asked, at, inputs, lambda zeros: zeros[0])
  asked.meets_zero(at, inputs[1])
  return [out]


# -------------------------------------------------------------------- reductions


def _sum(asked, at, inputs):
  (x,) = inputs
  gone, kept = asked.apart(x, at.eqn.params['axes'])
  flat = tuple(c for axis in gone for c in axis)
  asked.sums_over(at, flat, x.zeros)
  zeros = asked.only(x.zeros, kept)
  return [Value(kept, zeros)]


def _extreme(asked, at, inputs):
  (x,) = inputs
  gone, kept = asked.apart(x, at.eqn.params['axes'])
  for axis in gone:
    asked.inexact(axis, asked.said(at, 'compares them'))
  return [Value(kept, asked.only(x.zeros, kept))]


def _rank(asked, at, inputs):
  """What becomes of one entry depends on which others there are."""
  p = at.eqn.params
  along = p.get('axes', (p.get('axis', p.get('dimension', -1)),))
  out = []
  for x, v in zip(inputs * len(at.eqn.outvars), at.eqn.outvars, strict=False):
    axes = list(x.axes)
    for i in along:
      asked.channels.lock(axes[i], asked.said(at, 'ranks them'))
      if len(v.aval.shape) == len(axes):
        n = v.aval.shape[i]
        axes[i] = asked.channels.axis(n, asked.said(at, 'ranks them'))
    if len(v.aval.shape) < len(axes):
      axes = [
        a for i, a in enumerate(axes) if i not in [d % len(axes) for d in along]
      ]
    out.append(Value(tuple(axes), nowhere))
  return out


def _cumulate(asked, at, inputs):
  (x,), i = inputs, at.eqn.params['axis']
  asked.channels.lock(x.axes[i], asked.said(at))
  axes = list(x.axes)
  axes[i] = asked.channels.axis(at.shape()[i], asked.said(at))
  zeros = x.zeros if at.eqn.primitive.name in ('cumsum', 'cumprod') else nowhere
  return [Value(tuple(axes), zeros)]


def _windows(asked, at, inputs):
  x, shape = inputs[0], at.shape()
  axes = list(x.axes)
  for i, n in enumerate(at.eqn.params['window_dimensions']):
    if n > 1 or shape[i] != asked.channels.size(axes[i]):
      asked.channels.lock(axes[i], asked.said(at))
      axes[i] = asked.channels.axis(shape[i], asked.said(at))
  return [Value(tuple(axes), x.zeros)]


# ---------------------------------------------------------------------- products


def _dot(asked, at, inputs):
  x, y = inputs
  (lc, rc), (lb, rb) = at.eqn.params['dimension_numbers']
  for i, j in zip((*lc, *lb), (*rc, *rb), strict=True):
    asked.channels.tie(x.axes[i], y.axes[j])
  for i in lc:
    asked.sums_over(at, x.axes[i], asked.unite([x.zeros, y.zeros]))
  left = [a for i, a in enumerate(x.axes) if i not in (*lc, *lb)]
  right = [a for i, a in enumerate(y.axes) if i not in (*rc, *rb)]
  batch = [x.axes[i] for i in lb]
  zeros = asked.unite(
    [
      asked.only(x.zeros, [*batch, *left]),
      asked.only(y.zeros, [*batch, *right]),
    ]
  )
  return [Value((*batch, *left, *right), zeros)]


def _conv(asked, at, inputs):
  x, w = inputs
  p, shape = at.eqn.params, at.shape()
  if p['batch_group_count'] != 1:
    return None
  lhs, rhs, out = p['dimension_numbers']
  groups = p['feature_group_count']
  features = w.axes[rhs[0]]
  why = asked.said(at)
  if groups > 1:
    # Output channels lie group after group, as input channels do.
    parts = asked.channels.split(
      features, asked.channels.size(features) // groups
    )
    if parts is None:
      return None
    asked.channels.tie(x.axes[lhs[1]], (*parts[0], *w.axes[rhs[1]]))
  else:
    asked.channels.tie(x.axes[lhs[1]], w.axes[rhs[1]])
  zeros = asked.unite([x.zeros, w.zeros])
  asked.sums_over(at, w.axes[rhs[1]], zeros)
  axes = [()] * len(shape)
  axes[out[0]], axes[out[1]] = x.axes[lhs[0]], features
  for i, j, o in zip(lhs[2:], rhs[2:], out[2:], strict=True):
    size = asked.channels.size
    if size(w.axes[j]) == 1 and size(x.axes[i]) == shape[o]:
      axes[o] = x.axes[i]  # place by place
      continue
    asked.channels.lock(x.axes[i], why)
    asked.channels.lock(w.axes[j], why)
    axes[o] = asked.channels.axis(shape[o], why)
  return [Value(tuple(axes), asked.only(zeros, axes))]


_TABLE = {
  _any: (
    'exp exp2 cos acos acosh cosh logistic erfc erf_inv'
    ' is_finite eq ne lt le gt ge not atan2 nextafter rem '
    ' population_count bitcast_convert_type shift_left shift_right_logical'
    ' shift_right_arithmetic or xor'
  ),
  _keeps_zero: (
    'neg abs sign floor ceil round tanh sin tan asin atan sinh asinh atanh expm1'
    ' log1p square erf real imag convert_element_type reduce_precision'
    ' copy copy_p stop_gradient optimization_barrier pvary sharding_constraint'
    ' name reshard'
  ),
  _power: 'integer_pow',
  _pow: 'pow',
  _root: 'sqrt cbrt',
  _infinite: 'log rsqrt lgamma digamma',
  _zero_if_all: 'add sub max min add_any clamp',
  _select: 'select_n',
  _zero_if_one: 'mul and',
  _divide: 'div',
  _sum: 'reduce_sum',
  _extreme: 'reduce_max reduce_min reduce_prod reduce_and reduce_or',
  _rank: 'sort',
  _cumulate: 'cumsum cumprod cummax cummin cumlogsumexp',
  _windows: 'reduce_window_sum reduce_window_max reduce_window_min',
  _dot: 'dot_general',
  _conv: 'conv_general_dilated',
}

RULES: dict[str, Callable] = {
  name: rule for rule, names in _TABLE.items() for name in names.split()
} | {**structure_moves.RULES, **structure_devices.RULES}
