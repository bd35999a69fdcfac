"""What a QArray does in a convolution.

    sum (x - z_x)(w - z_w) = x*w - z_w (x*1) - z_x (1*w) + z_x z_w (1*1)

with * the convolution, 1 all ones: a padded position is a real zero, so it counts
in none of the four. Activations have one scale for each image.
"""

import math

from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import product
from jaxopt_compress.quantization import qarray


def _conv(x, w, params):
  """The convolution of numbers: int32 of int8, else float32."""
  integer = x.dtype == w.dtype == jnp.int8
  sums = jnp.int32 if integer else jnp.float32
  changed = {'preferred_element_type': jnp.dtype(sums)}
  if integer:
    changed['precision'] = None
  return lax.conv_general_dilated_p.bind(x, w, **{**params, **changed})


def _per_output(p, params):
  """Moves one number for each output feature to where the result has them."""
  numbers = params['dimension_numbers']
  shape = [1] * p.ndim
  shape[numbers.out_spec[1]] = p.shape[numbers.rhs_spec[0]]
  return p.reshape(shape)


def _per_image(p, params, w):
  """Moves one number for each image to where the result has them."""
  numbers = params['dimension_numbers']
  groups, shape = params['batch_group_count'], [1] * p.ndim
  if groups == 1 or p.size == 1:
    shape[numbers.out_spec[0]] = p.size
    return p.reshape(shape)
  # Images come group after group, and a group's results are features: of the groups,
  # the first images are one image of the result.
  shape[numbers.out_spec[0]] = p.size // groups
  shape[numbers.out_spec[1]] = groups
  p = p.reshape(groups, -1)
  by_image = numbers.out_spec[0] < numbers.out_spec[1]
  return _for_each_output((p.T if by_image else p).reshape(shape), params, w)


def _groups(params) -> int:
  """In how many groups features of the result come: of channels or of images."""
  return params['feature_group_count'] * params['batch_group_count']


def _ones_kernel(w, params):
  """One all-ones filter for each group of features."""
  shape = list(w.shape)
  shape[params['dimension_numbers'].rhs_spec[0]] = _groups(params)
  return jnp.ones(shape, w.dtype)


def _ones_image(x, params):
  """One image for each group of images."""
  shape = list(x.shape)
  shape[params['dimension_numbers'].lhs_spec[0]] = params['batch_group_count']
  return jnp.ones(shape, x.dtype)


def _for_each_output(y, params, w):
  """Repeats one result a group to all features of the group."""
  numbers = params['dimension_numbers']
  features = w.shape[numbers.rhs_spec[0]]
  # Features of one group are neighbours, so each result is repeated in place.
  repeats = features // _groups(params)
  return jnp.repeat(y, repeats, axis=numbers.out_spec[1])


def _less_zeros(y, x, w, x_zero, w_zero, params):
  """Takes the terms of the zero points off `y`, the product of the numbers."""
  if w_zero is not None:
    sums = _conv(x, _ones_kernel(w, params), params)
    w_zero = _per_output(w_zero, params)
    y, w_zero = product.same_type(y, w_zero)
    y = y - w_zero * _for_each_output(sums, params, w).astype(y.dtype)
  if x_zero is None:
    return y
  # An image of ones is zero where it is padded, so a padded position counts in none
  # of the sums; one image stands for all of the batch.
  inside = _ones_image(x, params)
  weight = _conv(inside, w, params)
  if w_zero is not None:
    count = _conv(inside, _ones_kernel(w, params), params)
    count = _for_each_output(count, params, w)
    weight, w_zero = product.same_type(weight, w_zero)
    weight = weight - w_zero * count.astype(weight.dtype)
  y, x_zero = product.same_type(y, _per_image(x_zero, params, w))
  return y - x_zero * weight.astype(y.dtype)


def weight_only(lhs, rhs, **params):
  """The rule of a QArray."""
  declined = _declines(lhs, rhs, params, qarray.QArray)
  if declined:
    return declined
  out_dtype = dot.result_dtype(params['preferred_element_type'], lhs, rhs)
  inside = activation.holds_numbers(rhs.numbers_format, lhs.dtype)
  if not inside or not _scaled_per_output(rhs, params):
    w = rhs.materialize()
    return lax.conv_general_dilated_p.bind(lhs, w, **params).astype(out_dtype)
  x, q = dot.beside_numbers(lhs, rhs, ())
  y = _conv(x.numbers, q.numbers, params)
  y = _less_zeros(y, x.numbers, q.numbers, None, q.zero, params)
  return (y * _per_output(q.scale, params)).astype(out_dtype)


def on_codes(lhs, rhs, **params):
  """The rule of a QDotArray, without a derivative."""
  declined = _declines(lhs, rhs, params, qarray.QDotArray)
  if declined:
    return declined
  q, x = rhs.weight, _codes(lhs, rhs, params)
  # The entries of one filter: how many products one sum has.
  products = math.prod(q.shape) // q.shape[params['dimension_numbers'][1][0]]
  native = (q.integer and x.integer and products <= product.MOST_PRODUCTS) or (
    dot.is_float8(q) and q.format == x.format
  )
  # Of an image in groups of channels, pixels have scales of their own, too.
  one = dot.shared_along(x, params['dimension_numbers'].lhs_spec[1:])
  if not native or not one or not _scaled_per_output(q, params):
    return weight_only(x.materialize(), q, **params)
  a, b = dot.as_operand(x, ()), dot.as_operand(q, ())
  numbers = _conv(a.numbers, b.numbers, params)
  y = _less_zeros(numbers, a.numbers, b.numbers, a.zero, b.zero, params)
  y = product.rescale(
    y, _per_image(a.scale, params, b.numbers), _per_output(b.scale, params)
  )
  preferred = params['preferred_element_type']
  return y.astype(dot.result_dtype(preferred, lhs, q))


def _codes(x, leaf, params):
  """An image in codes, its range that of the image, or a given one."""
  if leaf.act_scale is not None:
    return activation.with_range(
      x,
      leaf.act,
      _of_rank(leaf.act_scale, x.ndim),
      _of_rank(leaf.act_zero, x.ndim),
    )
  batch, feature = params['dimension_numbers'].lhs_spec[:2]
  summed = tuple(i for i in range(x.ndim) if i != batch)
  return activation.quantize(x, leaf.act, summed, feature)


def _of_rank(p, ndim):
  return None if p is None else p.reshape((1,) * ndim)


def _rounded(operands, side, leaf, params):
  x = operands[0]
  q = _codes(lax.stop_gradient(x), leaf, params)
  entries = math.prod(x.shape[i] for i in _summed(0, params))
  return activation.rounded(x, q, leaf.act, entries)


def _declines(lhs, rhs, params, leaf_type):
  if not isinstance(rhs, leaf_type):
    return lift.Dense('it is the image of a convolution, not the kernel')
  return dot.refuses(lhs)


def _scaled_per_output(q, params) -> bool:
  return dot.shared_along(q, params['dimension_numbers'].rhs_spec[1:])


def _summed(side, params):
  return params['dimension_numbers'][side][1:]


PRODUCT = product.Product(lax.conv_general_dilated_p.bind, 0, _rounded, _summed)
