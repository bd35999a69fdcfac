"""Which parameter is added to the product of a weight: its bias.

    y = x W + b         the bias of W is b
    y = x W - m         the bias of W is m, taken off: the mean of a batch norm

Whoever changes the mean of a product can take it up there.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import walk
from jaxopt_compress.core import array


class Bias(NamedTuple):
  """What is added to a product, `sign` times."""

  path: str
  sign: int


class _Value(NamedTuple):
  """A parameter whose entries were moved at most, or the product of one."""

  path: str
  product: bool


def biases(fun: Callable) -> Callable[..., dict[str, Bias]]:
  """The biases of the weights of `fun(params, *args)`.

  Args:
    fun: a function of parameters and further arguments.

  Returns:
    A function of the same arguments that returns {path of a weight: its `Bias`}, for
    weights each product of which has the same. The program is not run; arguments may
    be abstract.

  >>> import jax, jax.numpy as jnp
  >>> f = lambda p, x: jax.nn.relu(x @ p['w'] + p['b']) @ p['v']
  >>> p = {'w': jnp.ones((2, 3)), 'b': jnp.ones((1, 3)), 'v': jnp.ones((3, 1))}
  >>> biases(f)(p, jnp.ones((4, 2)))
  {'w': Bias(path='b', sign=1)}
  """

  def found(params, *args, **kwargs):
    params = array.materialize(params)
    closed, arrays = walk.trace(fun, params, args, kwargs)
    asked = _Biases()
    inputs = [_Value(path, False) for path, _ in arrays]
    inputs += [None] * (len(closed.jaxpr.invars) - len(inputs))
    algebra.evaluate(asked, closed, inputs)
    return {
      path: met[0]
      for path, met in asked.met.items()
      if len(met) == asked.products[path] and len(set(met)) == 1
    }

  return found


class _Biases(algebra.Algebra):
  """A value is a `_Value`, or None for any other."""

  def __init__(self):
    self.products: dict[str, int] = {}
    self.met: dict[str, list[Bias]] = {}

  def plain(self, aval):
    return None

  def layer(self, x, turn, aval):
    return x


def _moves(asked, at, inputs):
  return [inputs[0]] * len(at.eqn.outvars)


def _product(asked, at, inputs):
  weights = [x.path for x in inputs if x and not x.product]
  if len(weights) != 1:
    return [None]
  asked.products[weights[0]] = asked.products.get(weights[0], 0) + 1
  return [_Value(weights[0], True)]


def _sum(sign):
  def rule(asked, at, inputs):
    # What a product is taken off from is no bias of it.
    for x, y in (inputs, inputs[::-1]) if sign > 0 else (inputs,):
      if x and y and x.product and not y.product:
        asked.met.setdefault(x.path, []).append(Bias(y.path, sign))
    return [None]

  return rule


_Biases.rules = {
  **dict.fromkeys(
    'broadcast_in_dim convert_element_type copy expand_dims reshape squeeze'
    ' transpose'.split(),
    _moves,
  ),
  'dot_general': _product,
  'conv_general_dilated': _product,
  'ragged_dot_general': _product,
  'add': _sum(1),
  'sub': _sum(-1),
}
