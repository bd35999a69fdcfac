"""Which weights' products read what the network is given, and which write its answer.

    first   the other operand has been through no product with a weight
    last    no product with a weight comes after, on the way to the results

Of a network with several inputs or several heads there are several of each; of an
attention layer that comes first, the query, key and value. Products of two values
that depend on the inputs, as those of attention, do not count.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from jaxopt_compress.analysis import algebra


class Ends(NamedTuple):
  """Paths of weights."""

  first: frozenset[str]
  last: frozenset[str]


def ends(closed: Any, paths: Sequence[str]) -> Ends:
  """The weights of the first and of the last products of a program.

  Args:
    closed: the program; its first inputs are the leaves.
    paths: their names.

  In a scan one turn stands for all: its first product may be a first one, and its
  last a last one.

  >>> import jax, jax.numpy as jnp
  >>> f = lambda u, v, w, x: jnp.tanh(jnp.tanh(x @ u) @ v) @ w
  >>> x = jnp.ones((2, 2))
  >>> first, last = ends(jax.make_jaxpr(f)(x, x, x, x), ['u', 'v', 'w'])
  >>> [*first], [*last]
  (['u'], ['w'])
  """
  asked = _Ends()
  inputs = [_Value(False, frozenset([path])) for path in paths]
  inputs += [_Value(True)] * (len(closed.jaxpr.invars) - len(inputs))
  results = algebra.evaluate(asked, closed, inputs)
  written = frozenset().union(*(y.made_of for y in results if y.data))
  last = (path for path, _ in written - asked.followed)
  return Ends(frozenset(asked.first), frozenset(last))


class _Value(NamedTuple):
  """What a value is made of.

  Attributes:
    data: whether it depends on what the network is given.
    made_of: if so, the products that it came out of last, (path of the weight, number
      of the product) as a weight may be in several; if not, the paths of the leaves
      that it is computed from.
  """

  data: bool
  made_of: frozenset = frozenset()


class _Ends(algebra.Algebra):
  def __init__(self):
    self.first: set[str] = set()
    self.followed: set[tuple[str, int]] = set()
    self.products = 0

  def plain(self, aval):
    return _Value(False)

  def unknown(self, at, inputs):
    return [self.join(inputs, None)] * len(at.eqn.outvars)

  def join(self, cases, aval):
    data = any(x.data for x in cases)
    parts = (x.made_of for x in cases if x.data == data)
    return _Value(data, frozenset().union(*parts))

  def carry(self, x, aval):
    # A state that starts from zeros depends on the inputs after one turn.
    return x if x.data else _Value(True)

  def layer(self, x, turn, aval):
    return x

  def stack(self, ys, aval):
    return self.join(ys, aval)

  def cut(self, at, x, spec, aval):
    return x

  def assemble(self, at, y, spec, aval):
    return y


def _product(asked, at, inputs):
  x, w = sorted(inputs[:2], key=lambda value: not value.data)
  if w.data or not x.data:
    return None
  if not x.made_of:
    asked.first |= w.made_of
  asked.followed |= x.made_of
  asked.products += 1
  return [_Value(True, frozenset((p, asked.products) for p in w.made_of))]


_Ends.rules = dict.fromkeys(
  ('conv_general_dilated', 'dot_general', 'ragged_dot_general'), _product
)
