"""Factors that a network can move from one weight to another.

    relu((x W1 + b) / s) (s W2) = relu(x W1 + b) W2        for any s > 0

`rescalings(apply)(params, x)` finds every such freedom of a program. The walk of
`factors` collects equations between unknown factors; the unknowns that these leave
free are the freedoms. No layer is known by its name.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import factor_rules
from jaxopt_compress.analysis import factors
from jaxopt_compress.analysis import walk
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib


@dataclasses.dataclass(frozen=True)
class Rescalings:
  """The freedoms of a network; freedom i has the factor `exp(logs[i])`.

  Attributes:
    num: how many there are.
    freedom: int32 [unknowns], the freedom that an unknown is; -1 for none.
    sign: int8 [unknowns], whether it has that factor or one over it.
    taken: every place where parameters take factors up.
  """

  num: int
  freedom: np.ndarray
  sign: np.ndarray
  taken: tuple[factors.Taken, ...]

  def terms(self, taken: factors.Taken) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(signs, freedoms)], both broadcastable to `taken.index`."""
    return [
      (sign * self.sign[unknowns], self.freedom[unknowns])
      for sign, unknowns in taken.terms
    ]

  def logs_of(self, taken: factors.Taken, logs: np.ndarray) -> np.ndarray:
    """Logarithms of the factors at one place, broadcastable to its index."""
    padded = np.append(logs, 0.0)  # no freedom, -1: the factor one
    total = np.zeros((1,) * taken.index.ndim)
    for signs, freedoms in self.terms(taken):
      total = total + signs * padded[freedoms]
    return total

  def without_gains(self) -> 'Rescalings':
    """The freedoms that leave alone what multiplies values: gains of norms."""
    # Freedom f is node f + 1; no freedom, -1, is the factor one.
    pairs = {1: [], -1: []}
    for taken in self.taken:
      if taken.gain is None or not taken.terms:
        continue
      after, before = (
        np.broadcast_to(u, taken.index.shape) for _, u in taken.terms
      )
      agree = self.sign[after] * self.sign[before]
      for s in pairs:
        ends = (self.freedom[u[agree == s]] + 1 for u in (after, before))
        pairs[s].append(tuple(ends))
    part, sign = _solve(self.num + 1, pairs[1], pairs[-1])
    at = self.freedom + 1
    part = np.where(self.freedom < 0, -1, part[at])
    sign = (self.sign * sign[at]).astype(np.int8)
    return _numbered(part, sign, self.freedom >= 0, self.taken)

  def apply(self, params: Any, logs: np.ndarray) -> Any:
    """The parameters of the same function, with factors moved.

    Args:
      params: the tree that the freedoms were found for.
      logs: float [num], logarithms of the factors.
    """
    moves = {}  # by path, what each entry is multiplied by
    shapes = {p: x.shape for p, x in rules_lib.named_leaves(params)}
    for taken in self.taken:
      factor = np.exp(self.logs_of(taken, logs))
      if not (factor == 1.0).all():
        flat = moves.setdefault(
          taken.path, np.ones(math.prod(shapes[taken.path]), np.float32)
        )
        flat[taken.index] = factor

    def rescaled(path, x):
      if path not in moves:
        return x
      factor = moves[path].reshape(x.shape)
      return (np.asarray(x, np.float32) * factor).astype(x.dtype)

    scaled = rules_lib.map_named(rescaled, params)
    return jax.tree.map(jax.numpy.asarray, scaled)


def rescalings(fun: Callable) -> Callable[..., Rescalings]:
  """The freedoms of `fun(params, *args)`, in all leaves of its first argument.

  Statistics that a norm subtracts belong to the first argument, too: what is in
  the others carries no factor.

  Args:
    fun: a function of parameters and further arguments. Loops are unrolled, for
      each layer of a scan has freedoms of its own.

  Returns:
    A function of the same arguments that returns `Rescalings`. The program is not
    run; arguments may be abstract.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: jax.nn.relu(x @ p['a'] + p['b']) @ p['c']
  >>> p = {'a': jnp.ones((3, 4)), 'b': jnp.ones((1, 4)), 'c': jnp.ones((4, 2))}
  >>> rescalings(f)(p, jnp.ones((5, 3))).num
  4
  """

  def found(params, *args, **kwargs):
    params = array.materialize(params)
    closed, arrays = walk.trace(fun, params, args, kwargs)
    asked = factors.Factors(factor_rules.RULES)
    inputs = [factors.parameter(path, x) for path, x in arrays]
    others = closed.jaxpr.invars[len(inputs) :]
    inputs += [factors.plain(v.aval.shape) for v in others]
    for out in algebra.evaluate(asked, closed, inputs):
      asked.fix(out)
    return _solved(asked, {path: x.shape for path, x in arrays})

  return found


def _solved(asked, shapes) -> Rescalings:
  """The freedoms that the collected equations leave."""
  _one_use_each(asked, shapes)
  part, sign = _solve(asked.num, asked.same, asked.inverse)
  used = np.zeros(asked.num, bool)
  for taken in asked.taken:
    for _, unknowns in taken.terms:
      used[unknowns.ravel()] = True
  return _numbered(part, sign, used, tuple(asked.taken))


def _one_use_each(asked, shapes):
  """An entry that is used in two places takes up nothing in either."""
  counts = {p: np.zeros(math.prod(s), np.int32) for p, s in shapes.items()}
  for taken in asked.taken:
    counts[taken.path][taken.index] += 1
  for taken in asked.taken:
    shared = counts[taken.path][taken.index] > 1
    if shared.any():
      for _, unknowns in taken.terms:
        asked.equal(np.where(shared, unknowns, factors.ONE), factors.ONE)


def _solve(num, same, inverse):
  """Which unknowns are one: (part, sign) of each, part -1 where it is one.

  Args:
    num: of unknowns; the first is the factor one.
    same, inverse: [(a, b)], arrays of pairs that are equal, or inverse.
  """
  # Unknown u is node 2u, and one over it is node 2u + 1.
  rows, columns = [np.array([0])], [np.array([1])]
  for pairs, flip in ((same, 0), (inverse, 1)):
    for a, b in pairs:
      a, b = np.broadcast_arrays(a, b)
      a, b = (2 * p.ravel().astype(np.int64) for p in (a, b))
      rows += [a, a + 1]
      columns += [b + flip, b + 1 - flip]
  part = components(2 * num, np.concatenate(rows), np.concatenate(columns))
  plus, minus = part[0::2], part[1::2]
  sign = np.where(plus <= minus, 1, -1).astype(np.int8)
  return np.where(plus != minus, np.minimum(plus, minus), -1), sign


def components(num: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """The least node that is connected with each of `num` nodes.

  Args:
    num: of nodes.
    a, b: int [edges], the ends of edges.

  >>> components(5, np.array([3, 4]), np.array([1, 3]))
  array([0, 1, 2, 1, 1])
  """
  root = np.arange(num)
  while a.size:
    a, b = root[a], root[b]
    apart = a != b
    a, b = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
    # A root hangs itself on the least root that it has an edge to, so there are
    # no circles; what still lies apart then is left to the next turn.
    np.minimum.at(root, b, a)
    while True:
      higher = root[root]
      if (higher == root).all():
        break
      root = higher
  return root


def _numbered(part, sign, used, taken) -> Rescalings:
  """Numbers the parts that are used."""
  kept = np.unique(part[used & (part >= 0)])
  held = (part >= 0) & np.isin(part, kept)
  freedom = np.where(held, np.searchsorted(kept, part), -1).astype(np.int32)
  return Rescalings(len(kept), freedom, sign, taken)
