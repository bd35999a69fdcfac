"""One number for each class as answers.

loss        mean of -log p(label)                    nats
accuracy    fraction with argmax = label
top 5       fraction with the label among the five largest
perplexity  exp(loss)
bits per    loss / log 2; of a text, whose labels are bytes
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import positions
from jaxopt_compress.train.tasks import task


def right(
  answers: jax.Array, targets: jax.Array, mask: jax.Array | None = None
) -> positions.SumAndCount:
  """(how many answers are right, of how many)."""
  same = (answers.argmax(-1) == targets).astype(jnp.float32)
  return positions.total(same, mask)


def among(
  answers: jax.Array,
  targets: jax.Array,
  mask: jax.Array | None = None,
  *,
  k: int = 5,
) -> positions.SumAndCount:
  """(how many labels are among the k largest answers, of how many).

  Of equal numbers the first counts as the larger, as for `argmax`.
  """
  own = jnp.take_along_axis(answers, targets[..., None], axis=-1)
  classes = jax.lax.broadcasted_iota(
    targets.dtype, answers.shape, answers.ndim - 1
  )
  sooner = (answers == own) & (classes < targets[..., None])
  above = ((answers > own) | sooner).sum(-1)
  # Nothing is above NaN.
  found = (above < k) & (own[..., 0] == own[..., 0])
  return positions.total(found.astype(jnp.float32), mask)


def _perplexity(total, count):
  return float(np.exp(total / count))


def _bits(total, count):
  return float(total / count / np.log(2))


ACCURACY = task.Metric(right, spec='.2%')
TOP_5 = task.Metric(among, spec='.2%', beyond=5)
LOSS = task.Metric(losses.cross_entropy, False)


def _of_text(name):
  bits = task.Metric(losses.cross_entropy, False, _bits)
  return task.Task(
    loss=losses.cross_entropy,
    loss_name='cross entropy',
    metrics={
      name: bits,
      'accuracy': ACCURACY,
      'top 5': TOP_5,
      'loss': LOSS,
      'perplexity': task.Metric(losses.cross_entropy, False, _perplexity),
    },
    classes=True,
    soft='kl',
  )


classification = task.Task(
  loss=losses.cross_entropy,
  loss_name='cross entropy',
  metrics={'accuracy': ACCURACY, 'top 5': TOP_5, 'loss': LOSS},
  classes=True,
  soft='kl',
)
next_byte = _of_text('bits per byte')
masked_byte = _of_text('bits per masked byte')
