"""What a QArray does in products: dot_general, convolution, row gather.

    weight only:   y = (x . codes) * scale               scale not contracted
                   y = x . (codes * scale)               otherwise (groups)
    int8 x int8:   y = (codes_x . codes_w : int32) * scale_x * scale_w

`codes_x` are made at run time, one scale for each token: an entry of x's free
axes (dot), an example (convolution). The integer product is differentiated as
x_hat . w_hat, straight through the rounding.
"""

import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.quantization import numerics
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import straight

# Up to so many products of two int8 codes cannot overflow an int32 sum.
_MOST_PRODUCTS = (2**31 - 1) // (128 * 128)


def _shared_along(q: qarray.QArray, axes) -> bool:
  return all(q.scale.shape[a] == 1 for a in axes)


def _holds_codes(x) -> bool:
  """Whether all codes are numbers of the dtype of `x`; not so in float8."""
  return jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).nmant >= 7


def quantize_operand(x: jax.Array, axes: tuple[int, ...], act: str):
  """Codes and scale of an activation, one scale for what `axes` span."""
  fmt = numerics.FORMATS[act]
  scale = numerics.absmax_scale(x, fmt, axes)
  return numerics.encode(x, scale, fmt), scale


def round_other(primitive, operands, side, act, params):
  """Rounds the operand that the weight at `side` meets, straight through."""
  if primitive is lax.dot_general_p:
    other = 1 - side
    axes = tuple(params['dimension_numbers'][0][other])
  else:
    other, axes = 0, conv_token_axes(operands[0], params)
  x = operands[other]
  codes, scale = quantize_operand(lax.stop_gradient(x), axes, act)
  x_hat = (codes.astype(jnp.float32) * scale).astype(x.dtype)
  rounded = list(operands)
  rounded[other] = straight.as_if(lambda x: x, x_hat, x)
  return rounded


def conv_token_axes(x, params) -> tuple[int, ...]:
  """All axes of an image but the batch: one scale for each example."""
  batch = params['dimension_numbers'].lhs_spec[0]
  return tuple(i for i in range(x.ndim) if i != batch)


def _register_integer(primitive, product):
  """The integer product, with the derivative of the dense one."""

  @lift.rule(primitive, qarray.QDotArray)
  def _(*operands, **params):
    fixed = jax.tree.map(lax.stop_gradient, operands)
    out = product(*fixed, **params)
    if isinstance(out, lift.Dense):
      return out
    side = [isinstance(x, qarray.QDotArray) for x in operands].index(True)
    act = operands[side].act

    def dense(*operands):
      values = round_other(primitive, operands, side, act, params)
      values[side] = values[side].materialize()
      return primitive.bind(*values, **params)

    return straight.as_if(dense, out, *operands)


# ------------------------------------------------------------------------ dot


def _scaled(y, factor, side, dimension_numbers):
  """`y`, the result, times a factor of one operand, 1 on contracted axes."""
  contracting, batch = dimension_numbers
  held = contracting[side] + batch[side]
  free = [i for i in range(factor.ndim) if i not in held]
  first = y.ndim - len(free) if side else len(batch[side])
  places = [*range(len(batch[side])), *range(first, first + len(free))]
  factor = lax.transpose(factor, (*batch[side], *free, *contracting[side]))
  factor = lax.squeeze(factor, range(len(places), factor.ndim))
  return lax.mul(y, lax.broadcast_in_dim(factor, y.shape, places))


def _as_tuples(dimension_numbers):
  return tuple(tuple(tuple(a) for a in pair) for pair in dimension_numbers)


@lift.rule(lax.dot_general_p, qarray.QArray)
def dot_weight_only(
  lhs, rhs, *, dimension_numbers, precision, preferred_element_type, **params
):
  side = int(isinstance(rhs, qarray.QArray))
  q, x = (rhs, lhs) if side else (lhs, rhs)
  numbers = _as_tuples(dimension_numbers)
  if not _holds_codes(x):
    return lift.Dense(f'the other operand is {x.dtype}')
  params['precision'] = precision
  out_dtype = _result_dtype(preferred_element_type, x, q)

  def dot(w, preferred):
    return lax.dot_general_p.bind(
      *((x, w) if side else (w, x)),
      dimension_numbers=dimension_numbers,
      preferred_element_type=preferred,
      **params,
    )

  if not _shared_along(q, numbers[0][side]):
    return dot(q.materialize(), preferred_element_type)
  sums = jnp.promote_types(out_dtype, jnp.float32)
  y = dot(lax.convert_element_type(q.codes, x.dtype), sums)
  scale = lax.convert_element_type(q.scale, sums)
  y = _scaled(y, scale, side, numbers)
  return lax.convert_element_type(y, out_dtype)


def _result_dtype(preferred, x, q):
  return preferred if preferred is not None else jnp.result_type(x, q.dtype)


def _dot_integer(
  lhs, rhs, *, dimension_numbers, precision, preferred_element_type, **params
):
  side = int(isinstance(rhs, qarray.QDotArray))
  leaf, x = (rhs, lhs) if side else (lhs, rhs)
  q = leaf.weight
  numbers = _as_tuples(dimension_numbers)
  if not _holds_codes(x):
    return lift.Dense(f'the other operand is {x.dtype}')
  codes, x_scale = quantize_operand(x, numbers[0][1 - side], leaf.act)
  products = math.prod(x.shape[a] for a in numbers[0][1 - side])
  if products > _MOST_PRODUCTS or not _shared_along(q, numbers[0][side]):
    # The same numbers, in floating point: scales inside the sum, or a sum that
    # int32 cannot hold.
    x_hat = (codes.astype(jnp.float32) * x_scale).astype(x.dtype)
    return dot_weight_only(
      *((x_hat, q) if side else (q, x_hat)),
      dimension_numbers=dimension_numbers,
      precision=precision,
      preferred_element_type=preferred_element_type,
      **params,
    )
  y = lax.dot_general_p.bind(
    *((codes, q.codes) if side else (q.codes, codes)),
    dimension_numbers=dimension_numbers,
    precision=None,
    preferred_element_type=jnp.dtype(jnp.int32),
    **params,
  )
  y = _scaled(y.astype(jnp.float32), x_scale, 1 - side, numbers)
  y = _scaled(y, q.scale.astype(jnp.float32), side, numbers)
  return y.astype(_result_dtype(preferred_element_type, x, q))


_register_integer(lax.dot_general_p, _dot_integer)


# ---------------------------------------------------------------- convolution


@lift.rule(lax.conv_general_dilated_p, qarray.QArray)
def conv_weight_only(lhs, rhs, **params):
  declined = _declines_conv(lhs, rhs, params, qarray.QArray)
  if declined:
    return declined
  preferred = params['preferred_element_type']
  out_dtype = _result_dtype(preferred, lhs, rhs)
  if not _conv_scale_is_per_output(rhs, params):
    w = rhs.materialize()
    return lax.conv_general_dilated_p.bind(lhs, w, **params).astype(out_dtype)
  sums = jnp.promote_types(out_dtype, jnp.float32)
  w = rhs.codes.astype(lhs.dtype)
  y = lax.conv_general_dilated_p.bind(
    lhs, w, **{**params, 'preferred_element_type': sums}
  )
  return (y * _per_output(rhs.scale, params)).astype(out_dtype)


def _conv_integer(lhs, rhs, **params):
  declined = _declines_conv(lhs, rhs, params, qarray.QDotArray)
  if declined:
    return declined
  q = rhs.weight
  codes, x_scale = quantize_operand(lhs, conv_token_axes(lhs, params), rhs.act)
  products = math.prod(q.shape) // q.shape[params['dimension_numbers'][1][0]]
  if products > _MOST_PRODUCTS or not _conv_scale_is_per_output(q, params):
    x_hat = (codes.astype(jnp.float32) * x_scale).astype(lhs.dtype)
    return conv_weight_only(x_hat, q, **params)
  y = lax.conv_general_dilated_p.bind(
    codes,
    q.codes,
    **{
      **params,
      'precision': None,
      'preferred_element_type': jnp.dtype(jnp.int32),
    },
  )
  batch_in, batch_out = (
    params['dimension_numbers'].lhs_spec[0],
    params['dimension_numbers'].out_spec[0],
  )
  x_scale = jnp.moveaxis(x_scale, batch_in, batch_out)
  y = y.astype(jnp.float32) * x_scale * _per_output(q.scale, params)
  preferred = params['preferred_element_type']
  return y.astype(_result_dtype(preferred, lhs, q))


_register_integer(lax.conv_general_dilated_p, _conv_integer)


def _declines_conv(lhs, rhs, params, leaf_type):
  if not isinstance(rhs, leaf_type):
    return lift.Dense('it is the image of a convolution, not the kernel')
  if params['batch_group_count'] != 1:
    return lift.Dense('a convolution grouped over the batch')
  if not _holds_codes(lhs):
    return lift.Dense(f'the other operand is {lhs.dtype}')
  return None


def _conv_scale_is_per_output(q, params) -> bool:
  return _shared_along(q, params['dimension_numbers'].rhs_spec[1:])


def _per_output(scale, params):
  """Moves scales of the output features to where the result has them."""
  numbers = params['dimension_numbers']
  shape = [1] * scale.ndim
  shape[numbers.out_spec[1]] = scale.shape[numbers.rhs_spec[0]]
  return scale.astype(jnp.float32).reshape(shape)


# --------------------------------------------------------------------- gather


@lift.rule(lax.gather_p, qarray.QArray)
def gather_rows(operand, indices, *, dimension_numbers, slice_sizes, **params):
  """Rows of a table: the codes and the scales of just those rows."""
  if not isinstance(operand, qarray.QArray):
    return lift.Dense('it is an index')
  q = operand
  picked = set(dimension_numbers.start_index_map)
  whole = all(
    slice_sizes[i] == (1 if i in picked else q.shape[i]) for i in range(q.ndim)
  )
  if not whole or dimension_numbers.operand_batching_dims:
    return lift.Dense('a gather of something other than whole rows')
  if (q.packed or q.grouped) and q.axis % q.ndim in picked:
    return lift.Dense('codes are packed or grouped along the gathered axis')
  fill = params.pop('fill_value')
  if fill is not None and fill == fill:
    return lift.Dense(f'a gather that fills with {fill}')

  def rows(part, fill=None):
    shape = list(part.shape)
    for i in picked:
      shape[i] = q.shape[i]
    part = jnp.broadcast_to(part, shape)
    sizes = tuple(1 if i in picked else n for i, n in enumerate(part.shape))
    return lax.gather(
      part, indices, dimension_numbers, sizes, fill_value=fill, **params
    )

  offsets = dimension_numbers.offset_dims
  collapsed = dimension_numbers.collapsed_slice_dims
  kept = [i for i in range(q.ndim) if i not in collapsed]
  out = rows(q.qvalue)
  axis = -1
  if q.axis % q.ndim in kept:
    axis = offsets[kept.index(q.axis % q.ndim)] - out.ndim
  taken = dataclasses.replace(
    q, qvalue=out, scale=rows(q.scale, fill), axis=axis
  )
  return taken.materialize()


@lift.rule(lax.gather_p, qarray.QDotArray)
def _(operand, indices, **params):
  if not isinstance(operand, qarray.QDotArray):
    return lift.Dense('it is an index')
  return gather_rows(operand.weight, indices, **params)
