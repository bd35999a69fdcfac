"""What a QArray does in `ragged_dot`: experts, each with rows of its own.

    y[i] = ((x[i] - z_x) s_x) . ((w[e] - z_w[e]) s_w[e]),  e the expert of row i

Each expert has scales of its own, picked for each row.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import product
from jaxopt_compress.quantization import qarray


def _dims(params) -> product.Dims:
  return product.dims(
    params['ragged_dot_dimension_numbers'].dot_dimension_numbers
  )


def _declines(lhs, rhs, params, leaf_type):
  numbers = params['ragged_dot_dimension_numbers']
  if not isinstance(rhs, leaf_type):
    return lift.Dense('it is not the experts of a ragged dot')
  ragged = tuple(numbers.lhs_ragged_dimensions)
  d = _dims(params)
  if len(ragged) != 1 or ragged[0] in d.contracting[0] + d.batch[0]:
    return lift.Dense('a ragged dot whose rows are not routed to experts')
  return dot.refuses(lhs)


def bind(
  x,
  w,
  group_sizes,
  *,
  ragged_dot_dimension_numbers,
  precision,
  preferred_element_type,
  group_offset,
  **_,
):
  """The dense product: JAX exports the function, not the primitive."""
  return lax.ragged_dot_general(
    x,
    w,
    group_sizes,
    ragged_dot_dimension_numbers,
    precision=precision,
    preferred_element_type=preferred_element_type,
    group_offset=group_offset,
  )


def _ragged(x, w, group_sizes, params):
  """The product of numbers: int32 of int8, else float32."""
  changed = {'preferred_element_type': jnp.float32}
  if x.dtype == w.dtype == jnp.int8:
    changed = {'preferred_element_type': jnp.int32, 'precision': None}
  return bind(x, w, group_sizes, **{**params, **changed})


def _per_row(p, rows, group_sizes, params, rank):
  """What belongs to each expert, for each row: broadcastable to the result."""
  numbers = params['ragged_dot_dimension_numbers']
  d = _dims(params)
  (group,), (ragged,) = (
    numbers.rhs_group_dimensions,
    numbers.lhs_ragged_dimensions,
  )
  held = d.contracting[1] + d.batch[1] + (group,)
  free = [i for i in range(p.ndim) if i not in held]
  # One entry for each expert becomes one for each row: that of the first expert
  # whose rows end after it. Rows past the last expert's take any, and are zeroed.
  p = lax.transpose(p, (*d.batch[1], group, *free, *d.contracting[1]))
  n_batch = len(d.batch[1])
  if p.shape[n_batch] > 1:
    ends = jnp.cumsum(group_sizes)
    expert = jnp.searchsorted(ends, jnp.arange(rows), side='right')
    p = jnp.take(p, jnp.minimum(expert, len(ends) - 1), axis=n_batch)
  lhs_free = [i for i in range(rank) if i not in d.contracting[0] + d.batch[0]]
  shape = [1] * rank
  shape[:n_batch] = p.shape[:n_batch]
  shape[n_batch + lhs_free.index(ragged)] = p.shape[n_batch]
  for k, n in enumerate(p.shape[n_batch + 1 : n_batch + 1 + len(free)]):
    shape[rank - len(free) + k] = n
  return p.reshape(shape)


def _multiply(a, b, group_sizes, params):
  """The product of two operands, float32; scales are 1 on contracted axes."""
  d = _dims(params)
  y = _ragged(a.numbers, b.numbers, group_sizes, params)
  rank = y.ndim
  (ragged,) = params['ragged_dot_dimension_numbers'].lhs_ragged_dimensions
  rows = a.numbers.shape[ragged]

  def of_token(p):
    return product.placed(p, 0, d, rank)

  def of_expert(p):
    return _per_row(p, rows, group_sizes, params, rank)

  sums = jnp.int32 if y.dtype == jnp.int32 else jnp.float32
  if b.zero is not None:
    total = jnp.sum(
      a.numbers.astype(sums), axis=d.contracting[0], keepdims=True
    )
    y, zero = product.same_type(y, of_expert(b.zero))
    y = y - zero * of_token(total).astype(y.dtype)
  if a.zero is not None:
    number = b.numbers.astype(sums)
    if b.zero is not None:
      number, zero = product.same_type(number, b.zero)
      number = number - zero
    total = jnp.sum(number, axis=d.contracting[1], keepdims=True)
    y, zero = product.same_type(y, of_token(a.zero))
    y = y - zero * of_expert(total).astype(y.dtype)
  scales = [] if a.scale is None else [of_token(a.scale)]
  y = product.rescale(y, *scales, of_expert(b.scale))
  return jnp.where(_routed(rows, group_sizes, ragged, d, rank), y, 0)


def _routed(rows, group_sizes, ragged, d, rank):
  """Rows past the last expert's give zero, as in the dense product."""
  inside = jnp.arange(rows) < jnp.sum(group_sizes)
  free = [i for i in range(rank) if i not in d.contracting[0] + d.batch[0]]
  shape = [1] * rank
  shape[len(d.batch[0]) + free.index(ragged)] = rows
  return inside.reshape(shape)


def weight_only(lhs, rhs, group_sizes, **params):
  """The rule of a QArray."""
  declined = _declines(lhs, rhs, params, qarray.QArray)
  if declined:
    return declined
  q, d = rhs, _dims(params)
  if not activation.holds_numbers(
    q.numbers_format, lhs.dtype
  ) or not dot.shared_along(q, d.contracting[1]):
    return bind(lhs, q.materialize(), group_sizes, **params)
  x, w = dot.beside_numbers(lhs, q, d.contracting[1])
  y = _multiply(x, w, group_sizes, params)
  preferred = params['preferred_element_type']
  return y.astype(dot.result_dtype(preferred, lhs, q))


def on_codes(lhs, rhs, group_sizes, **params):
  """The rule of a QDotArray, without a derivative."""
  declined = _declines(lhs, rhs, params, qarray.QDotArray)
  if declined:
    return declined
  q, d = rhs.weight, _dims(params)
  x = activation.other_operand(lhs, rhs, d, 1)
  products = 1
  for i in d.contracting[1]:
    products *= q.shape[i]
  native = all(p.integer for p in (x, q)) and products <= product.MOST_PRODUCTS
  if not native or x.blocks or not dot.shared_along(q, d.contracting[1]):
    return weight_only(x.materialize(), q, group_sizes, **params)
  y = _multiply(
    dot.as_operand(x, ()), dot.as_operand(q, ()), group_sizes, params
  )
  preferred = params['preferred_element_type']
  return y.astype(dot.result_dtype(preferred, lhs, q))


def _rounded(operands, side, leaf, params):
  x = operands[0]
  q = activation.other_operand(jax.lax.stop_gradient(x), leaf, _dims(params), 1)
  return activation.rounded(
    x, q, leaf.act, math.prod(x.shape[i] for i in _dims(params).contracting[0])
  )


def _summed(side, params):
  return _dims(params).contracting[side]


PRODUCT = product.Product(bind, 0, _rounded, _summed)
