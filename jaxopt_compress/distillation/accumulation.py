"""The gradient of a large batch, from parts that fit in memory.

    sum, count, g = sum over parts of (sum_k, count_k, d sum_k / d params)
    gradient of the mean = g / count

Means of the parts, averaged, are another number as soon as one part has more padding
than another. Sums and counts add up exactly.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.distillation import positions


def accumulated(
  loss: Callable[..., positions.SumAndCount],
) -> Callable[..., tuple[positions.SumAndCount, Any]]:
  """`jax.value_and_grad` of the mean of a loss, one microbatch after the other.

  Args:
    loss: `(params, batch, *args) -> (sum, count)`, such as those of `losses`. A loss
      that relates the examples of a batch to each other, as `dist` does, relates
      those of each microbatch.

  Returns:
    `(params, batches, *args) -> ((mean, count), gradient of the mean)`: every array of
    `batches` has a leading axis of microbatches, which is scanned. The mean is 0, as
    is its gradient, where nothing counts. Gradients are added up in float32 and
    come in the dtypes of the parameters, which are plain. For several devices, take the mean on each
    from counts summed over them: or shard the batch under `jit`.

  >>> loss = lambda w, batch: (jnp.sum(w * batch['x']), jnp.sum(batch['n']))
  >>> batches = {'x': jnp.array([[1.], [2.]]), 'n': jnp.array([[1.], [5.]])}
  >>> (mean, count), grads = accumulated(loss)(jnp.float32(2.), batches)
  >>> float(mean), float(count), float(grads)
  (1.0, 6.0, 0.5)
  """

  def value_and_grad(params, batches, *args):
    _check(params, batches)

    def grads_of(batch):
      (total, count), grads = jax.value_and_grad(loss, has_aux=True)(
        params, batch, *args
      )
      return jax.tree.map(_wide, (total, count, grads))

    def body(so_far, batch):
      return jax.tree.map(jnp.add, so_far, grads_of(batch)), None

    first = jax.tree.map(lambda x: x[0], batches)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grads_of, first)
    )
    (total, count, grads), _ = lax.scan(body, zeros, batches)
    grads = jax.tree.map(
      lambda g, p: positions.mean(g, count).astype(jnp.result_type(p)),
      grads,
      params,
    )
    return (positions.mean(total, count), count), grads

  return value_and_grad


def _check(params, batches):
  for path, leaf in rules_lib.named_leaves(params):
    if array.is_compressed(leaf):
      raise ValueError(
        f'{path or "A leaf"} of the parameters is {leaf.describe()}, which has no'
        ' gradients that add up. Train plain parameters and compress them inside of'
        ' the loss, by the `apply` of a jc.fake_quantize or jc.methods.gradual; what is'
        ' frozen'
        ' goes in as another argument.'
      )
  sizes = {x.shape[:1] for x in map(jnp.asarray, jax.tree.leaves(batches))}
  if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
    raise ValueError(
      'Microbatches are arrays with one leading axis, of the same length in all, not'
      f' {jax.tree.map(jnp.shape, batches)}. Reshape a batch [n * b, ...] to'
      ' [n, b, ...].'
    )


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
