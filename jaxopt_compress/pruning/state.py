"""What a method of pruning remembers, and what it does with masked weights.

    rest 'kept'      a masked weight does not move, and comes back as it was
    rest 'zero'      a masked weight is 0, and comes back as 0
    rest 'trained'   a masked weight goes on learning, from the gradient of its zero

One record serves all methods, so `optimizer` finds masks wherever a state lies: in a
chain of compressions, or in the state of an optimizer.
"""

import dataclasses
from typing import Any

import jax

from jaxopt_compress.core import compression
from jaxopt_compress.core import rules as rules_lib


def _static(default):
  return dataclasses.field(default=default, metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """What pruning remembers.

  Attributes:
    step: scalar int32, the step of the last `update`.
    masks: `{path: bool mask}` of the pruned leaves, shaped and sharded as they are.
    scores: `{path: Learned(score of each weight)}` where scores are learned.
    sums: `{path: scores of all steps so far}` where those are remembered.
    skip: scalar bool, whether the next step changes the masks *instead of* the
      weights; None for methods that do both in one step.
    rest: what masked weights do: 'kept', 'zero' or 'trained'.
    gradient: of the leaves of `apply`: 'masked', or 'dense', as of zeros that could
      be anything.
    pull: what is added to the gradient of masked weights, in parts of the weight.
    penalty: the weight of the mean of sigmoid(score) in the loss.
  """

  step: jax.Array
  masks: dict[str, jax.Array]
  scores: dict[str, compression.Learned] = dataclasses.field(
    default_factory=dict
  )
  sums: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  skip: jax.Array | None = None
  rest: str = _static('kept')
  gradient: str = _static('masked')
  pull: float = _static(0.0)
  penalty: float = _static(0.0)


def is_state(x: Any) -> bool:
  return isinstance(x, State)


def states(tree: Any) -> list[State]:
  """The states of pruning methods in a tree, in its order."""
  found = jax.tree.leaves(tree, is_leaf=is_state)
  return [x for x in found if is_state(x)]


def named_states(tree: Any) -> list[tuple[str, State]]:
  """The states in a tree, with the beginning of the paths of their leaves."""
  named = rules_lib.named_leaves(tree, is_leaf=is_state)
  found = [(path, x) for path, x in named if is_state(x)]
  return [(f'{path}/' if path else '', x) for path, x in found]
