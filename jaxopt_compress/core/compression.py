"""The clock: what happens to parameters while they are trained.

    state  = comp.init(params)
    cparams = comp.apply(params, state)     # some leaves compressed, differentiable
    state  = comp.update(state, params, Info(step, grads))   # after each step

optax's shape, one level up. The parameters themselves stay plain; masks, ranges
and counters live in `state`. What is *learned* beside the weights (step sizes,
gates) is wrapped in `Learned` inside the state; `split_learned` takes it out as
a pytree of its own, which gets gradients and an optimizer, and `merge_learned`
puts it back.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import jax

from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib

Params = Any
State = Any


class Info(NamedTuple):
  """What an update may look at.

  Attributes:
    step: how many optimizer steps are done.
    grads: of the parameters.
    statistics: {path: what `jc.observe` saw in this step}, of what `observes`
      asks for.
  """

  step: jax.Array | int
  grads: Params | None = None
  statistics: Any = None


def _observes_nothing(params):
  return {}


class Compression(NamedTuple):
  """A pure description of how parameters are compressed while they train.

  `observes` says of which leaves `update` wants to know what they met, and which
  statistic of it: {regex: Statistic}. A step that gets some observes as it computes:

      wanted = comp.observes(params)
      y, stats = jc.observe(apply, wanted)(comp.apply(params, state), x)
      ...
      state = comp.update(state, params, jc.Info(step, grads, stats))
  """

  init: Callable[[Params], State]
  apply: Callable[[Params, State], Params]
  update: Callable[[State, Params, Info], State]
  observes: Callable[[Params], dict[str, Any]] = _observes_nothing


def chain(*compressions: Compression) -> Compression:
  """Applies compressions in order; leaves nest: FakeQuant(Masked(w)).

  Every `update` sees the plain parameters. Of none, parameters stay as they are.
  """

  def apply(params, states):
    for c, state in zip(compressions, states, strict=True):
      params = c.apply(params, state)
    return params

  def update(states, params, info):
    return tuple(
      c.update(state, params, info)
      for c, state in zip(compressions, states, strict=True)
    )

  return Compression(
    init=lambda params: tuple(c.init(params) for c in compressions),
    apply=apply,
    update=update,
    observes=lambda params: _once([c.observes(params) for c in compressions]),
  )


def _once(wanted):
  """All that is wanted, where no two want something of the same leaf."""
  found = {}
  for statistics in wanted:
    if both := found.keys() & statistics.keys():
      raise ValueError(
        f'Two compressions want statistics of {min(both)}, and a leaf is observed'
        ' once. Let one of them leave it alone.'
      )
    found |= statistics
  return found


def by_path(rules: Sequence[tuple[str, Compression | None]]) -> Compression:
  """Gives each leaf the compression of the first rule that matches its path.

  A compression sees its share of the tree as `{path: leaf}`, so that its own
  rules, if it has any, match the same paths. `None` leaves leaves alone.
  """
  rules = rules_lib.pairs(rules)

  def shares(tree):
    """(name of its state, compression, its leaves) of each rule that has one."""
    leaves = rules_lib.split(rules, tree)
    parts = enumerate(zip(rules, leaves, strict=True))
    return [(str(i), c, mine) for i, ((_, c), mine) in parts if c is not None]

  def init(params):
    return {name: c.init(leaves) for name, c, leaves in shares(params)}

  def apply(params, state):
    changed = {}
    for name, c, leaves in shares(params):
      changed |= c.apply(leaves, state[name])
    return rules_lib.map_named(lambda path, x: changed.get(path, x), params)

  def update(state, params, info):
    # Gradients have the structure of the parameters, so the rules split them alike.
    grads = {} if info.grads is None else shares(info.grads)
    grads = {name: mine for name, _, mine in grads}
    return {
      name: c.update(state[name], leaves, info._replace(grads=grads.get(name)))
      for name, c, leaves in shares(params)
    }

  def observes(params):
    return _once([c.observes(leaves) for _, c, leaves in shares(params)])

  return Compression(init, apply, update, observes)


def freeze(tree: Params) -> Params:
  """Turns training leaves into storage leaves: FakeQuant(w) -> QArray."""
  return array.map_leaves(lambda leaf: leaf.freeze(), tree)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Learned:
  """Marks what is learned beside the weights, inside a compression's state."""

  value: Any


def _is_learned(x):
  return isinstance(x, Learned)


def split_learned(state: State) -> tuple[Any, State]:
  """Splits a state into (what is learned, the rest).

  The first is a `{path: value}` dict; the second has `Learned(None)` in its
  place.
  """
  named = rules_lib.named_leaves(state, is_leaf=_is_learned)
  learned = {path: x.value for path, x in named if _is_learned(x)}
  return learned, merge_learned(dict.fromkeys(learned), state)


def merge_learned(learned: Any, rest: State) -> State:
  """The inverse of `split_learned`."""
  return rules_lib.map_named(
    lambda path, x: Learned(learned[path]) if _is_learned(x) else x,
    rest,
    is_leaf=_is_learned,
  )
