"""What scores take besides weights: gradients of a loss, and their squares, over data.

    gradients   g_bar = mean over batches of g(batch)
    fisher      F     = mean over batches, or over examples, of g^2

    jc.importance(structure, params, jc.gradients(loss, params, batches), score='taylor')
    jc.importance(structure, params, jc.fisher(loss, params, batches), score=...)

The square of a mean is not the mean of squares: where examples pull a weight to both
sides, its mean gradient is zero, and it may matter all the same.
"""

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib


def gradients(loss: Callable, params: Any, batches: Iterable[Any]) -> Any:
  """The mean gradient over batches.

  Args:
    loss: `loss(params, ...)`, a number: the mean over the examples of a batch.
    params: the parameters; compressed leaves count for what they stand for.
    batches: each a tuple (positional arguments after `params`), a dict (keyword
      arguments) or anything else (one argument). All have the same weight.

  Returns:
    A tree of the form of `params`, in float32 at least; zero for what is not
    floating, as counters and keys.

  Raises:
    ValueError: no batch, or gradients that are not finite, with the path.

  >>> loss = lambda p, x: jnp.mean(p['w'] * x)
  >>> gradients(loss, {'w': jnp.ones(1)}, [jnp.ones(2), 3 * jnp.ones(2)])['w']
  Array([2.], dtype=float32)
  """
  return _mean(loss, params, batches, by_example=False, square=False)


def fisher(
  loss: Callable, params: Any, batches: Iterable[Any], per: str = 'batch'
) -> Any:
  """The mean of squared gradients: the diagonal of the (empirical) Fisher information.

  LeCun et al. 1989 (OBD) and Theis et al. 2018, https://arxiv.org/abs/1801.05787,
  eq. 7, take examples one by one; Molchanov et al. 2019,
  https://arxiv.org/abs/1906.10771, eq. 8, batches, which costs no more than training.
  The loss falls by about w^2 F / 2 less if w becomes zero.

  Args:
    loss, params, batches: as for `gradients`.
    per: 'batch', or 'example': the gradient of each example is squared, the first
      axis of every array of a batch being that of the examples. They are taken one
      after the other, so that there is one gradient in memory at a time.

  >>> loss = lambda p, x: jnp.mean(p['w'] * x)
  >>> x = jnp.array([1., 3.])
  >>> [fisher(loss, {'w': jnp.ones(1)}, [x], per)['w'] for per in ('batch', 'example')]
  [Array([4.], dtype=float32), Array([5.], dtype=float32)]
  """
  choices.one_of('per', per, ('batch', 'example'), '=')
  by_example = per == 'example'
  return _mean(loss, params, batches, by_example=by_example, square=True)


def _mean(loss, params, batches, *, by_example, square):
  """The mean of gradients or of their squares."""
  leaves, tree = jax.tree.flatten(array.materialize(params))
  floating = [i for i, x in enumerate(leaves) if _is_floating(x)]

  def add(total, weights, batch):
    def value(weights):
      filled = dict(zip(floating, weights, strict=True))
      mixed = [filled.get(i, x) for i, x in enumerate(leaves)]
      return batches_lib.call(loss, (jax.tree.unflatten(tree, mixed),), batch)

    found = [g.astype(t.dtype) for g, t in zip(jax.grad(value)(weights), total)]
    return [t + (g * g if square else g) for g, t in zip(found, total)]

  def add_each(total, weights, batch):
    def one(total, example):
      example = jax.tree.map(lambda x: x[None], example)
      return add(total, weights, example), None

    return jax.lax.scan(one, total, batch)[0]

  step = jax.jit(add_each if by_example else add)
  weights = [jnp.asarray(leaves[i]) for i in floating]
  total = [
    jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)) for w in weights
  ]
  count = 0
  for batch in batches:
    total = step(total, weights, batch)
    count += len(jax.tree.leaves(batch)[0]) if by_example else 1
  if not count:
    raise ValueError('There is no batch. An iterator that was read is empty.')
  means = dict(zip(floating, [t / count for t in total]))
  out = [
    means[i] if i in means else jnp.zeros(jnp.shape(x))
    for i, x in enumerate(leaves)
  ]
  return _checked(jax.tree.unflatten(tree, out))


def _is_floating(x) -> bool:
  return hasattr(x, 'dtype') and jnp.issubdtype(x.dtype, jnp.floating)


def _checked(tree):
  for path, x in rules_lib.named_leaves(tree):
    bad = int(jnp.sum(~jnp.isfinite(x)))
    if bad:
      raise ValueError(
        f'The gradients of {path} are not finite at {bad} of {x.size} entries.'
        ' Look for where the loss is: parameters, batches, its scale.'
      )
  return tree
