"""The gradient of a batch from its microbatches, which need less memory.

    counts = sum over k of counts_k             of each part, before the first gradient
    L      = sum over k and parts of weight * sum_k / counts
    g      = sum over k of d L_k

It is that of the whole batch, however a mask cuts it. What relates the examples of a
batch to each other (batch statistics, contrasts, mixtures) relates those of a microbatch.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import observe


def microbatches(batch: Any, n: int) -> Any:
  """A batch [b, ...] as [n, b / n, ...].

  >>> microbatches(jnp.arange(6), 2).tolist()
  [[0, 2, 4], [1, 3, 5]]
  """

  # Every n-th row: where devices hold rows side by side, each has some of all.
  def cut(x):
    x = jnp.asarray(x)
    rows = x.reshape(x.shape[0] // n, n, *x.shape[1:])
    return jnp.swapaxes(rows, 0, 1)

  return jax.tree.map(cut, batch)


def accumulated(
  gradient: Callable[..., Any],
  counts: Callable[..., Any],
  batch: Any,
  variables: Any,
  key: jax.Array,
  *,
  n: int,
  wanted: Any = (),
) -> Any:
  """As `gradient` of the whole batch.

  Args:
    gradient: `(batch, variables, key, counts) -> ((total, (means, variables, stats)),
      grads)`, where what is counted is divided by `counts`.
    counts: `(batch, variables, key) -> {part: count}`; what else it computes is left
      out by the compiler.
    batch: arrays [b, ...], with b a multiple of n.
    variables: of the model; each microbatch starts from those of the one before.
    key: each microbatch has one of its own.
    n: how many.
    wanted: the statistics of `stats`, see `observe`.
  """
  batches = microbatches(batch, n)
  keys = jax.vmap(lambda k: jax.random.fold_in(key, k + 1))(jnp.arange(n))

  def count(each):
    batch, key = each
    return counts(batch, variables, key)

  total_counts = jax.tree.map(
    lambda x: x.sum(0), lax.map(count, (batches, keys))
  )

  def body(carry, each):
    variables, so_far = carry
    batch, key = each
    (total, found), grads = gradient(batch, variables, key, total_counts)
    means, variables, stats = found
    more = jax.tree.map(_wide, (total, means, grads))
    return (variables, jax.tree.map(jnp.add, so_far, more)), stats

  first = jax.tree.map(lambda x: x[0], (batches, keys))
  (total, (means, _, _)), grads = jax.eval_shape(
    gradient, first[0], variables, first[1], total_counts
  )
  zeros = jax.tree.map(
    lambda x: _wide(jnp.zeros(x.shape, x.dtype)), (total, means, grads)
  )
  (variables, sums), stats = lax.scan(body, (variables, zeros), (batches, keys))
  total, means, grads = jax.tree.map(
    lambda x, like: x.astype(like.dtype), sums, (total, means, grads)
  )
  merged = {}
  for k in range(n if stats else 0):
    each = jax.tree.map(lambda x, k=k: x[k], stats)
    merged = observe.merge_stats(wanted, merged, each)
  return (total, (means, variables, merged)), grads


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
