"""What each operation does to the factors that its operands carry.

    a + b       both carry the same factor, and so does the sum
    x W         W takes up what the result carries over what x carries
    max(x, 0)   lets a positive factor pass
    exp(x)      lets none pass: it is not in the table

A rule is `(asked, at, inputs) -> values`, or None where no factor may pass: `asked` is
the `factors.Factors` that collects, `at` the equation. The table is at the end.
"""

from collections.abc import Callable
import functools

import jax
import numpy as np

from jaxopt_compress.analysis import factors
from jaxopt_compress.analysis import moved
from jaxopt_compress.analysis.factors import plain
from jaxopt_compress.analysis.factors import Taken
from jaxopt_compress.analysis.factors import Value

# ----------------------------------------------------------------- entry by entry


def _sum(asked, at, inputs):
  return [asked.alike(inputs, at.shape())]


def _select(asked, at, inputs):
  which, *cases = inputs
  asked.fix(which)
  return [asked.alike(cases, at.shape())]


def _compare(asked, at, inputs):
  # a < b says the same of both in one factor.
  asked.alike(inputs, at.shape())
  return [plain(at.shape())]


def _sign(asked, at, inputs):
  return [plain(at.shape())]


def _same(asked, at, inputs):
  return list(inputs)


def _convert(asked, at, inputs):
  dtype = at.eqn.outvars[0].aval.dtype
  kept = jax.numpy.issubdtype(dtype, np.floating) or inputs[0].fixed
  return [inputs[0]] if kept else None


def _multiply(asked, at, inputs):
  shape = at.shape()
  if any(x.zero for x in inputs):
    return [plain(shape, zero=True)]
  a, b = (_wide(x, shape) for x in inputs)
  if a.is_leaf != b.is_leaf:
    leaf, x = (a, b) if a.is_leaf else (b, a)
    if x.fixed and x.read is not None:
      return [leaf]  # still a parameter
    return [_gain(asked, leaf, x, shape)]
  if asked.is_one(b):
    return [a]
  if asked.is_one(a):
    return [b]
  asked.fix(b)
  return [a]


def _divide(asked, at, inputs):
  a, b = (_wide(x, at.shape()) for x in inputs)
  asked.fix(b)
  return [a]


def _wide(x, shape):
  """An operand of fewer axes, or of size 1 on some, in the shape of the result."""
  if x.shape == shape:
    return x
  lead = len(shape) - len(x.shape)
  wide = x.map(lambda p: p.reshape((1,) * lead + p.shape), shape)
  return Value(wide.factors, shape, x.zero, x.path, wide.index, x.read)


def _gain(asked, leaf, x, shape):
  """y = x * leaf: the leaf takes up what y carries over what x carries."""
  repeated = [i for i, n in enumerate(leaf.index.shape) if n == 1]
  before = asked.one_along(x.factors, repeated)
  after = asked.fresh(leaf.index.shape)
  terms = ((1, after), (-1, before))
  read = leaf.read or functools.partial(factors.cannot_read, leaf.path)
  asked.taken.append(Taken(leaf.path, leaf.index, terms, gain=read))
  return Value(after, shape)


# ------------------------------------------------------------------ moving entries


def _move(asked, at, inputs):
  x, move = inputs[0], moved.of(at.eqn)
  carried = move.entries(x.factors)
  if carried is None:
    return None
  indices = move.entries(x.index) if x.is_leaf else [None] * len(carried)
  return [
    Value(f, at.shape(i), x.zero, x.path, index)
    for i, (f, index) in enumerate(zip(carried, indices, strict=True))
  ]


def _concatenate(asked, at, inputs):
  parts = [np.broadcast_to(asked.carried(x), x.shape) for x in inputs]
  whole = np.concatenate(parts, at.eqn.params['dimension'])
  return [Value(moved.narrow(whole), at.shape())]


def _pad(asked, at, inputs):
  x, filling = inputs
  padded = [i for i, p in enumerate(at.eqn.params['padding_config']) if any(p)]
  carried = asked.one_along(asked.carried(x), padded)
  if not filling.zero:
    asked.equal(carried, factors.ONE)
  return [Value(carried, at.shape())]


def _dynamic_slice(asked, at, inputs):
  x, *starts = inputs
  for start in starts:
    asked.fix(start)
  if x.is_leaf:
    return None
  sizes = at.eqn.params['slice_sizes']
  cut = [i for i, n in enumerate(sizes) if n != x.shape[i]]
  return [Value(asked.one_along(x.factors, cut), at.shape(), x.zero)]


# ----------------------------------------------------------------------- reductions


def _reduce(asked, at, inputs):
  axes = tuple(at.eqn.params['axes'])
  carried = asked.one_along(asked.carried(inputs[0]), axes)
  return [Value(carried.squeeze(axes), at.shape())]


def _arg(asked, at, inputs):
  asked.one_along(asked.carried(inputs[0]), at.eqn.params['axes'])
  return [plain(at.shape())]


def _cumulate(asked, at, inputs):
  axes = (at.eqn.params['axis'],)
  return [Value(asked.one_along(asked.carried(inputs[0]), axes), at.shape())]


def _windows(asked, at, inputs):
  before, after = inputs[0].shape, at.shape()
  axes = [
    i
    for i, n in enumerate(at.eqn.params['window_dimensions'])
    if n > 1 or after[i] != before[i]
  ]
  return [Value(asked.one_along(asked.carried(inputs[0]), axes), after)]


# ------------------------------------------------------------------------- products


def _dot(asked, at, inputs):
  (lc, rc), (lb, rb) = at.eqn.params['dimension_numbers']
  sides = ((lc, lb), (rc, rb))
  leaves = [x for x in inputs if x.is_leaf]
  if len(leaves) == 2 or any(x.index.shape != x.shape for x in leaves):
    return None
  if leaves:
    side = int(inputs[1].is_leaf)
    return [_weight_dot(asked, inputs, sides, side, at.shape())]
  return [_values_dot(asked, inputs, sides, at.shape())]


def _free_axes(ndim, contracting, batch):
  return [i for i in range(ndim) if i not in contracting and i not in batch]


def _of_result(carried, num_batch, num_other, side):
  """Factors [batch..., free...] of one operand, as those of the product.

  Its axes are [batch..., free of the left, free of the right]: the other operand's
  are of size 1.
  """
  batch, free = carried.shape[:num_batch], carried.shape[num_batch:]
  other = (1,) * num_other
  return carried.reshape(batch + (other + free if side else free + other))


def _weight_dot(asked, inputs, sides, side, shape):
  """y = x . w: w takes up what y carries over what x carries."""
  w, x = inputs[side], inputs[1 - side]
  contracted, batch = sides[side]
  of_x, batch_x = sides[1 - side]
  free_w = _free_axes(len(w.shape), contracted, batch)
  free_x = _free_axes(len(x.shape), of_x, batch_x)
  carried = asked.one_along(x.factors, free_x)
  # What x carries, in the axes of w: each axis of x that meets one of w goes
  # there, the free ones of x, all of size 1, go last and fall away.
  meets = dict(zip((*batch, *contracted), (*batch_x, *of_x), strict=True))
  before = carried.transpose([meets[i] for i in sorted(meets)] + free_x)
  before = before.reshape(
    [carried.shape[meets[i]] if i in meets else 1 for i in range(len(w.shape))]
  )
  # What y carries is one unknown for each batch and free entry of w. They are
  # made in the order of y and brought to that of w.
  held = (*batch, *free_w)
  made = asked.fresh([w.shape[i] for i in held])
  after = made.transpose(np.argsort(held, kind='stable')) if held else made
  after = after.reshape(
    [w.shape[i] if i in held else 1 for i in range(len(w.shape))]
  )
  terms = ((1, after), (-1, before))
  asked.taken.append(Taken(w.path, w.index, terms, product=True))
  return Value(_of_result(made, len(batch), len(free_x), side), shape)


def _values_dot(asked, inputs, sides, shape):
  """The product of two values of the program."""
  frees = [
    _free_axes(len(x.shape), *axes)
    for x, axes in zip(inputs, sides, strict=True)
  ]
  ones = [x.zero or asked.is_one(x) for x in inputs]
  if any(ones):
    # The other one's factor passes, if it is one along what is summed.
    side = 0 if ones[1] else 1
    contracted, batch = sides[side]
    carried = asked.one_along(inputs[side].factors, contracted)
    carried = carried.transpose([*batch, *frees[side], *contracted])
    carried = carried.squeeze(tuple(range(-len(contracted), 0)))
    return Value(
      _of_result(carried, len(batch), len(frees[1 - side]), side), shape
    )
  # Along what is summed each pair of factors must cancel.
  both = []
  for x, (contracted, batch), free in zip(inputs, sides, frees, strict=True):
    carried = asked.one_along(x.factors, free)
    carried = carried.transpose([*batch, *contracted, *free])
    both.append(
      carried.squeeze(tuple(range(carried.ndim - len(free), carried.ndim)))
    )
  asked.opposite(*both)
  return plain(shape)


def _conv(asked, at, inputs):
  x, w = inputs
  p = at.eqn.params
  weighted = w.is_leaf and w.index.shape == w.shape and not x.is_leaf
  if not weighted or p['batch_group_count'] != 1:
    return None
  lhs, rhs, out = p['dimension_numbers']
  carried = asked.one_along(x.factors, (lhs[0], *lhs[2:])).reshape(-1)
  carried = np.broadcast_to(carried, (x.shape[lhs[1]],))
  groups = p['feature_group_count']
  n_out, n_in = w.shape[rhs[0]], w.shape[rhs[1]]
  made = asked.fresh((n_out,))
  # Each output channel meets the input channels of its own group: [n_out, n_in].
  before = np.repeat(carried.reshape(groups, n_in), n_out // groups, axis=0)
  before = before if rhs[0] < rhs[1] else before.T
  after = made.reshape(_along(len(w.shape), {rhs[0]: n_out}))
  before = before.reshape(_along(len(w.shape), {rhs[0]: n_out, rhs[1]: n_in}))
  terms = ((1, after), (-1, before))
  asked.taken.append(Taken(w.path, w.index, terms, product=True))
  shape = at.shape()
  return [Value(made.reshape(_along(len(shape), {out[1]: n_out})), shape)]


def _along(rank, sizes):
  """A shape of size 1 but for some axes."""
  return [sizes.get(i, 1) for i in range(rank)]


def _gather(asked, at, inputs):
  table, indices = inputs
  d, sizes = at.eqn.params['dimension_numbers'], at.eqn.params['slice_sizes']
  rows = tuple(d.start_index_map)
  by_row = tuple(d.collapsed_slice_dims) == rows and not getattr(
    d, 'operand_batching_dims', ()
  )
  kept = [i for i in range(len(table.shape)) if i not in rows]
  if table.is_leaf and table.index.shape != table.shape:
    return None
  if not by_row or any(sizes[i] != table.shape[i] for i in kept):
    return None
  asked.fix(indices)
  shape = at.shape()
  if table.is_leaf:
    carried = asked.fresh(_along(len(table.shape), {i: sizes[i] for i in kept}))
    terms = ((1, carried),)
    asked.taken.append(Taken(table.path, table.index, terms, product=True))
  else:
    carried = asked.one_along(table.factors, rows)
  # Entries of a row lie along `offset_dims` of the result, in order.
  places = zip(d.offset_dims, kept, strict=True)
  result = _along(len(shape), {j: carried.shape[i] for j, i in places})
  zero = table.zero and not table.is_leaf
  return [Value(carried.reshape(result), shape, zero)]


def _refuse(asked, at, inputs):
  """The loop or the devices are not entered: no factor passes."""
  return None


_TABLE = {
  _sum: 'add sub max min add_any clamp',
  _select: 'select_n',
  _compare: 'eq ne lt le gt ge',
  _sign: 'sign is_finite',
  _same: (
    'neg abs copy copy_p reduce_precision pvary stop_gradient'
    ' optimization_barrier'
  ),
  _convert: 'convert_element_type',
  _multiply: 'mul',
  _divide: 'div',
  _move: (
    'broadcast_in_dim expand_dims reshape rev slice split squeeze transpose'
  ),
  _concatenate: 'concatenate',
  _pad: 'pad',
  _dynamic_slice: 'dynamic_slice',
  _reduce: 'reduce_sum reduce_max reduce_min',
  _arg: 'argmax argmin',
  _cumulate: 'cumsum cummax cummin',
  _windows: 'reduce_window_sum reduce_window_max reduce_window_min',
  _dot: 'dot_general',
  _conv: 'conv_general_dilated',
  _gather: 'gather',
  _refuse: 'while shard_map',
}

RULES: dict[str, Callable] = {
  name: rule for rule, names in _TABLE.items() for name in names.split()
}
