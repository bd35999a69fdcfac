"""What a weight with an adapter does in products, and on its way to them.

    x W = x base + scale * (x a) b

The first term is by the rule of the base's own type, the second by two products of
small arrays. Moves are done to the base and to both factors alike; where one of
them cannot follow, the rule declines and the sum becomes dense.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.adapters import lora
from jaxopt_compress.analysis import moved
from jaxopt_compress.analysis import table_rows
from jaxopt_compress.core import array
from jaxopt_compress.core import lift


def _of_base(name, bind, operands, side, params):
  """The product of the frozen base, computed again in the backward pass."""
  base = lora.fixed(operands[side].base)
  others = [x for i, x in enumerate(operands) if i != side]

  def with_base(w, others):
    return [*others[:side], w, *others[side:]]

  if not array.is_compressed(base):
    return bind(*with_base(base, others), **params)

  def product(base, *others):
    rule = lift.rule_for(name, type(base))
    if rule is not None:
      y = rule(*with_base(base, others), **params)
      if not isinstance(y, lift.Dense):
        return y
    return bind(*with_base(base.materialize(), others), **params)

  return jax.checkpoint(product)(base, *others)


def _refuses(x) -> lift.Dense | None:
  """Declines operands of whose type factors cannot be: float8, integers."""
  floating = jnp.issubdtype(x.dtype, jnp.floating)
  if not floating or jnp.finfo(x.dtype).nmant < 7:
    return lift.Dense(f'the other operand is {x.dtype}')
  return None


def _add(y, update):
  return y + update.reshape(y.shape).astype(y.dtype)


def _dot(lhs, rhs, **params):
  """x meets the factor that has the contracted axes, then the other one."""
  side = int(isinstance(rhs, lora.LoRA))
  leaf, x = (rhs, lhs) if side else (lhs, rhs)
  if declined := _refuses(x):
    return declined
  contracting, batch = params['dimension_numbers']
  summed = {lora.axis_name(i) for i in contracting[side]}
  first, second = sorted(
    (lora.compact(f, leaf.shape) for f in (leaf.a, leaf.b)),
    key=lambda f: not summed & set(f.axes),
  )
  if summed & set(second.axes):
    return lift.Dense('a product over axes of both of its factors')
  x_axes, out = _names(x, leaf, side, contracting, batch)
  kept = [a for a in dict.fromkeys(x_axes + first.axes) if a not in summed]
  precision = params['precision']
  mid = jnp.einsum(
    x,
    x_axes,
    first.array.astype(x.dtype),
    first.axes,
    kept,
    precision=precision,
  )
  y = _of_base('dot_general', lax.dot_general_p.bind, (lhs, rhs), side, params)
  update = jnp.einsum(
    leaf.scale * mid,
    kept,
    second.array.astype(x.dtype),
    second.axes,
    out,
    precision=precision,
    preferred_element_type=y.dtype,
  )
  return _add(y, update)


def _names(x, leaf, side, contracting, batch) -> tuple[list[str], list[str]]:
  """The names of the axes of x, and of those of the result, sizes of one apart.

  An axis that meets one of the leaf has its name; one of x alone has its own.
  """
  pairs = [
    *zip(contracting[side], contracting[1 - side], strict=True),
    *zip(batch[side], batch[1 - side], strict=True),
  ]
  met = {i: lora.axis_name(j) for j, i in pairs}
  x_axes = [met.get(i, f'other {i:02}') for i in range(x.ndim)]
  held = [lora.axis_name(i) for i in (*contracting[side], *batch[side])]
  stacked = [lora.axis_name(i) for i in batch[side]]
  of_x = [a for a in x_axes if a not in held]
  own = [lora.axis_name(i) for i in range(leaf.ndim) if leaf.shape[i] > 1]
  of_leaf = [a for a in own if a not in held]
  # As `dot_general` orders them: batch, free axes of the left, those of the right.
  return x_axes, [*stacked, *(of_x + of_leaf if side else of_leaf + of_x)]


def _conv(lhs, rhs, **params):
  """A convolution to `rank` features, then one of a single pixel."""
  numbers = params['dimension_numbers']
  if not isinstance(rhs, lora.LoRA):
    return lift.Dense('it is the image of a convolution, not the kernel')
  if params['feature_group_count'] != 1 or params['batch_group_count'] != 1:
    return lift.Dense('a convolution in groups')
  if declined := _refuses(lhs):
    return declined
  to = numbers.rhs_spec[0]
  if any(n > 1 for i, n in enumerate(rhs.b.shape[:-1]) if i != to) or (
    rhs.a.shape[to] != 1
  ):
    return lift.Dense('its factors are not those of a convolution')
  bind = lax.conv_general_dilated_p.bind
  # The rank takes the place of the output features, so that the same dimension
  # numbers describe the small kernel; the last factor then acts on each pixel.
  kernel = jnp.moveaxis(rhs.a, -1, to).squeeze(to + 1)
  mid = bind(lhs, kernel.astype(lhs.dtype), **params)
  feature = numbers.out_spec[1]
  pixel = rhs.b.reshape(-1, rhs.b.shape[-1]).astype(mid.dtype)
  update = jnp.moveaxis(
    jnp.tensordot(
      rhs.scale * mid, pixel, ((feature,), (1,)), precision=params['precision']
    ),
    -1,
    feature,
  )
  y = _of_base('conv_general_dilated', bind, (lhs, rhs), 1, params)
  return _add(y, update)


def _ragged(lhs, rhs, group_sizes, **params):
  """Rows meet the factors of their expert."""
  numbers = params['ragged_dot_dimension_numbers']
  if not isinstance(rhs, lora.LoRA):
    return lift.Dense('it is not the experts of a ragged dot')
  (lhs_axes, rhs_axes), (_, rhs_batch) = numbers.dot_dimension_numbers
  groups = tuple(numbers.rhs_group_dimensions)
  plain = (tuple(lhs_axes), tuple(rhs_axes), tuple(rhs_batch)) == (
    *((1,), (1,)),
    (),
  )
  if not plain or groups != (0,) or rhs.b.shape[1] != 1 or rhs.a.shape[2] != 1:
    return lift.Dense('a ragged dot of another form than [m, k] x [g, k, n]')
  if declined := _refuses(lhs):
    return declined
  bind = _ragged_dot
  a, b = rhs.a[:, :, 0].astype(lhs.dtype), rhs.b[:, 0].swapaxes(1, 2)
  mid = bind(lhs, a, group_sizes, **params)
  update = bind(rhs.scale * mid, b.astype(mid.dtype), group_sizes, **params)
  y = _of_base('ragged_dot_general', bind, (lhs, rhs, group_sizes), 1, params)
  return _add(y, update)


def _ragged_dot(x, w, group_sizes, **params):
  """Binds the primitive, which JAX exports only as a function."""
  names = ('precision', 'preferred_element_type', 'group_offset')
  return lax.ragged_dot_general(
    x,
    w,
    group_sizes,
    params['ragged_dot_dimension_numbers'],
    **{name: params[name] for name in names},
  )


@table_rows.in_one_form
def _gather(operand, indices, **params):
  """Rows of a table: those of the factor that has rows, times the other one."""
  if not isinstance(operand, lora.LoRA):
    return lift.Dense('it is an index')
  numbers, sizes = params['dimension_numbers'], params['slice_sizes']
  picked = set(numbers.start_index_map)
  whole = picked == set(numbers.collapsed_slice_dims) and all(
    n == (1 if i in picked else operand.shape[i]) for i, n in enumerate(sizes)
  )
  if not whole or numbers.operand_batching_dims:
    return lift.Dense('a gather of something other than whole rows')
  fill = params['fill_value']
  if fill is not None and fill == fill:
    return lift.Dense(f'a gather that fills with {fill}')
  y = _of_base('gather', lax.gather_p.bind, (operand, indices), 0, params)
  rows = [
    _rows(f, operand.shape, indices, picked, y.ndim, params)
    for f in (operand.a, operand.b)
  ]
  return _add(y, operand.scale * lora.outer(*rows, y.shape))


def _rows(factor, shape, indices, picked, ndim, params):
  """What of a factor belongs to the gathered rows: [..., rank], broadcastable."""
  numbers = params['dimension_numbers']
  if all(factor.shape[i] == 1 for i in picked):
    # The same for all rows: only placed where the result has its axes.
    kept = [n for i, n in enumerate(factor.shape[:-1]) if i not in picked]
    out = [1] * ndim
    for place, n in zip(numbers.offset_dims, kept, strict=True):
      out[place] = n
    return factor.reshape(*out, factor.shape[-1])
  # The rank is one more axis that is taken whole, the last of the result.
  given = {i: n for i, n in enumerate(factor.shape) if i not in picked}
  factor = jnp.broadcast_to(
    factor,
    [shape[i] if i in picked else n for i, n in enumerate(factor.shape)],
  )
  return lax.gather(
    factor,
    indices,
    numbers._replace(offset_dims=(*numbers.offset_dims, ndim)),
    tuple(given.get(i, 1) for i in range(factor.ndim)),
    indices_are_sorted=params['indices_are_sorted'],
    unique_indices=params['unique_indices'],
    mode=params['mode'],
    fill_value=params['fill_value'],
  )


# ----------------------------------------------------------------------- moves


def _move_rule(primitive, of_factor):
  """The base by its own rule, the factors by `of_factor`.

  `of_factor(factor, shape, *rest, **params)` moves a factor as the leaf of that
  shape is moved, or returns Dense; a list where there are several results.
  """

  def move(leaf, *rest, **params):
    if not isinstance(leaf, lora.LoRA):
      return lift.Dense('it is an index')
    base = _base_moved(primitive, leaf.base, rest, params)
    a, b = (of_factor(f, leaf.shape, *rest, **params) for f in (leaf.a, leaf.b))
    for part in (base, a, b):
      if isinstance(part, lift.Dense):
        return part

    if not primitive.multiple_results:
      return lora.LoRA(base, a, b, leaf.scale)
    pieces = zip(base, a, b, strict=True)
    return [lora.LoRA(*piece, leaf.scale) for piece in pieces]

  return move


def _base_moved(primitive, base, rest, params):
  if not array.is_compressed(base):
    return primitive.bind(base, *rest, **params)
  rule = lift.rule_for(primitive, type(base))
  if rule is None:
    return lift.Dense(f'{type(base).__name__} has no rule for it')
  return rule(base, *rest, **params)


def _transpose(factor, shape, *, permutation):
  del shape
  return lax.transpose(factor, (*permutation, len(permutation)))


def _convert(factor, shape, *, new_dtype, **_):
  del shape
  if not jnp.issubdtype(new_dtype, jnp.floating) or (
    jnp.finfo(new_dtype).nmant < 7
  ):
    return lift.Dense(f'a conversion to {new_dtype}')
  return factor  # a product converts it to what it meets


def _squeeze(factor, shape, *, dimensions):
  del shape
  return lax.squeeze(factor, dimensions)


def _reshape(factor, shape, *sizes, new_sizes, dimensions, **_):
  if dimensions is not None:
    factor = _transpose(factor, shape, permutation=dimensions)
    shape = [shape[i] for i in dimensions]
  return _regrouped(factor, shape, new_sizes)


def _broadcast(factor, old, *sizes, shape, **_):
  if math.prod(shape) != math.prod(old):
    return lift.Dense('a broadcast')
  return _regrouped(factor, old, shape)


def _regrouped(factor, old, new):
  if not math.prod(old):
    return lift.Dense('an empty array')
  # A factor has all entries of a group of axes or one; in a group of which it has
  # some, what is in and what is out would be mixed.
  sizes = [1] * len(new)
  for rows, columns in moved.common_blocks(old, new):
    n = math.prod(factor.shape[i] for i in rows)
    if n == math.prod(old[i] for i in rows):
      for j in columns:
        sizes[j] = new[j]
    elif n > 1:
      return lift.Dense(f'a reshape {old} to {tuple(new)} mixes in and out')
  return factor.reshape(*sizes, factor.shape[-1])


def _slice(factor, shape, *, start_indices, limit_indices, strides):
  strides = strides or (1,) * len(shape)
  cuts = zip(start_indices, limit_indices, strides, strict=True)
  for i, cut in enumerate(cuts):
    if factor.shape[i] == shape[i]:
      factor = lax.slice_in_dim(factor, *cut, axis=i)
  return factor


def _split(factor, shape, *, sizes, axis):
  if factor.shape[axis] != shape[axis]:
    return [factor] * len(sizes)
  return lax.split(factor, sizes, axis)


def _unstack(factor, shape, *, axis):
  if factor.shape[axis] != shape[axis]:
    return [lax.squeeze(factor, (axis,))] * shape[axis]
  return lax.unstack(factor, axis)


def _tile(factor, shape, *, reps):
  reps = [n if factor.shape[i] == shape[i] else 1 for i, n in enumerate(reps)]
  return lax.tile(factor, (*reps, 1))


def _pad(factor, shape, value, *, padding_config):
  """The base is padded with the value, what is learned beside it with nothing."""
  padded = [i for i, p in enumerate(padding_config) if any(p)]
  if any(factor.shape[i] != shape[i] for i in padded):
    return lift.Dense('padded along an axis that a factor is shared along')
  nothing = jnp.zeros((), factor.dtype)
  return lax.pad(factor, nothing, (*padding_config, (0, 0, 0)))


def _several(*operands, **params):
  return lift.Dense('several weights have adapters of their own')


def _dynamic_slice(factor, shape, *starts, slice_sizes):
  for i, (start, n) in enumerate(zip(starts, slice_sizes, strict=True)):
    if factor.shape[i] == shape[i]:
      factor = lax.dynamic_slice_in_dim(factor, start, n, axis=i)
  return factor


def _reverse(factor, shape, *, dimensions):
  own = [i for i in dimensions if factor.shape[i] == shape[i]]
  return lax.rev(factor, own)


# ---------------------------------------------------------------- what lift knows

PRODUCTS = {
  lax.dot_general_p: _dot,
  lax.conv_general_dilated_p: _conv,
  'ragged_dot_general': _ragged,
  lax.gather_p: _gather,
}
MOVES = {
  lax.transpose_p: _transpose,
  lax.convert_element_type_p: _convert,
  lax.squeeze_p: _squeeze,
  lax.reshape_p: _reshape,
  lax.broadcast_in_dim_p: _broadcast,
  lax.slice_p: _slice,
  lax.split_p: _split,
  lax.unstack_p: _unstack,
  lax.tile_p: _tile,
  lax.pad_p: _pad,
  lax.dynamic_slice_p: _dynamic_slice,
  lax.rev_p: _reverse,
}


def register() -> None:
  """Tells `lift` of the rules; once, when the package is imported."""
  for primitive, rule in PRODUCTS.items():
    lift.rule(primitive, lora.LoRA)(rule)
  for primitive, of_factor in MOVES.items():
    lift.rule(primitive, lora.LoRA)(_move_rule(primitive, of_factor))
  for primitive in (lax.concatenate_p, lax.stack_p, lax.select_n_p):
    lift.rule(primitive, lora.LoRA)(_several)
