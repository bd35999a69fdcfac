"""What a model is worth on held-out examples, and how far it is from another.

loss       mean of -log p(label)                         nats
accuracy   fraction with argmax = label
top 5      fraction with the label among the five largest; of more than five classes
agreement  fraction with argmax = argmax of the reference
kl         mean of KL(reference || model)                nats

Answers to the same batches can be compared again, with those of another model.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.core import lift
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import positions
from jaxopt_compress.report import calibration


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The numbers above; agreement and kl are None without a reference.

  `logits` holds the model's outputs, batch by batch as they were given, to be a
  reference for others or to be compared with a reloaded program's.
  """

  loss: float
  accuracy: float
  count: int
  agreement: float | None = None
  kl: float | None = None
  logits: Sequence[jax.Array] = ()
  reliability: np.ndarray | None = None  # see `report.calibration`
  top_5: float | None = None


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """How close answers are to those of another model.

  Attributes:
    agreement: `{k: how often the other's first choice is among the first k}`.
    kl: mean KL(other || model) at temperature 1, in nats.
  """

  agreement: Mapping[int, float]
  kl: float


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
  sums, logits = np.zeros(6), []
  reliability = np.zeros((3, calibration.BINS))
  for i, batch in enumerate(batches):
    y = batches_lib.call(forward_fn, (params, variables), batch[inputs])
    # Without a reference the last two sums are of the model against itself.
    other = y if reference is None else reference[i]
    found, bins = _sums(y, batch[targets], batch['mask'], other)
    sums += np.asarray(found, float)
    reliability += np.asarray(bins, float)
    logits.append(y)
  count, loss, accuracy, agreement, kl, top_5 = sums
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
    reliability=reliability,
    top_5=top_5 / count if logits[0].shape[-1] > 5 else None,
  )


def fidelity(
  answers: Sequence[jax.Array],
  others: Sequence[jax.Array],
  batches: Sequence[dict[str, np.ndarray]],
  *,
  targets: str,
) -> Fidelity:
  """How close answers are to others, over padded batches.

  Args:
    answers, others: logits for each batch, from the `logits` of evaluations.
    batches, targets: as for `evaluate`.
  """
  ks = top_ks(answers[0].shape[-1])
  sums = sum(
    np.asarray(_fidelity(y, other, batch[targets], batch['mask'], ks), float)
    for y, other, batch in zip(answers, others, batches, strict=True)
  )
  count, kl, *agreement = sums
  return Fidelity(
    {k: same / count for k, same in zip(ks, agreement, strict=True)}, kl / count
  )


def top_ks(classes: int) -> tuple[int, ...]:
  """The k of agreement: 1, and 5 or so many that it can fail."""
  return tuple(dict.fromkeys((1, max(min(5, classes - 1), 1))))


@functools.partial(jax.jit, static_argnums=4)
def _fidelity(y, other, labels, mask, ks):
  mask = _of_targets(mask, labels.shape)
  kl, count = losses.kl(y, other, mask=mask)
  same = [losses.agreement(y, other, k=k, mask=mask)[0] for k in ks]
  return jnp.stack([count, kl, *same])


@jax.jit
def _sums(y, labels, mask, reference):
  """Sums over the examples that count: [count, loss, accuracy, agreement, kl, top 5].

  And those by confidence.

  Args:
    y, reference: [b, ..., classes] logits.
    labels: [b, ...] int.
    mask: [b] or [b, ...] bool.
  """
  mask = _of_targets(mask, labels.shape)
  right, count = positions.total(
    (y.argmax(-1) == labels).astype(jnp.float32), mask
  )
  # By how many are above the label: of equal ones, argmax takes the first.
  own = jnp.take_along_axis(y, labels[..., None], axis=-1)
  classes = jax.lax.broadcasted_iota(labels.dtype, y.shape, y.ndim - 1)
  sooner = classes < labels[..., None]
  above = ((y > own) | ((y == own) & sooner)).sum(-1)
  first = (above < 5) & (own[..., 0] == own[..., 0])  # Nothing is above NaN.
  among, _ = positions.total(first.astype(jnp.float32), mask)
  sums = [
    count,
    losses.cross_entropy(y, labels, mask)[0],
    right,
    losses.agreement(y, reference, mask=mask)[0],
    losses.kl(y, reference, mask=mask)[0],
    among,
  ]
  return jnp.stack(sums), calibration.reliability(y, labels, mask)


def _of_targets(mask, shape):
  """A mask of examples gets an axis of one for each axis of targets [b, ...]."""
  mask = mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))
  return jnp.broadcast_to(mask, shape)
