"""Activations at named places become codes: scores of attention, residual streams.

    rules = [(r'.*/attn/.*dot_general', 'int8')]
    apply = jc.quantization.quantize_activations(apply, rules)

Weights are named by their paths; what has no weight is named by the scopes of the
model (`analysis/scopes.py`). A product of two activations multiplies their codes, one
scale for each entry of the axes that it does not sum over; the result of any other
operation is rounded, one scale along its last axis. Differentiated straight through.
"""

from collections.abc import Callable
from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import scopes
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import product
from jaxopt_compress.quantization import spec as spec_lib
from jaxopt_compress.quantization import straight


def quantize_activations(
  fun: Callable, rules: Sequence[tuple[str, spec_lib.Spec | str | None]]
) -> Callable:
  """Rounds activations where the model computes them.

  Composes with compressed weights: `jc.lift(quantize_activations(apply, rules))`, and
  not the other way round. XLA multiplies what is rounded so: of attention whose
  products are taken, the kernel for CPUs, which multiplies floats, is not called.

  Args:
    fun: a function of pytrees of arrays.
    rules: ordered `(regex, spec)` over 'scope/.../primitive'; a spec is a
      `jc.schemes.Spec`, its words ('int8', 'e4m3 g32 mx', 'int8 asym'), or None to leave
      the operation as it is. Ranges are measured at run time.

  Returns:
    A function with the same arguments.

  Raises:
    ValueError: a rule that takes no operation (lists the scopes that have
      products), or one that a kernel computes, as in a program that is lifted already;
      or a spec with a static range.

  >>> f = lambda q, k: q @ k.T
  >>> g = quantize_activations(f, [(r'dot_general', 'int8')])
  >>> q = jnp.array([[1., 2.]])
  >>> abs(g(q, q) - f(q, q)).max() < 0.05
  Array(True, dtype=bool)
  """
  return scopes.at_scopes(
    fun, [(r, _handler(value)) for r, value in rules_lib.pairs(rules)]
  )


def _handler(value: spec_lib.Spec | str | None):
  if value is None:
    return None
  spec = spec_lib.parse(value, 'token') if isinstance(value, str) else value
  if spec.static or spec.learn:
    raise ValueError(
      f'{spec.describe()}: activations without a weight have no calibrated range.'
      ' Leave out "static", "lsq" and "pact".'
    )

  def handle(primitive, operands, params):
    if primitive is lax.dot_general_p:
      return _multiply(spec, operands, params)
    if primitive.name in scopes.PRODUCTS:
      return lift.Dense(f'{primitive.name} of two activations')
    return jax.tree.map(_round_last(spec), primitive.bind(*operands, **params))

  return handle


def _multiply(spec, operands, params):
  """The product of the codes of both operands."""
  a, b = operands
  d = product.dims(params['dimension_numbers'])
  declined = dot.refuses(a) or dot.refuses(b)
  if declined:
    return declined

  def codes(x, side):
    grouped = max(d.contracting[side], default=0, key=lambda i: x.shape[i])
    return activation.quantize(x, spec, d.contracting[side], grouped)

  fixed = lax.stop_gradient((a, b))
  pair = [codes(x, side) for side, x in enumerate(fixed)]
  preferred = params['preferred_element_type']
  dtype = preferred if preferred is not None else jnp.result_type(a, b)
  out = dot.both(*pair, d, params['precision']).astype(dtype)

  def dense(a, b):
    values = [
      activation.rounded(x, q, spec, 1)
      for x, q in zip((a, b), pair, strict=True)
    ]
    return lax.dot_general_p.bind(*values, **params)

  return straight.as_if(dense, out, a, b)


def _round_last(spec):
  def rounded(x):
    if not jnp.issubdtype(x.dtype, jnp.floating) or not x.ndim:
      return x
    q = activation.quantize(
      lax.stop_gradient(x), spec, (x.ndim - 1,), x.ndim - 1
    )
    return activation.rounded(x, q, spec, 1)

  return rounded
