"""What a loss is computed from, and the parts that it is made of.

L = sum over parts of weight * sum / (count, averaged over replicas)
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import NamedTuple

import jax

from jaxopt_compress.distillation import losses
from jaxopt_compress.parallel import step as step_lib

# Of a model: what it answers, and intermediate values by name.
Outputs = tuple[jax.Array, Any]


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a loss is computed from.

  Attributes:
    outputs: of the student.
    batch: the part of it that this replica sees.
    teachers: outputs of each teacher, for the same inputs; without gradient.
    step: scalar int32, traced: how many steps are done.
    share: of its own example in each input, the one before it having the rest; None
      where inputs are no mixtures.
    params: plain, before any compression.
    origins, connectors: what `TrainState` says.
    axis: over which the batch is cut, see `parallel.step`; None where it is whole.
  """

  outputs: Outputs
  batch: Any
  teachers: tuple[Outputs, ...]
  step: jax.Array
  share: jax.Array | None = None
  params: Any = None
  origins: Any = None
  connectors: Any = ()
  axis: str | None = None


class Part(NamedTuple):
  """A part of a loss: `weight` times the mean of what it adds up.

  `sum` and `count` are those of this replica, of the examples that count. Each part
  has a count of its own, as not every example has a label. `weight` is the same on
  all replicas; a sum of weight 0 is finite, and so is its gradient: see
  `positions.gated`.
  """

  sum: jax.Array
  count: jax.Array
  weight: float | jax.Array = 1.0


# The parts by name; they are shown by these names while a stage is trained.
Loss = Callable[[Seen], dict[str, Part]]


def counts(
  parts: dict[str, Part], replicas: step_lib.Replicas
) -> dict[str, jax.Array]:
  """{name: count of a part, averaged over replicas}; without a gradient."""
  found = {n: p.count.astype(p.sum.dtype) for n, p in parts.items()}
  return replicas(jax.lax.stop_gradient(found))


def total(
  parts: dict[str, Part], counts: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss, and {name: sum of this replica / mean count} of its parts.

  Averaged, they are the means over all. So are their gradients, however a mask cuts
  the examples. A count has no gradient, and is averaged before that is taken.

  Args:
    parts: of this replica.
    counts: of all of them, from the function of that name.
  """
  means = {n: losses.mean(p.sum, counts[n]) for n, p in parts.items()}
  return sum(parts[n].weight * mean for n, mean in means.items()), means
