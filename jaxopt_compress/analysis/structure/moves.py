"""What operations that move entries say of the channels of their operands.

    reshape        an axis comes apart into a product, or is one of several
    concatenate    an axis is the sum of others

As in `structure_rules`, which see, a rule is `(asked, at, inputs) -> values`, or None.
"""

from collections.abc import Callable
import math

from jaxopt_compress.analysis import moved
from jaxopt_compress.analysis.structure.tied import everywhere
from jaxopt_compress.analysis.structure.tied import nowhere
from jaxopt_compress.analysis.structure.tied import Value


def _move(asked, at, inputs):
  (x,) = inputs
  (axes,) = moved.of(at.eqn).axes(x.axes)
  return [x._replace(axes=tuple(axes))]


def _expand(asked, at, inputs):
  (x,), shape = inputs, at.shape()
  new = [d % len(shape) for d in at.eqn.params['dimensions']]
  old = iter(x.axes)
  return [
    x._replace(
      axes=tuple(() if i in new else next(old) for i in range(len(shape)))
    )
  ]


def _broadcast(asked, at, inputs):
  x, shape = inputs[0], at.shape()
  places = dict(zip(at.eqn.params['broadcast_dimensions'], x.axes, strict=True))
  axes = []
  for i, n in enumerate(shape):
    kept = i in places and asked.channels.size(places[i]) == n
    axes.append(places[i] if kept else asked.channels.axis(n))
  return [x._replace(axes=tuple(axes))]


def _tile(asked, at, inputs):
  (x,) = inputs
  axes = zip(at.eqn.params['reps'], x.axes, strict=True)
  new = tuple((*asked.channels.axis(n), *axis) for n, axis in axes)
  return [x._replace(axes=new)]


def _reshape(asked, at, inputs):
  x, shape = inputs[0], at.shape()
  if at.eqn.params['dimensions'] is not None:
    x = x._replace(axes=tuple(x.axes[i] for i in at.eqn.params['dimensions']))
  old = [asked.channels.size(a) for a in x.axes]
  axes = [()] * len(shape)
  if math.prod(old) == 0:
    return None
  for before, after in moved.common_blocks(old, shape):
    left = tuple(c for i in before for c in x.axes[i])
    for i in reversed(after):
      parts = asked.channels.split(left, shape[i])
      if parts is None:
        for j in after:
          axes[j] = asked.channels.axis(shape[j], asked.said(at))
        break
      left, axes[i] = parts
  return [x._replace(axes=tuple(axes))]


def _reverse(asked, at, inputs):
  (x,) = inputs
  axes = list(x.axes)
  for i in at.eqn.params['dimensions']:
    asked.channels.lock(axes[i], asked.said(at))
    axes[i] = asked.channels.axis(at.shape()[i], asked.said(at))
  return [x._replace(axes=tuple(axes))]


def _slice(asked, at, inputs):
  (x,), p = inputs, at.eqn.params
  strides = p['strides'] or (1,) * len(x.axes)
  axes = [
    _piece(asked, at, axis, start, limit, stride)
    for axis, start, limit, stride in zip(
      x.axes, p['start_indices'], p['limit_indices'], strides, strict=True
    )
  ]
  return [x._replace(axes=tuple(axes))]


def _piece(asked, at, axis, start, limit, stride):
  n = asked.channels.size(axis)
  size = math.ceil((limit - start) / stride)
  if size == n:
    return axis
  if stride == 1:
    piece = _cut_out(asked, axis, start, limit)
  else:
    piece = _every(asked, axis, start, size, stride)
  if piece is None:
    asked.channels.lock(axis, asked.said(at))
    return asked.channels.axis(size, asked.said(at))
  return piece


def _cut_out(asked, axis, start, limit):
  n = asked.channels.size(axis)
  sizes = [start, limit - start, n - limit]
  pieces = asked.channels.cut(axis, [s for s in sizes if s])
  return pieces and pieces[1 if start else 0]


def _every(asked, axis, start, size, stride):
  """One of each `stride` entries: of [size, stride], a column."""
  if start >= stride or size * stride != asked.channels.size(axis):
    return None
  parts = asked.channels.split(axis, stride)
  column = parts and _cut_out(asked, parts[1], start, start + 1)
  return None if column is None else (*parts[0], *column)


def _split(asked, at, inputs):
  (x,), p = inputs, at.eqn.params
  pieces = asked.channels.cut(x.axes[p['axis']], p['sizes'])
  if pieces is None:
    pieces = [asked.channels.axis(n, asked.said(at)) for n in p['sizes']]
  out = []
  for piece in pieces:
    axes = list(x.axes)
    axes[p['axis']] = piece
    out.append(x._replace(axes=tuple(axes)))
  return out


def _concatenate(asked, at, inputs):
  along = at.eqn.params['dimension']
  joined = asked.channels.join([x.axes[along] for x in inputs])
  first, *others = inputs
  for other in others:
    for i, axis in enumerate(other.axes):
      if i != along:
        asked.channels.tie(first.axes[i], axis)
  axes = list(first.axes)
  axes[along] = joined
  if all(x.zeros is everywhere for x in inputs):
    return [Value(tuple(axes), everywhere)]
  # It vanishes where every operand does that has the channel.
  outside = map(asked.outside, inputs)
  here = frozenset(c for a in axes for c in asked.channels.leaves(a))
  zeros = here.difference(*outside)
  return [Value(tuple(axes), zeros)]


def _pad(asked, at, inputs):
  """The entries before and after are channels of their own."""
  x, filling = inputs
  axes, shape, new = list(x.axes), at.shape(), []
  for i, (low, high, inner) in enumerate(at.eqn.params['padding_config']):
    if inner or min(low, high) < 0:
      asked.channels.lock(axes[i], asked.said(at))
      axes[i] = asked.channels.axis(shape[i], asked.said(at))
    elif low or high:
      before, after = asked.channels.axis(low), asked.channels.axis(high)
      parts = [(before, low), (axes[i], 1), (after, high)]
      axes[i] = asked.channels.join([axis for axis, n in parts if n])
      new += [*before, *after]
  zeros = nowhere
  if filling.zeros is everywhere:
    zeros = asked.unite([x.zeros, frozenset(new)])
  return [Value(tuple(axes), zeros)]


def _stack(asked, at, inputs):
  i, (first, *others) = at.eqn.params['axis'], inputs
  for other in others:
    for a, b in zip(first.axes, other.axes, strict=True):
      asked.channels.tie(a, b)
  new = asked.channels.join([()] * len(inputs))
  zeros = asked.meet([x.zeros for x in inputs])
  return [Value((*first.axes[:i], new, *first.axes[i:]), zeros)]


def _unstack(asked, at, inputs):
  (x,), i = inputs, at.eqn.params['axis']
  n = len(at.eqn.outvars)
  if asked.channels.cut(x.axes[i], [1] * n) is None:
    return None
  return [x._replace(axes=(*x.axes[:i], *x.axes[i + 1 :]))] * n


def _fourier(asked, at, inputs):
  (x,), shape = inputs, at.shape()
  axes = list(x.axes)
  for i in range(-len(at.eqn.params['fft_lengths']), 0):
    asked.channels.lock(axes[i], asked.said(at))
    axes[i] = asked.channels.axis(shape[i], asked.said(at))
  return [Value(tuple(axes), asked.only(x.zeros, axes))]


def _dynamic_slice(asked, at, inputs):
  x, shape = inputs[0], at.shape()
  return [x._replace(axes=_full_axes(asked, at, x, shape))]


def _full_axes(asked, at, x, shape):
  """Axes that are taken whole pass; those of which a part is taken stay."""
  axes = []
  for axis, n in zip(x.axes, shape, strict=True):
    if asked.channels.size(axis) != n:
      asked.channels.lock(axis, asked.said(at))
      axis = asked.channels.axis(n, asked.said(at))
    axes.append(axis)
  return tuple(axes)


def _dynamic_update(asked, at, inputs):
  x, update = inputs[:2]
  for a, b in zip(x.axes, update.axes, strict=True):
    if asked.channels.size(a) == asked.channels.size(b):
      asked.channels.tie(a, b)
    else:
      asked.channels.lock(a, asked.said(at))
      asked.channels.lock(b, asked.said(at))
  return [Value(x.axes, asked.meet([x.zeros, update.zeros]))]


def _drawn(asked, at, inputs):
  """As many random numbers as are needed: of fewer, others are drawn."""
  out = [
    Value(tuple(map(asked.channels.axis, v.aval.shape)), nowhere)
    for v in at.eqn.outvars
  ]
  for x in out:
    for axis in x.axes:
      asked.inexact(axis, asked.said(at, 'draws other numbers'))
  return out


_TABLE = {
  _move: 'transpose squeeze',
  _expand: 'expand_dims',
  _broadcast: 'broadcast_in_dim',
  _tile: 'tile',
  _reshape: 'reshape',
  _reverse: 'rev',
  _slice: 'slice',
  _split: 'split',
  _concatenate: 'concatenate',
  _pad: 'pad',
  _stack: 'stack',
  _unstack: 'unstack',
  _fourier: 'fft',
  _dynamic_slice: 'dynamic_slice',
  _dynamic_update: 'dynamic_update_slice',
  _drawn: 'random_bits rng_uniform rng_bit_generator random_gamma',
}

RULES: dict[str, Callable] = {
  name: rule for rule, names in _TABLE.items() for name in names.split()
}
