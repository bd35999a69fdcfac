"""The distance between two trees of arrays, and losses with a penalty.

d(a, b)        = mean over all entries of (a - b)^2
L'(theta)      = L(theta) + weight * R(theta)

Matching in parameter space is gradient descent on d itself. Of free parameters it is a
slow copy; of parameters that are made of fewer ones, it finds the nearest ones, here
those of a matrix of rank 1:

  >>> teacher = {'w': jnp.array([[2., 1.], [4., 2.1]])}
  >>> student = {'u': jnp.ones((2, 1)), 'v': jnp.ones((1, 2))}
  >>> made = lambda p: {'w': p['u'] @ p['v']}
  >>> distance = lambda p: squared_distance(made(p), teacher)
  >>> step = jax.jit(lambda p: jax.tree.map(
  ...   lambda x, g: x - 0.1 * g, p, jax.grad(distance)(p)))
  >>> for _ in range(200):
  ...   student = step(student)
  >>> [round(float(distance(p)), 4) for p in ({'u': jnp.ones((2, 1)), 'v': jnp.ones(
  ...   (1, 2))}, student)]
  [2.8025, 0.0004]
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.distillation import positions


def squared_distance(tree_a: Any, tree_b: Any) -> jax.Array:
  """Mean squared difference of all entries of two trees of one layout.

  Of features, it is the hint loss of Romero et al. 2014,
  https://arxiv.org/abs/1412.6550, eq. 3, up to scale; of parameters, the L2-SP
  penalty of Li et al. 2018, https://arxiv.org/abs/1802.01483, up to scale.

  Args:
    tree_a, tree_b: arrays or compressed leaves, of the same paths and shapes.

  Returns:
    Scalar, float32.

  Raises:
    ValueError: paths or shapes differ, listed; or there is nothing to compare.

  >>> float(squared_distance({'w': jnp.array([1., 2.])}, {'w': jnp.array([1., 4.])}))
  2.0
  """
  pairs = _pairs(tree_a, tree_b)
  total = sum(jnp.sum(jnp.square(_wide(a) - _wide(b))) for a, b in pairs)
  return total / float(sum(a.size for a, _ in pairs))


def regularized(
  loss_fn: Callable[..., Any],
  penalty: Callable[[Any], jax.Array],
  weight: float | jax.Array,
) -> Callable[..., Any]:
  """`loss_fn` plus `weight` times a penalty of its first argument.

  Args:
    loss_fn: `(params, ...) -> loss`, a scalar; or, as the losses of this package,
      `-> (sum, count)`. A loss of (sum, count) becomes (sum + count * weight * R,
      count), so that its mean over positions is L + weight * R however the batch is
      split.
    penalty: `params -> scalar`, see `penalties`.
    weight: scalar; may be traced, such as a schedule's value. Where it is 0, the
      penalty has no part in the loss or in its gradient, whatever it is.

  Returns:
    A function like `loss_fn`.

  Raises:
    ValueError: (when called) the loss is neither a scalar nor (sum, count).

  >>> loss = regularized(lambda p, x: p * x, lambda p: p ** 2, 0.5)
  >>> float(loss(jnp.float32(4.), 3.))
  20.0
  """

  def regularized_loss(params, *args, **kwargs):
    loss = loss_fn(params, *args, **kwargs)
    if _is_scalar(loss):
      return loss + positions.term(weight, penalty, params)
    if (
      isinstance(loss, tuple) and len(loss) == 2 and all(map(_is_scalar, loss))
    ):
      total, count = loss
      return total + positions.term(count * weight, penalty, params), count
    raise ValueError(
      'A loss is a scalar or scalars (sum, count), not'
      f' {jax.tree.map(jnp.shape, loss)}. Leave auxiliary outputs out, or add'
      ' weight * penalty(params) where they are made.'
    )

  return regularized_loss


def _is_scalar(x) -> bool:
  return isinstance(x, (int, float)) or getattr(x, 'shape', None) == ()


def _wide(x) -> jax.Array:
  # A sum of many squares in bfloat16 would stop growing.
  x = array.materialize(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _pairs(tree_a, tree_b):
  a, b = (
    dict(rules_lib.named_leaves(tree_a)),
    dict(rules_lib.named_leaves(tree_b)),
  )
  only_a, only_b = [p for p in a if p not in b], [p for p in b if p not in a]
  if only_a or only_b:
    raise ValueError(
      f'The trees differ: only the first has {only_a[:8]} ({len(only_a)} leaves),'
      f' only the second {only_b[:8]} ({len(only_b)}). Compare what both have.'
    )
  unlike = [
    f'{p}: {tuple(a[p].shape)} and {tuple(b[p].shape)}'
    for p in a
    if a[p].shape != b[p].shape
  ]
  if unlike:
    raise ValueError(
      f'Shapes differ at {"; ".join(unlike[:8])} ({len(unlike)} leaves). For'
      ' features of different width, map one to the other first.'
    )
  if not sum(x.size for x in a.values()):
    raise ValueError('The trees have no entries, so they have no distance.')
  return [(a[p], b[p]) for p in a]
