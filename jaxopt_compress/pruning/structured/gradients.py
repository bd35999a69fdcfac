"""What scores take besides weights: gradients of a loss, and their squares, over data.

    gradients   g_bar = mean over batches of g(batch)
    fisher      F     = mean over batches, or over examples, of g^2

    grads = jc.pruning.gradients(loss, params, batches)
    jc.importance(structure, params, grads, score='taylor')
    jc.importance(structure, params, jc.pruning.fisher(loss, params, batches), score=...)

The square of a mean is not the mean of squares: where examples pull a weight to both
sides, its mean gradient is zero, and it may matter all the same.
"""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
import functools
from typing import Any
import weakref

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib


def gradients(loss: Callable, params: Any, batches: Iterable[Any]) -> Any:
  """The mean gradient over batches.

  Args:
    loss: `loss(params, ...)`, a number: the mean over the examples of a batch. As by
      `jax.jit`, a function is compiled once: what else it reads are constants.
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
  # Numbers that are no arrays, as of heads, stay what they are.
  is_array = [hasattr(x, 'dtype') for x in leaves]
  arrays = [x if is_it else None for x, is_it in zip(leaves, is_array)]
  others = tuple(
    (i, type(x), x) for i, x in enumerate(leaves) if not is_array[i]
  )
  if not isinstance(loss, Hashable):
    loss = functools.partial(loss)
  step = _step(weakref.ref(loss), tree, others, by_example, square)
  total = [
    jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    if _is_floating(x)
    else jnp.zeros(jnp.shape(leaves[i]))
    for i, x in enumerate(arrays)
  ]
  count = 0
  for batch in batches:
    total = step(total, arrays, batch)
    count += len(jax.tree.leaves(batch)[0]) if by_example else 1
  if not count:
    raise ValueError('There is no batch. An iterator that was read is empty.')
  return _checked(jax.tree.unflatten(tree, [t / count for t in total]))


# Few, as each holds its program; a function that is gone is found by nobody.
@functools.lru_cache(maxsize=8)
def _step(loss, tree, others, by_example, square):
  """(total, arrays, batch) -> total, compiled once for a function.

  Args:
    loss: a weak reference to it, so that what it closes over may go.
    tree: of the parameters.
    others: (place, type, value) of leaves that are no arrays.
  """
  constants = {i: x for i, _, x in others}

  def add(total, arrays, batch):
    floating = [i for i, x in enumerate(arrays) if _is_floating(x)]

    def value(weights):
      filled = constants | dict(zip(floating, weights, strict=True))
      mixed = [filled.get(i, x) for i, x in enumerate(arrays)]
      return batches_lib.call(loss(), (jax.tree.unflatten(tree, mixed),), batch)

    out = list(total)
    found = jax.grad(value)([arrays[i] for i in floating])
    for i, g in zip(floating, found, strict=True):
      g = g.astype(out[i].dtype)
      out[i] += g * g if square else g
    return out

  def add_each(total, arrays, batch):
    def one(total, example):
      example = jax.tree.map(lambda x: x[None], example)
      return add(total, arrays, example), None

    return jax.lax.scan(one, total, batch)[0]

  return jax.jit(add_each if by_example else add)


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
