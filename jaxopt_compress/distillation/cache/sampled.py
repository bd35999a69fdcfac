"""Entries drawn from a teacher's answer: unbiased, where the top k are not.

    u_j ~ [j - 1, j) / n      i_j = where p_1 + .. + p_i passes u_j
    p^ = counts / n           E[p^] = p

A loss that is linear in the target, as -sum p^ log q is, then has the expected value
and gradient of the whole distribution, tail included. The k likeliest of p have not: a
student matches their mass, and learns nothing of what is inside the tail.

One draw from each n-th part of the distribution, rather than n from all of it, is as
unbiased: a class of mass p is drawn n p times, give or take what it has of the parts at
its two ends. Anshumann et al. 2025, https://arxiv.org/abs/2503.16870, section 4, draw
from p^t, independently; this is t = 1, where each draw has weight 1 / n, so that counts
are all there is to keep.
"""

import functools

import jax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions


def sample(
  logits: jax.Array, k: int, *, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """k draws from softmax(logits), as `losses.tail.topk_kl` takes them.

  Args:
    logits: [..., classes], of the temperature wanted.
    k: how many draws.
    key: of a PRNG, consumed.

  Returns:
    ids: int32 [..., k], ascending. The first of equal ids has their count; the
      others have a log-probability of -inf and mean nothing.
    log_probs: float32 [..., k], log of counts / k.
    log_tail: float32 [...], -inf: there is none.

  >>> ids, log_probs, _ = sample(jnp.array([0., -jnp.inf]), 3, key=jax.random.key(0))
  >>> ids.tolist(), log_probs.tolist()
  ([0, 0, 0], [0.0, -inf, -inf])
  """
  logits = jnp.asarray(logits)
  if k < 1 or not logits.ndim:
    raise ValueError(
      f'{k} draws from logits {logits.shape}; at least 1 and [..., classes] are'
      ' expected.'
    )
  wide = positions.prepared(logits, None)
  mass = jnp.cumsum(jax.nn.softmax(wide), axis=-1)
  # Not the last sum itself, which no class that has mass would end above.
  most = jnp.nextafter(mass[..., -1:], 0.0)
  u = jax.random.uniform(key, (*wide.shape[:-1], k), wide.dtype)
  part = jnp.expand_dims(jnp.arange(k, dtype=u.dtype), range(u.ndim - 1))
  u = jnp.minimum((part + u) / k * most, most)
  find = functools.partial(jnp.searchsorted, side='right')
  for _ in wide.shape[:-1]:
    find = jax.vmap(find)
  ids = find(mass, u).astype(jnp.int32)
  counts = (ids[..., :, None] == ids[..., None, :]).sum(-1)
  again = ids == jnp.roll(ids, 1, axis=-1)
  first = ~again.at[..., 0].set(False)
  share = jnp.where(first, counts, 0) / jnp.float32(k)
  # NaN would be drawn as some class, which nobody would notice.
  bad = jnp.isnan(wide).any(-1, keepdims=True)
  log_probs = jnp.where(bad, jnp.nan, jnp.log(share))
  return ids, log_probs, jnp.full(ids.shape[:-1], -jnp.inf)
