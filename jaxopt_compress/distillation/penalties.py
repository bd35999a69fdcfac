"""R(theta): scalars that grow as parameters move away from where they should be.

    l1            sum |theta|
    l2            sum theta^2
    group_lasso   sum over groups g of  sqrt(size of g) ||theta_g||_2
    towards       mean squared distance to other parameters
    l2_sp         sum of squared distances to other parameters

They are used with `matching.regularized`; `by_path` says for which leaves. All are
float32.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.distillation import matching

Penalty = Callable[[Any], jax.Array]


def l1(params: Any) -> jax.Array:
  """sum |theta|. Tibshirani 1996 (the lasso). It draws single weights to zero.

  At 0 the gradient is 0, so that what is zero stays.

  >>> float(l1({'w': jnp.array([1., -2.])}))
  3.0
  """
  # The derivative of `abs` is 1 at 0, that of this product sign(x).
  return _sum(lambda x: jnp.sum(x * jnp.sign(x)), params)


def l2(params: Any) -> jax.Array:
  """sum theta^2, without the half: its gradient is 2 theta.

  >>> float(l2({'w': jnp.array([1., -2.])}))
  5.0
  """
  return _sum(lambda x: jnp.sum(jnp.square(x)), params)


def group_lasso(axis: int | Sequence[int] = -1) -> Penalty:
  """sum_g sqrt(|g|) ||theta_g||_2: it draws whole groups to zero.

  Yuan and Lin 2006, https://doi.org/10.1111/j.1467-9868.2005.00532.x, eq. 2.1;
  for the neurons of a network, Wen et al. 2016, https://arxiv.org/abs/1608.03665,
  section 3. At a group that is zero the gradient is taken to be 0.

  Args:
    axis: one group for each index of this axis, or of these axes, counted from the
      end; -1 for the output neurons of a kernel [in, out].

  Returns:
    A penalty of trees whose leaves all have that axis.

  >>> w = jnp.array([[3., 0.], [4., 0.]])
  >>> round(float(group_lasso(-1)({'w': w})), 4)  # sqrt(2) * 5
  7.0711
  """
  axes = (axis,) if isinstance(axis, int) else tuple(axis)

  def of_leaf(x):
    if any(not -x.ndim <= a < x.ndim for a in axes):
      raise ValueError(
        f'A leaf of shape {x.shape} has no axes {axes}. Name the leaves with'
        " penalties.by_path([(r'.*/kernel', group_lasso(-1)), (r'.*', None)])."
      )
    kept = {a % x.ndim for a in axes}
    others = tuple(a for a in range(x.ndim) if a not in kept)
    square = jnp.sum(jnp.square(x), axis=others)
    # The square root has no derivative at 0: it is taken of 1 there, and `where`
    # on both sides keeps the infinite slope out of the gradient.
    is_zero = square == 0
    norm = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))
    return math.sqrt(math.prod(x.shape[a] for a in others)) * jnp.sum(norm)

  return lambda params: _sum(of_leaf, params)


def towards(reference: Any) -> Penalty:
  """Mean squared distance to `reference`, a tree like the parameters.

  The reference is a constant of the program: for large ones, pass it as an argument
  of the loss and call `matching.squared_distance` there.

  >>> float(towards({'w': jnp.ones(2)})({'w': jnp.array([1., 3.])}))
  2.0
  """
  return lambda params: matching.squared_distance(params, reference)


def l2_sp(reference: Any) -> Penalty:
  """sum (theta - reference)^2, without the half: `l2` with another origin.

  Li et al. 2018, https://arxiv.org/abs/1802.01483, eq. 4 (L2-SP), of parameters that
  were trained before; `l2` is for the others there.
  The reference is a constant of the program, as for `towards`.

  >>> float(l2_sp({'w': jnp.ones(2)})({'w': jnp.array([1., 3.])}))
  4.0
  """

  def penalty(params):
    number = sum(x.size for x in jax.tree.leaves(lift.materialize(reference)))
    return number * matching.squared_distance(params, reference)

  return penalty


def by_path(rules: Sequence[tuple[str, Penalty | None]]) -> Penalty:
  """The sum of penalties, each of the leaves whose rule it is.

  Args:
    rules: ordered `(regex, penalty | None)`; first match wins, every leaf must be
      covered and every rule used. A penalty sees its leaves as `{path: leaf}`.

  >>> r = by_path([(r'w', l1), (r'.*', None)])
  >>> float(r({'b': jnp.ones(2), 'w': jnp.ones(3)}))
  3.0
  """

  rules = rules_lib.pairs(rules)

  def penalty(params):
    shares = rules_lib.split(rules, params)
    total = jnp.float32(0)
    for (_, of_leaves), leaves in zip(rules, shares, strict=True):
      if of_leaves is not None:
        total += of_leaves(leaves)
    return total

  return penalty


def _sum(of_leaf, params) -> jax.Array:
  leaves = [jnp.asarray(x) for x in jax.tree.leaves(lift.materialize(params))]
  wide = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in leaves]
  return sum((of_leaf(x) for x in wide), start=jnp.float32(0))
