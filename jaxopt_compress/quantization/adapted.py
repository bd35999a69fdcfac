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

from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import conv  # noqa: F401  (its product)
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import lora
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import ragged  # noqa: F401


def _of_base(name, bind, operands, side, params):
  """The product of the frozen base, computed again in the backward pass."""
  put = lambda w, others: [*others[:side], w, *others[side:]]
  base = lora.fixed(operands[side].base)
  others = [x for i, x in enumerate(operands) if i != side]
  if not array.is_compressed(base):
    return bind(*put(base, others), **params)

  def product(base, *others):
    rule = lift.rule_for(name, type(base))
    if rule is not None:
      y = rule(*put(base, others), **params)
      if not isinstance(y, lift.Dense):
        return y
    return bind(*put(base.materialize(), others), **params)

  return jax.checkpoint(product)(base, *others)


def _add(y, update):
  return y + update.reshape(y.shape).astype(y.dtype)


@lift.rule(lax.dot_general_p, lora.LoRA)
def _dot(lhs, rhs, **params):
  side = int(isinstance(rhs, lora.LoRA))
  leaf, x = (rhs, lhs) if side else (lhs, rhs)
  if declined := dot.refuses(x):
    return declined
  contracting, batch = params['dimension_numbers']
  factors = [lora.compact(f, leaf.shape) for f in (leaf.a, leaf.b)]
  # The factor that has the contracted axes meets x first.
  factors.sort(key=lambda f: not set(f.axes) & set(contracting[side]))
  first, second = factors
  if set(second.axes) & set(contracting[side]):
    return lift.Dense('a product over axes of both of its factors')

  # Axes that meet have the name of the leaf's, those of x alone one of their own.
  named = {
    i: j
    for of_leaf, of_x in (
      (contracting[side], contracting[1 - side]),
      (batch[side], batch[1 - side]),
    )
    for j, i in zip(of_leaf, of_x, strict=True)
  }
  x_axes = [named.get(i, 100 + i) for i in range(x.ndim)]
  summed = set(contracting[side])
  free = lambda axes: [i for i in axes if i not in (*summed, *batch[side])]
  own = free(i for i in range(leaf.ndim) if leaf.shape[i] > 1)
  out = [
    *batch[side],
    *(free(x_axes) + own if side else own + free(x_axes)),
  ]
  left = [i for i in dict.fromkeys(x_axes + first.axes) if i not in summed]
  cast = lambda f: f.array.astype(x.dtype)
  precision = params['precision']
  mid = jnp.einsum(
    x, x_axes, cast(first), first.axes, left, precision=precision
  )
  y = _of_base('dot_general', lax.dot_general_p.bind, (lhs, rhs), side, params)
  update = jnp.einsum(
    leaf.scale * mid,
    left,
    cast(second),
    second.axes,
    out,
    precision=precision,
    preferred_element_type=y.dtype,
  )
  return _add(y, update)


@lift.rule(lax.conv_general_dilated_p, lora.LoRA)
def _conv(lhs, rhs, **params):
  """A convolution to `rank` features, then one of a single pixel."""
  numbers = params['dimension_numbers']
  if not isinstance(rhs, lora.LoRA):
    return lift.Dense('it is the image of a convolution, not the kernel')
  if params['feature_group_count'] != 1 or params['batch_group_count'] != 1:
    return lift.Dense('a convolution in groups')
  if declined := dot.refuses(lhs):
    return declined
  to = numbers.rhs_spec[0]
  if any(n > 1 for i, n in enumerate(rhs.b.shape[:-1]) if i != to) or (
    rhs.a.shape[to] != 1
  ):
    return lift.Dense('its factors are not those of a convolution')
  bind = lax.conv_general_dilated_p.bind
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


@lift.rule('ragged_dot_general', lora.LoRA)
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
  if declined := dot.refuses(lhs):
    return declined
  bind = dot.PRODUCTS['ragged_dot_general'].bind
  a, b = rhs.a[:, :, 0].astype(lhs.dtype), rhs.b[:, 0].swapaxes(1, 2)
  mid = bind(lhs, a, group_sizes, **params)
  update = bind(rhs.scale * mid, b.astype(mid.dtype), group_sizes, **params)
  y = _of_base('ragged_dot_general', bind, (lhs, rhs, group_sizes), 1, params)
  return _add(y, update)


@lift.rule(lax.gather_p, lora.LoRA)
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


def _move(primitive):
  """Registers a move: the base by its own rule, the factors as here said.

  `of_factor(factor, shape, *rest, **params)` moves a factor as the leaf of that
  shape is moved, or returns Dense; a list where there are several results.
  """

  def register(of_factor):
    @lift.rule(primitive, lora.LoRA)
    def _(leaf, *rest, **params):
      if not isinstance(leaf, lora.LoRA):
        return lift.Dense('it is an index')
      base = _base_moved(primitive, leaf.base, rest, params)
      a, b = (
        of_factor(f, leaf.shape, *rest, **params) for f in (leaf.a, leaf.b)
      )
      for moved in (base, a, b):
        if isinstance(moved, lift.Dense):
          return moved
      again = lambda base, a, b: lora.LoRA(base, a, b, leaf.scale)
      return moves.each(primitive, again, base, a, b)

    return of_factor

  return register


def _base_moved(primitive, base, rest, params):
  if not array.is_compressed(base):
    return primitive.bind(base, *rest, **params)
  rule = lift.rule_for(primitive, type(base))
  if rule is None:
    return lift.Dense(f'{type(base).__name__} has no rule for it')
  return rule(base, *rest, **params)


@_move(lax.transpose_p)
def _(factor, shape, *, permutation):
  del shape
  return lax.transpose(factor, (*permutation, len(permutation)))


@_move(lax.convert_element_type_p)
def _(factor, shape, *, new_dtype, **_):
  del shape
  if not jnp.issubdtype(new_dtype, jnp.floating) or (
    jnp.finfo(new_dtype).nmant < 7
  ):
    return lift.Dense(f'a conversion to {new_dtype}')
  return factor  # a product converts it to what it meets


@_move(lax.squeeze_p)
def _(factor, shape, *, dimensions):
  del shape
  return lax.squeeze(factor, dimensions)


@_move(lax.reshape_p)
def _(factor, shape, *sizes, new_sizes, dimensions, **_):
  if dimensions is not None:
    return lift.Dense('a reshape with a permutation')
  return _reshape(factor, shape, new_sizes)


@_move(lax.broadcast_in_dim_p)
def _(factor, old, *sizes, shape, **_):
  if math.prod(shape) != math.prod(old):
    return lift.Dense('a broadcast')
  return _reshape(factor, old, shape)


def _reshape(factor, old, new):
  if not math.prod(old):
    return lift.Dense('an empty array')
  sizes = [1] * len(new)
  for rows, columns in moves.common_blocks(old, new):
    n = math.prod(factor.shape[i] for i in rows)
    if n == math.prod(old[i] for i in rows):
      for j in columns:
        sizes[j] = new[j]
    elif n > 1:
      return lift.Dense(f'a reshape {old} to {tuple(new)} mixes in and out')
  return factor.reshape(*sizes, factor.shape[-1])


@_move(lax.slice_p)
def _(factor, shape, *, start_indices, limit_indices, strides):
  strides = strides or (1,) * len(shape)
  cuts = zip(start_indices, limit_indices, strides, strict=True)
  for i, cut in enumerate(cuts):
    if factor.shape[i] == shape[i]:
      factor = lax.slice_in_dim(factor, *cut, axis=i)
  return factor


@_move(lax.split_p)
def _(factor, shape, *, sizes, axis):
  if factor.shape[axis] != shape[axis]:
    return [factor] * len(sizes)
  return lax.split(factor, sizes, axis)


@_move(lax.dynamic_slice_p)
def _(factor, shape, *starts, slice_sizes):
  for i, (start, n) in enumerate(zip(starts, slice_sizes, strict=True)):
    if factor.shape[i] == shape[i]:
      factor = lax.dynamic_slice_in_dim(factor, start, n, axis=i)
  return factor


@_move(lax.rev_p)
def _(factor, shape, *, dimensions):
  own = [i for i in dimensions if factor.shape[i] == shape[i]]
  return lax.rev(factor, own)
