"""The loss of a stage: its labels, its teachers, and how much each counts.

    L = alpha * soft(student, teacher) + (1 - alpha) * cross entropy

Without a teacher it is the cross entropy. Each part is a mean of its own, and is told
while the stage is trained.
"""

import jax.numpy as jnp

from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import positions
from jaxopt_compress.train import options
from jaxopt_compress.train import state as state_lib


def loss_of(stage: options.Stage, data: options.Data) -> state_lib.Loss:
  """Cross entropy, or distillation where there is a teacher."""
  distil = stage.distil

  def loss(seen):
    y, _ = seen.outputs
    labels = seen.batch[data.target]
    mask = _of_targets(seen.batch.get('mask'), labels.shape)

    def hard(y):
      return losses.cross_entropy(
        y, labels, mask, label_smoothing=stage.label_smoothing
      )

    if not seen.teachers:
      return {'hard': state_lib.Part(*hard(y))}
    [(teacher_y, _)] = seen.teachers

    def soft(y, teacher_y):
      return losses.kl(y, teacher_y, temperature=distil.temperature, mask=mask)

    return part('hard', 1 - distil.alpha, hard, y) | part(
      'soft', distil.alpha, soft, y, teacher_y
    )

  return loss


def part(name, weight, f, *inputs) -> dict[str, state_lib.Part]:
  """{name: the part `weight * f(*inputs)`}; {} where it surely counts for nothing.

  Args:
    name: of the part.
    weight: a number, or a traced scalar, which may become 0.
    f: `(*inputs) -> (sum, count)`.
    *inputs: trees of what derivatives are taken of; `f` closes over no such thing.
  """
  if isinstance(weight, (int, float)) and not weight:
    return {}
  total, count = positions.gated(weight, f, *inputs)
  return {name: state_lib.Part(total, count, weight)}


def _of_targets(mask, shape):
  """A mask of examples gets an axis of one for each axis of targets [b, ...]."""
  if mask is None:
    return None
  mask = mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))
  return jnp.broadcast_to(mask, shape)
