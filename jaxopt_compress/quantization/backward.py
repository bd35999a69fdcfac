"""The two products of the backward pass, on codes.

    y = x . w        dx = Q(g) . Q(w)^T        dw = Q(x)^T . Q(g)

Each product rounds its operands anew, with scales along the axes that it does not
sum over, so that it is one product of codes: int8 x int8 -> int32, or float8 x
float8. The incoming gradient has a format of its own (e5m2 beside e4m3, say), as in
Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433, and in AQT.

The products are the transposes that JAX itself derives, run through `lift` with one
operand an `Unrounded`: on its way to the product it moves as it is, and the product,
which knows what it sums over, rounds it. So dots, convolutions and ragged dots are
those of the forward pass. A product that sums over nothing, as that of one row
without a batch, has nothing to gain from codes and stays dense. Reverse mode only.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import product as product_lib
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import spec as spec_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Unrounded(array.CompressedArray):
  """A float array that the product that it reaches rounds, per channel.

  Attributes:
    value: the array.
    stored: how it is rounded.
    act: how the operand that it meets is, per token.
  """

  value: jax.Array
  stored: spec_lib.Spec = dataclasses.field(metadata={'static': True})
  act: spec_lib.Spec = dataclasses.field(metadata={'static': True})

  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)

  def materialize(self):
    return self.value


def product(
  bind: Callable, at: int, side: int, act: spec_lib.Spec, grad: spec_lib.Spec
) -> Callable:
  """The dense product of operands, its derivative computed on codes.

  Args:
    bind: (*operands) -> the product.
    at, side: positions of the activation and of the weight.
    act: how activations and weights are rounded in the backward pass.
    grad: how the incoming gradient is.
  """

  @jax.custom_vjp
  def run(*operands):
    return bind(*operands)

  def transposed(operands, i):
    """(operand that stays, gradient) -> the gradient of operand i."""
    kept = side if i == at else at

    def linear(other, g):
      def f(x):
        values = list(operands)
        values[i], values[kept] = x, other
        return bind(*values)

      return jax.linear_transpose(f, operands[i])(g)[0]

    return linear, operands[kept]

  def backward(operands, g):
    # JAX wants gradients of integers (sizes of groups, say) in float0.
    grads = [
      None if jnp.issubdtype(x.dtype, jnp.floating) else _zero(x)
      for x in operands
    ]
    f, w = transposed(operands, at)
    grads[at] = _on_codes(f, w, g, act, grad)
    h, x = transposed(operands, side)
    grads[side] = _on_codes(lambda g, x: h(x, g), g, x, grad, act)
    return tuple(grads)

  run.defvjp(lambda *operands: (run(*operands), operands), backward)
  return run


def _zero(x):
  return jnp.zeros(x.shape, jax.dtypes.float0)


def _on_codes(f, a, b, stored: spec_lib.Spec, act: spec_lib.Spec):
  """f(a, b), a product: `a` rounded per channel, `b` per token of it."""
  return lift.lift(f)(Unrounded(a, _plain(stored), _plain(act)), b)


def _plain(spec: spec_lib.Spec) -> spec_lib.Spec:
  """The format and rounding alone, one scale for each channel or token."""
  return spec_lib.Spec(
    spec.format,
    'token',
    symmetric=spec.symmetric,
    rounding=spec.rounding,
  )


# ------------------------------------------------------------------------ rules


def product_rule(on_codes: Callable, how: product_lib.Product):
  """Rounds both operands along what this product sums over."""

  def product_of_unrounded(*operands, **params):
    side = [isinstance(x, Unrounded) for x in operands].index(True)
    x, summed = operands[side], how.summed(side, params)
    if math.prod(x.shape[i] for i in summed) < 2:
      return lift.Dense('a product that sums over nothing')
    if not all(operand.size for operand in operands):
      return lift.Dense('an empty product')
    values = list(operands)
    values[side] = _rounded(x, summed)
    return on_codes(*values, **params)

  return product_of_unrounded


def _rounded(x: Unrounded, summed) -> qarray.QDotArray:
  key = None
  if x.stored.rounding == 'stochastic':
    # A key that follows from the values, so that no state is carried.
    total = jnp.sum(x.value.astype(jnp.float32))
    bits = lax.bitcast_convert_type(total, jnp.uint32)
    key = jax.random.fold_in(jax.random.key(1), bits)
  blocks = tuple((i - x.ndim, 0) for i in summed)
  q = qarray.quantize_array(x.value, x.stored, blocks, packed=0, key=key)
  return qarray.QDotArray(q, act=x.act)


def move_rule(primitive):
  """Moves the array; it is rounded where it arrives."""

  def move_unrounded(x, *rest, **params):
    if not isinstance(x, Unrounded):
      return lift.Dense('it is an index')
    out = primitive.bind(x.value, *rest, **params)
    again = functools.partial(Unrounded, stored=x.stored, act=x.act)
    return moves.each(primitive, again, out)

  return move_unrounded
