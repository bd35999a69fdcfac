"""What a QArray does in `dot_general`.

    weight only:  y = (x . numbers) * scale        scale not contracted
                  y = x . (numbers * scale)        otherwise (groups)
    both:         y = (codes_x . codes_w) * scale_x * scale_w

The last form rounds the other operand; its derivative is that of
x_hat . w_hat, straight through the rounding.
"""

import math

from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import blocks as blocks_lib
from jaxopt_compress.quantization import product
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import scaled


def shared_along(q: qarray.QArray, axes) -> bool:
  """Whether one scale serves all entries along `axes`."""
  return all(q.scale.shape[a] == 1 for a in axes)


def result_dtype(preferred, x, q):
  return preferred if preferred is not None else jnp.result_type(x, q.dtype)


def refuses(x) -> lift.Dense | None:
  """Declines operands into which codes cannot be converted: float8, integers."""
  floating = jnp.issubdtype(x.dtype, jnp.floating)
  if not floating or jnp.finfo(x.dtype).nmant < 7:
    return lift.Dense(f'the other operand is {x.dtype}')
  return None


def as_operand(
  q: qarray.QArray, contracted: tuple[int, ...], dtype=None
) -> product.Operand:
  """A leaf as a factor.

  Args:
    q: the leaf.
    contracted: axes on which scales stay one for each block; on others they are
      repeated to one for each entry.
    dtype: of its numbers; as they are if None.
  """
  numbers = q.numbers if q.integer or dtype is not None else q.qvalue
  free = tuple((a, n) for a, n in q.blocks if q.ndim + a not in contracted)

  def spread(p):
    return blocks_lib.expand(p, free, q.shape)

  numbers = numbers if dtype is None else numbers.astype(dtype)
  zero = None if q.zero is None else spread(q.zero)
  return product.Operand(numbers, spread(q.scale_hat), zero)


def beside_numbers(
  x, q: qarray.QArray, contracted: tuple[int, ...]
) -> tuple[product.Operand, product.Operand]:
  """A float operand, and the weight that it meets as numbers of its type.

  Numbers are larger than what they stand for, and so are their sums. A power of two
  goes from `x` to the scales, which is exact, so that sums are at most those with a
  weight whose largest entry is one: they overflow where |x| times that does.

  Args:
    x: [...] floating.
    q: the leaf.
    contracted: as for `as_operand`.
  """
  w = as_operand(q, contracted, x.dtype)
  # The exponents of float16 have no room for it, and its sums in float32 have.
  if jnp.finfo(x.dtype).maxexp >= 128:
    fmt = q.numbers_format
    power = 2.0 ** math.ceil(math.log2(max(-fmt.lowest, fmt.highest)))
    x, w = x * (1 / power), w._replace(scale=w.scale * power)
  return product.Operand(x), w


def weight_only(
  lhs, rhs, *, dimension_numbers, precision, preferred_element_type, **params
):
  """The rule of a QArray."""
  side = int(isinstance(rhs, qarray.QArray))
  q, x = (rhs, lhs) if side else (lhs, rhs)
  d = product.dims(dimension_numbers)
  declined = refuses(x)
  if declined:
    return declined
  inside = activation.holds_numbers(q.numbers_format, x.dtype)
  if not inside or not shared_along(q, d.contracting[side]):
    w = q.materialize()
    return lax.dot_general_p.bind(
      *((x, w) if side else (w, x)),
      dimension_numbers=dimension_numbers,
      precision=precision,
      preferred_element_type=preferred_element_type,
      **params,
    )
  x_, w = beside_numbers(x, q, d.contracting[side])
  a, b = (x_, w) if side else (w, x_)
  y = product.multiply(a, b, d, precision)
  return y.astype(result_dtype(preferred_element_type, x, q))


def both(a: qarray.QArray, b: qarray.QArray, d: product.Dims, precision):
  """The product of two leaves: float32.

  On the codes where both are integers, or both float8; on what they stand for
  otherwise.
  """

  def dense(a, b):
    return lax.dot_general(
      a.materialize(),
      b.materialize(),
      d,
      precision=precision,
      preferred_element_type=jnp.float32,
    )

  if scaled.suits(a, b, d):
    return scaled.multiply(a, b, d, dense)
  pair, size = _groups(a, b, d)
  native = all(q.integer for q in (a, b)) or all(is_float8(q) for q in (a, b))
  if size is None or not native:
    return dense(a, b)
  x, y = (as_operand(q, d.contracting[i]) for i, q in enumerate((a, b)))
  if size == 0:
    return product.multiply(x, y, d)
  x, y = (
    _every(o, q, d.contracting[i][pair], size)
    for i, (o, q) in enumerate(((x, a), (y, b)))
  )
  return product.multiply_groups(x, y, d, pair, size)


def is_float8(q) -> bool:
  return q.numbers_format.native is not None and not q.integer


def _groups(a, b, d):
  """(pair, size) of the groups along which products are summed apart.

  Size 0 where one sum does; None where there is no such grouping, of one axis,
  in the scales of both operands.
  """
  found = {}
  for q, axes in ((a, d.contracting[0]), (b, d.contracting[1])):
    sizes = {q.ndim + i: n for i, n in q.blocks}
    for pair, axis in enumerate(axes):
      if q.scale.shape[axis] > 1:
        found.setdefault(pair, set()).add(sizes.get(axis, 1))
  integer = a.integer and b.integer
  if not found:
    if not d.contracting[0]:
      return 0, 0
    lengths = [a.shape[i] for i in d.contracting[0]]
    longest = lengths.index(max(lengths))
    most = product.most_products(d, a.shape, longest)
    # Sums that int32 cannot hold are cut.
    cut = integer and lengths[longest] > most
    return longest, (max(most, 1) if cut else 0)
  if len(found) > 1:
    return 0, None
  (pair, sizes), *_ = found.items()
  size = min(sizes)
  if size == 1 or any(n % size for n in sizes):
    return pair, None
  if integer and size > product.most_products(d, a.shape, pair):
    return pair, None
  return pair, size


def _every(o: product.Operand, q, axis, size):
  """Scales for groups of `size`, from scales for groups of a multiple."""
  mine = dict(q.blocks).get(axis - q.ndim, size)
  if mine == size or q.scale.shape[axis] == 1:
    return o
  n = -(-q.shape[axis] // size)

  def finer(p):
    p = jnp.repeat(p, mine // size, axis=axis)
    return lax.slice_in_dim(p, 0, n, axis=axis)

  zero = None if o.zero is None else finer(o.zero)
  return o._replace(scale=finer(o.scale), zero=zero)


def on_codes(
  lhs, rhs, *, dimension_numbers, precision, preferred_element_type, **_
):
  """The rule of a QDotArray, without a derivative."""
  side = int(isinstance(rhs, qarray.QDotArray))
  leaf, x = (rhs, lhs) if side else (lhs, rhs)
  d = product.dims(dimension_numbers)
  declined = refuses(x)
  if declined:
    return declined
  other = activation.other_operand(x, leaf, d, side)
  y = both(*_in_order(side, leaf.weight, other), d, precision)
  return y.astype(result_dtype(preferred_element_type, x, leaf))


def _in_order(side, weight, other):
  return (other, weight) if side else (weight, other)


def _rounded(operands, side, leaf, params):
  """The other operand, rounded; straight through."""
  x = operands[1 - side]
  d = product.dims(params['dimension_numbers'])
  q = activation.other_operand(lax.stop_gradient(x), leaf, d, side)
  return activation.rounded(
    x, q, leaf.act, math.prod(x.shape[i] for i in d.contracting[1 - side])
  )


def _summed(side, params):
  return product.dims(params['dimension_numbers']).contracting[side]


PRODUCT = product.Product(lax.dot_general_p.bind, None, _rounded, _summed)
