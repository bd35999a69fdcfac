"""Curves that results of a product go through, as programs write them.

A row of `CURVES` is a way of writing a curve. The first word of its name is what the
kernels call the curve; what follows says which of several ways it is. They agree in
values, but for rounding, and each has its own derivative where the curve has a kink.
Programs are known by what they compute (`formulas`), not by names.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.kernels import flow as flow_lib
from jaxopt_compress.kernels import formulas

_ENTER = (*formulas.JIT, 'custom_jvp_call')
_SPREAD = 'broadcast_in_dim', 'convert_element_type'
_MOST_EQUATIONS = 16  # that a curve is looked for in


def _half_times_erf(x):
  """As torch and Hugging Face write it."""
  return 0.5 * x * (1 + lax.erf(x / math.sqrt(2)))


def _times_half_erf(x):
  return x * 0.5 * (1.0 + lax.erf(x * math.sqrt(0.5)))


def _times_normal(x):
  return x * (0.5 * (1 + lax.erf(x / math.sqrt(2))))


def _inner_half(x):
  """As exported programs often have it: the product with x first, then a half."""
  return x * (1 + lax.erf(x / math.sqrt(2))) * 0.5


def _cube_by_products(x):
  """The tanh form, as exported programs have it: x first, then half of the sum."""
  cubic = x + x * (x * (0.044715 * x))
  return x * (0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * cubic)))


def _clip_sixth(x):
  return x * jnp.clip(x / 6 + 0.5, 0.0, 1.0)


def _clip_times_sixth(x):
  return x * jnp.clip(x * (1 / 6) + 0.5, 0.0, 1.0)


def _relu6_of_sum(x):
  return x * jax.nn.relu6(x + 3) / 6


def _clip_of_sum(x):
  return x * jnp.clip(x + 3, 0.0, 6.0) / 6


def _relu6_times(x):
  return x * (jax.nn.relu6(x + 3) * (1 / 6))


CURVES = {
  'gelu': jax.nn.gelu,
  'gelu, cube by products': _cube_by_products,
  'exact_gelu': functools.partial(jax.nn.gelu, approximate=False),
  'exact_gelu, half x first': _half_times_erf,
  'exact_gelu, x half first': _times_half_erf,
  'exact_gelu, half of erf': _times_normal,
  'exact_gelu, half last': _inner_half,
  'silu': jax.nn.silu,
  'sigmoid': jax.nn.sigmoid,
  'tanh': jnp.tanh,
  'relu6': jax.nn.relu6,
  'relu6, clip': lambda x: jnp.clip(x, 0.0, 6.0),
  'hard_sigmoid': jax.nn.hard_sigmoid,
  'hard_sigmoid, clip': lambda x: jnp.clip(x / 6 + 0.5, 0.0, 1.0),
  'hard_sigmoid, sum first': lambda x: jnp.clip(x + 3, 0.0, 6.0) / 6,
  'hard_swish': jax.nn.hard_swish,
  'hard_swish, clip': _clip_sixth,
  'hard_swish, clip of a product': _clip_times_sixth,
  'hard_swish, relu6': _relu6_of_sum,
  'hard_swish, clip of a sum': _clip_of_sum,
  'hard_swish, a sixth': _relu6_times,
  'leaky_relu': jax.nn.leaky_relu,
  'squared_relu': lambda x: jnp.square(jax.nn.relu(x)),
  'elu': jax.nn.elu,
  'softplus': jax.nn.softplus,
  'mish': jax.nn.mish,
}


def kernel(name: str) -> str:
  """What the kernels call a curve of `CURVES`."""
  return name.partition(',')[0]


def find(v, flow: flow_lib.Flow) -> tuple[str | None, tuple[int, ...]]:
  """The longest curve that a variable of a body goes through.

  Args:
    v: the variable.
    flow: of the body.

  Returns:
    (name in `CURVES`, indices of its equations); (None, ()) where it goes through none.
  """
  eqns, readers = flow.jaxpr.eqns, flow.readers
  waiting, inside, indices = set(readers[v]), {v}, []
  numbers = []  # equations that spread a number, or convert it
  best = None, ()
  while waiting and len(indices) < _MOST_EQUATIONS:
    i = min(waiting)
    waiting.discard(i)
    eqn = eqns[i]
    others = [o for o in eqn.invars if not formulas.is_literal(o)]
    makers = [_of_number(o, flow) for o in others if o not in inside]
    if None in makers or len(eqn.outvars) != 1:
      break
    numbers.extend(made for some in makers for made in some)
    indices.append(i)
    if not waiting:  # so far, nothing else reads what is inside
      name = _named([*numbers, *(eqns[j] for j in indices)], v, eqn.outvars[0])
      best = (name, tuple(indices)) if name else best
    more = [j for o in eqn.outvars for j in readers.get(o, ())]
    if None in more:
      break
    inside.update(eqn.outvars)
    waiting.update(more)
  return best


def _of_number(v, flow) -> list[Any] | None:
  """Equations that convert a number or spread it; None for what is no number."""
  eqns = []
  while not formulas.is_literal(v):
    made = flow.maker(v)
    if made is None or made.primitive.name not in _SPREAD or made.invars[1:]:
      return None
    eqns.insert(0, made)
    v = made.invars[0]
  return eqns


def _named(eqns: Sequence[Any], v, out) -> str | None:
  """The name of the curve that equations compute, derivatives included."""
  if out.aval.shape != v.aval.shape:  # it is spread over what it meets
    return None
  values = formulas.of_equations(eqns, v, out, enter=_ENTER)
  if values is None:
    return None
  names = _names_of_values(jnp.dtype(v.aval.dtype)).get(values, ())
  if not names:
    return None
  # What has a derivative rule of its own is known by that, too.
  plain = formulas.of_equations(eqns, v, out)
  for name in names:
    known = formulas.of_curve(CURVES[name], jnp.dtype(v.aval.dtype))
    if plain is not None or known is not None:
      if plain == known:
        return name
      continue
    # Its values are read in the tangent, too, where its rule has been followed.
    x, theirs = v.aval, formulas.as_function(eqns, v, out)
    theirs = formulas.of_derivative(theirs, x, _ENTER)
    ours = formulas.of_known_derivative(CURVES[name], x.shape, x.dtype, _ENTER)
    if theirs is not None and theirs == ours:
      return name
  return None


@functools.cache
def _names_of_values(dtype) -> dict[tuple, tuple[str, ...]]:
  """The curves of each formula of values."""
  found: dict[tuple, tuple[str, ...]] = {}
  scalar = jax.ShapeDtypeStruct((), dtype)
  for name, curve in CURVES.items():
    formula = formulas.of_function(curve, scalar, enter=_ENTER)
    if formula is not None:
      found[formula] = (*found.get(formula, ()), name)
  return found
