"""What a model is worth on held-out examples, and how far it is from another.

loss       mean of -log p(label)                         nats
accuracy   fraction with argmax = label
agreement  fraction with argmax = argmax of the reference
kl         mean of KL(reference || model)                nats
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.core import lift
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import positions


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The numbers above; the last two are None without a reference.

  `logits` holds the model's outputs, batch by batch as they were given, to be a
  reference for others or to be compared with a reloaded program's.
  """

  loss: float
  accuracy: float
  count: int
  agreement: float | None = None
  kl: float | None = None
  logits: Sequence[jax.Array] = ()


def forward(apply: Callable) -> Callable[..., jax.Array]:
  """`(params, variables, *inputs) -> y`, jitted; leaves may be compressed.

  Make it once for each model: it compiles anew for each structure of params.
  """

  @jax.jit
  def forward_fn(*args, **kwargs):
    return lift.lift(apply)(*args, **kwargs)[0]

  return forward_fn


def evaluate(
  forward_fn: Callable[..., jax.Array],
  params: Any,
  variables: Any,
  batches: Sequence[dict[str, np.ndarray]],
  *,
  inputs: str,
  targets: str,
  reference: Sequence[jax.Array] | None = None,
) -> Evaluation:
  """Runs over padded batches once.

  Args:
    forward_fn: from `forward`.
    params, variables: of the model.
    batches: dicts with `inputs`, a tuple or dict of arguments or one of them;
      `targets` [b, ...] int; and `mask` bool, of one value for each example [b]
      or for each target [b, ...].
    inputs, targets: names in a batch.
    reference: logits for each batch, from the `logits` of another evaluation.

  Raises:
    ValueError: the masks leave no example.
  """
  # Sums of a batch are float32; those of all batches are float64.
  sums, logits = np.zeros(5), []
  for i, batch in enumerate(batches):
    y = batches_lib.call(forward_fn, (params, variables), batch[inputs])
    # Without a reference the last two sums are of the model against itself.
    other = y if reference is None else reference[i]
    sums += np.asarray(_sums(y, batch[targets], batch['mask'], other), float)
    logits.append(y)
  count, loss, accuracy, agreement, kl = sums
  if not count:
    raise ValueError(
      f'None of the examples of {len(batches)} batches counts: their masks are all'
      ' False. Give at least one example that is no padding.'
    )
  return Evaluation(
    loss=loss / count,
    accuracy=accuracy / count,
    count=int(count),
    agreement=None if reference is None else agreement / count,
    kl=None if reference is None else kl / count,
    logits=logits,
  )


@jax.jit
def _sums(y, labels, mask, reference):
  """Sums over the examples that count: [count, loss, accuracy, agreement, kl].

  Args:
    y, reference: [b, ..., classes] logits.
    labels: [b, ...] int.
    mask: [b] or [b, ...] bool.
  """
  # A mask of examples gets an axis of one for each axis of targets [b, ...].
  mask = jnp.broadcast_to(
    mask.reshape(mask.shape + (1,) * (labels.ndim - mask.ndim)), labels.shape
  )
  right, count = positions.total(
    (y.argmax(-1) == labels).astype(jnp.float32), mask
  )
  return jnp.stack(
    [
      count,
      losses.cross_entropy(y, labels, mask)[0],
      right,
      losses.agreement(y, reference, mask=mask)[0],
      losses.kl(y, reference, mask=mask)[0],
    ]
  )
