"""Which integers number which channels, and what that says of them.

    top_k(x W)          integers that number the columns of W: the experts
    table[ids]          integers of an input that number the rows of the table
    ids == iota         one-hot: the new axis holds what the ids number

The numbers of channels may go through what moves entries, and meet each other. All
else that is computed from them keeps the channels as they are. So experts may go: the
router chooses among those that are left. Rules are as in `structure_rules`, which see.
"""

from collections.abc import Callable
import functools

from jaxopt_compress.analysis import table_rows
from jaxopt_compress.analysis.structure import rules as structure_rules
from jaxopt_compress.analysis.structure import tied
from jaxopt_compress.core import jaxprs

Value = tied.Value

# What gives the entries of its operand, or some of them.
CARRY = frozenset(
  'transpose squeeze expand_dims broadcast_in_dim tile reshape rev slice split'
  ' convert_element_type copy copy_p stop_gradient optimization_barrier pvary'
  ' sharding_constraint name dynamic_slice'.split()
)


def _carry(rule, asked, at, inputs):
  """An operation that gives entries of its operand: numbers stay numbers."""
  for x in inputs[1:]:
    asked.lock_numbers(x, asked.said(at, 'is given their numbers'))
  outs = rule(asked, at, inputs)
  return outs and [out._replace(numbers=inputs[0].numbers) for out in outs]


def _compute(rule, asked, at, inputs):
  """An operation that knows no numbers of channels."""
  for x in inputs:
    asked.lock_numbers(x, asked.said(at, 'computes with their numbers'))
  outs = rule(asked, at, inputs)
  return outs and [out._replace(numbers=()) for out in outs]


def _otherwise(asked, at, inputs):
  rule = structure_rules.RULES[at.eqn.primitive.name]
  return _compute(rule, asked, at, inputs)


def _iota(asked, at, inputs):
  """The place of an entry on an axis."""
  shape, along = at.shape(), at.eqn.params['dimension']
  axes = tuple(map(asked.channels.axis, shape))
  return [Value(axes, tied.nowhere, (asked.numbering.new(axes[along]),))]


def _top(asked, at, inputs):
  """The numbers of the largest: those that go cannot be among them."""
  (x,), p = inputs, at.eqn.params
  asked.lock_numbers(x, asked.said(at, 'ranks their numbers'))
  (i,) = p['axes'] if 'axes' in p else (p['axis'],)
  i, k = i % len(x.axes), p.get('k')
  asked.inexact(x.axes[i], asked.said(at, 'chooses others where they go'))
  asked.takes(x.axes[i], k or 1)
  new = [] if k is None else [asked.channels.axis(k, asked.said(at))]
  axes = (*x.axes[:i], *new, *x.axes[i + 1 :])
  ids = Value(axes, tied.nowhere, (asked.numbering.new(x.axes[i]),))
  return [ids] if k is None else [Value(axes), ids]


def _sort(asked, at, inputs):
  """Entries along an axis; sorted beside the numbers of its places, their order."""
  along = at.eqn.params['dimension']
  first, *others = inputs
  for other in others:
    for a, b in zip(first.axes, other.axes, strict=True):
      asked.channels.tie(a, b)
  axis = first.axes[along]
  ranked = any(
    asked.channels.factors(axis) == asked.channels.factors(places)
    for x in inputs
    for places in [asked.numbering.axis(k) for k in x.numbers]
    if places is not None
  )
  if not ranked:
    outs = structure_rules.RULES['sort'](asked, at, inputs)
  else:
    asked.inexact(axis, asked.said(at, 'chooses others where they go'))
    ranks = asked.channels.axis(at.shape()[along], asked.said(at))
    outs = [
      Value((*x.axes[:along], ranks, *x.axes[along + 1 :])) for x in inputs
    ]
  return [
    out._replace(numbers=x.numbers) for out, x in zip(outs, inputs, strict=True)
  ]


def _equal(asked, at, inputs):
  """Numbers that are compared number the same channels."""
  x, y = inputs
  if not (x.numbers and y.numbers):
    return _otherwise(asked, at, inputs)
  asked.tie_numbers(x, y, asked.said(at))
  return structure_rules.RULES[at.eqn.primitive.name](asked, at, inputs)


def _below_zero(asked, at, inputs):
  """Whether a number counts from the end."""
  if inputs[1].zeros is not tied.everywhere:
    return _otherwise(asked, at, inputs)
  return structure_rules.RULES[at.eqn.primitive.name](asked, at, inputs)


def _add(asked, at, inputs):
  """A number that counts from the end, and as many as there are."""
  x, n = inputs
  if x.numbers and not n.numbers:
    if n.zeros is tied.everywhere:
      return [x]
    n = at.eqn.invars[1]
    if not jaxprs.is_var(n) and asked.counted(x, int(n.val)):
      return [x]
  return _otherwise(asked, at, inputs)


def _at_least_zero(asked, at, inputs):
  """max(0, number)."""
  x, y = inputs
  for number, least in ((x, y), (y, x)):
    if number.numbers and least.zeros is tied.everywhere:
      return [number]
  return _otherwise(asked, at, inputs)


def _clamp(asked, at, inputs):
  least, x, most = inputs
  n = at.eqn.invars[2]
  if (
    x.numbers
    and least.zeros is tied.everywhere
    and not jaxprs.is_var(n)
    and asked.counted(x, int(n.val) + 1)
  ):
    return [x]
  return _otherwise(asked, at, inputs)


def _select(asked, at, inputs):
  """One number or another."""
  which, *cases = inputs
  if which.numbers or not all(x.numbers for x in cases):
    return _otherwise(asked, at, inputs)
  for other in cases[1:]:
    asked.tie_numbers(cases[0], other, asked.said(at))
  outs = structure_rules.RULES['select_n'](asked, at, inputs)
  return [out._replace(numbers=cases[0].numbers) for out in outs]


def _concatenate(asked, at, inputs):
  """Numbers of one kind, or one of each kind: a place on several axes."""
  outs = structure_rules.RULES['concatenate'](asked, at, inputs)
  along = at.eqn.params['dimension']
  last = along == len(at.shape()) - 1
  if outs is None or not any(x.numbers for x in inputs):
    return outs
  if last and all(asked.channels.size(x.axes[-1]) == 1 for x in inputs):
    numbers = [x.numbers[0] if x.numbers else None for x in inputs]
    return [out._replace(numbers=tuple(numbers)) for out in outs]
  if not all(len(x.numbers) == 1 for x in inputs):
    return _otherwise(asked, at, inputs)
  for x in inputs[1:]:
    asked.tie_numbers(inputs[0], x, asked.said(at))
  return [out._replace(numbers=inputs[0].numbers) for out in outs]


def _indexed(asked, at, x, indices, rows, single):
  """Says of the axes of x what their indices number.

  Those in `single` give one entry; of others an index is where a part starts.
  """
  kinds = indices.numbers
  if len(kinds) != len(rows) or not set(rows) <= set(single):
    asked.lock_numbers(indices, asked.said(at, 'mixes their numbers'))
    kinds = (None,) * len(rows)
  for i, kind in zip(rows, kinds, strict=True):
    if kind is None:
      asked.channels.lock(x.axes[i], asked.said(at, 'is indexed'))
    else:
      asked.numbering.bind(kind, x.axes[i], asked.said(at, 'is indexed'))


def _gather(asked, at, inputs):
  """Rows of a table, by their numbers."""
  table, indices = inputs
  d, sizes = at.eqn.params['dimension_numbers'], at.eqn.params['slice_sizes']
  apart, single = tuple(d.operand_batching_dims), tuple(d.collapsed_slice_dims)
  whole = [asked.channels.size(axis) for axis in table.axes]
  rows = table_rows.chosen(d, sizes, whole)
  _indexed(asked, at, table, indices, rows, single)
  for i, j in zip(apart, d.start_indices_batching_dims, strict=True):
    asked.channels.tie(table.axes[i], indices.axes[j])
  kept = [i for i in range(len(table.axes)) if i not in (*single, *apart)]
  axes = dict(zip(d.offset_dims, kept, strict=True))
  # The last axis of the indices is a place; the others are those of the result.
  batch = iter(indices.axes[:-1])
  out = []
  for i, n in enumerate(at.shape()):
    if i not in axes:
      out.append(next(batch))
      continue
    axis = table.axes[axes[i]]
    if sizes[axes[i]] != asked.channels.size(axis):
      asked.channels.lock(axis, asked.said(at))
      axis = asked.channels.axis(n, asked.said(at))
    out.append(axis)
  zeros = asked.only(table.zeros, out)
  return [Value(tuple(out), zeros, table.numbers)]


def _scatter(asked, at, inputs):
  """Entries go to, or are added at, the places that numbers say."""
  x, indices, updates = inputs
  d = at.eqn.params['dimension_numbers']
  rows, apart = (
    tuple(d.scatter_dims_to_operand_dims),
    tuple(d.operand_batching_dims),
  )
  single = tuple(d.inserted_window_dims)
  for value in (x, updates):
    asked.lock_numbers(value, asked.said(at, 'adds their numbers'))
  _indexed(asked, at, x, indices, rows, single)
  for i, j in zip(apart, d.scatter_indices_batching_dims, strict=True):
    asked.channels.tie(x.axes[i], indices.axes[j])
  kept = [i for i in range(len(x.axes)) if i not in (*single, *apart)]
  window = dict(zip(d.update_window_dims, kept, strict=True))
  batch = iter(indices.axes[:-1])
  for j, axis in enumerate(updates.axes):
    other = x.axes[window[j]] if j in window else next(batch)
    if asked.channels.size(axis) == asked.channels.size(other):
      asked.channels.tie(axis, other)
    else:
      asked.channels.lock(axis, asked.said(at))
      asked.channels.lock(other, asked.said(at))
  zeros = asked.only(asked.meet([x.zeros, updates.zeros]), x.axes)
  return [Value(x.axes, zeros)]


def _ragged_dot(asked, at, inputs):
  """Rows in groups, each times the matrix of its group."""
  x, w, sizes = inputs
  d = at.eqn.params['ragged_dot_dimension_numbers']
  (lc, rc), (lb, rb) = d.dot_dimension_numbers
  groups = tuple(d.rhs_group_dimensions)
  if len(groups) != 1 or set(d.lhs_ragged_dimensions) & {*lc, *lb}:
    return None
  for value in inputs:
    asked.lock_numbers(value, asked.said(at, 'computes with their numbers'))
  asked.channels.tie(w.axes[groups[0]], sizes.axes[-1])
  for i, j in zip((*lc, *lb), (*rc, *rb), strict=True):
    asked.channels.tie(x.axes[i], w.axes[j])
  for i in lc:
    asked.sums_over(at, x.axes[i], asked.unite([x.zeros, w.zeros]))
  left = [a for i, a in enumerate(x.axes) if i not in (*lc, *lb)]
  skip = (*rc, *rb, *groups)
  right = [a for i, a in enumerate(w.axes) if i not in skip]
  axes = (*(x.axes[i] for i in lb), *left, *right)
  asked.inexact(
    w.axes[groups[0]], asked.said(at, 'has a group of rows for each')
  )
  zeros = asked.unite([asked.only(x.zeros, axes), asked.only(w.zeros, axes)])
  return [Value(axes, zeros)]


_TABLE = {
  _iota: 'iota',
  _top: 'top_k argmax argmin',
  _sort: 'sort',
  _equal: 'eq ne',
  _below_zero: 'lt ge',
  _add: 'add',
  _at_least_zero: 'max',
  _clamp: 'clamp',
  _select: 'select_n',
  _concatenate: 'concatenate',
  _gather: 'gather',
  _scatter: 'scatter scatter-add scatter_add scatter-mul scatter_mul',
  _ragged_dot: 'ragged_dot_general',
}

RULES: dict[str, Callable] = {
  name: functools.partial(_carry if name in CARRY else _compute, rule)
  for name, rule in structure_rules.RULES.items()
} | {name: rule for rule, names in _TABLE.items() for name in names.split()}
