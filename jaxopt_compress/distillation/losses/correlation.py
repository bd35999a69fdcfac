"""DIST: the teacher's relations, rather than its probabilities.

    p = softmax(teacher / T)      q = softmax(student / T)      d = 1 - Pearson's r

    dist   T^2 (beta mean_i d(q_i, p_i) + gamma mean_c d(q_:c, p_:c))

The first term compares, within each position, the classes; the second, within each
class, the positions of the batch.
"""

from functools import partial

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import pearson
from jaxopt_compress.distillation.losses import softened

SumAndCount = positions.SumAndCount


def dist(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  beta: float | jax.Array = 1.0,
  gamma: float | jax.Array = 1.0,
  temperature: float | jax.Array = 1.0,
  mask: jax.Array | None = None,
  axis_name: str | None = None,
) -> SumAndCount:
  """beta (inter-class) + gamma (intra-class) distances of correlation.

  Huang et al. 2022, https://arxiv.org/abs/2205.10536, eq. 5 to 8, with the T^2 of
  the authors' code. As d is blind to scale, T^2 makes the gradient larger with T.
  A class or a position whose probabilities do not vary has d = 0 if they do so on
  neither side, else 1.

  The second term belongs to a batch, not to a position. It is weighted by the mask
  and enters the sum once for each position that counts, so that

      sum / count = T^2 (beta mean_i d_i + gamma mean_c d_c)

  and padding changes nothing. Under `jit` the batch is all of it, on however many
  devices. Under `shard_map` and `pmap`, name the axis over which the batch is split:
  its moments are then summed over the devices, and summed sums and counts are those
  of one device (with `check_vma=False` gradients, too, are summed). Without a name, or
  over microbatches, the second term is the mean of those of the parts: another loss,
  of fewer examples each.

  Args:
    student_logits, teacher_logits: [..., classes]; all leading axes are the batch.
    beta, gamma: weights of the two terms; may be traced.
    temperature, mask: as for `kl`.
    axis_name: the axis, inside a mapped function, over which the batch is split.

  Returns:
    (sum, count), float32 scalars.

  Raises:
    ValueError: as `kl`.

  >>> x = jnp.array([[0., 1., 3.], [2., 0., 1.]])
  >>> abs(round(float(dist(x, x)[0]), 4))
  0.0
  """
  softened.check_pair(student_logits, teacher_logits, temperature, mask)
  log_q, log_p = (
    softened.log_softmax(x, temperature, mask)
    for x in (student_logits, teacher_logits)
  )
  q, p = jnp.exp(log_q), jnp.exp(log_p)
  inter = pearson.distance(q, p, jnp.ones_like(q), axis=-1)
  inter_sum, count = positions.total(inter, mask)

  # One axis of positions, so that the moments of a class are sums over it.
  weights = jnp.ones(q.shape[:-1], q.dtype) if mask is None else mask
  weights = lax.stop_gradient(weights.astype(q.dtype)).reshape(-1, 1)
  intra = pearson.distance(
    _over_the_largest(log_q, weights, axis_name),
    _over_the_largest(log_p, weights, axis_name),
    weights,
    axis=0,
    total=partial(lax.psum, axis_name=axis_name) if axis_name else None,
  )
  intra_sum = count * jnp.mean(intra)
  loss = beta * inter_sum + gamma * intra_sum
  return softened.tempered(loss, temperature), count


def _over_the_largest(log_p, weights, axis_name):
  """p [positions, classes], each class over its largest of all positions.

  Correlation does not see the factor, and below 1e-19 p has no square in float32.
  """
  log_p = log_p.reshape(-1, log_p.shape[-1])
  # Of weight 0, a probability could be inf on this scale.
  log_p = jnp.where(weights != 0, log_p, -jnp.inf)
  top = lax.stop_gradient(jnp.max(log_p, axis=0, keepdims=True))
  if axis_name:
    top = lax.pmax(top, axis_name)
  # What has no p in float32 stays 0, such as a class that is masked by -1e4.
  return jnp.exp(log_p - jnp.maximum(top, jnp.log(jnp.finfo(top.dtype).tiny)))
