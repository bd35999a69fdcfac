"""The two products of the backward pass, on codes.

    y = x . w        dx = Q(g) . Q(w)^T        dw = Q(x)^T . Q(g)

Each product rounds its operands anew, with scales along the axes that it does not
sum over, so that it is one product of codes: int8 x int8 -> int32, or float8 x
float8. The incoming gradient has a format of its own (e5m2 beside e4m3, say), as in
Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433, and in AQT.

The products are the transposes that JAX itself derives, run through `lift` with one
operand compressed: the same rules as in the forward pass, for dots, convolutions and
ragged dots. Reverse mode only.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import spec as spec_lib


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
  uses = uses_lib.uses(f)(a, b)
  contracted = uses_lib.axes('', a, uses).contracted
  key = None
  if stored.rounding == 'stochastic':
    # A key that follows from the values, so that no state is carried.
    bits = lax.bitcast_convert_type(jnp.sum(a.astype(jnp.float32)), jnp.uint32)
    key = jax.random.fold_in(jax.random.key(1), bits)
  blocks = tuple((axis, 0) for axis in contracted)
  q = qarray.quantize_array(a, _plain(stored), blocks, packed=0, key=key)
  leaf = qarray.QDotArray(q, act=_plain(act))
  return lift.lift(f)(leaf, b)


def _plain(spec: spec_lib.Spec) -> spec_lib.Spec:
  """The format and rounding alone, one scale for each channel or token."""
  return spec_lib.Spec(
    spec.format,
    'token',
    symmetric=spec.symmetric,
    rounding=spec.rounding,
  )
