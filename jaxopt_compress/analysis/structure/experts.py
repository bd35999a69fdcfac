"""Where a program has experts: what chooses them, and where their results meet.

    p = softmax(x R)                    the router: a product that has a column for each
    y = sum_e gate_e(p) f_e(x)          however the program computes it

Experts are a group of channels of which the program takes some (`top_k`). Scaling all
that an expert does last by s_e gives y = sum_e s_e gate_e f_e(x), so what each expert
adds to y is a derivative: with every expert computed for every token, with a place for
so many tokens each, or with rows sorted by expert. No such form is known here.
"""

from typing import Any
from typing import NamedTuple

from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.layers import cuts as cuts_lib
from jaxopt_compress.analysis.layers import flat as flat_lib
from jaxopt_compress.analysis.structure import structure as structure_lib

# What is linear in each operand that depends on it, if the others do not; of some,
# only in the operand at this place.
_LINEAR = {
  name: None
  for name in (
    'add sub add_any neg convert_element_type reshape transpose squeeze'
    ' expand_dims broadcast_in_dim reduce_sum cumsum copy slice concatenate rev'
    ' split sharding_constraint optimization_barrier name mul dot_general'
  ).split()
} | {
  'div': 0,
  'gather': 0,
  'dynamic_slice': 0,
  'pad': 0,
  'select_n': (1, 2),
  'scatter-add': (0, 2),
  'ragged_dot_general': (0, 1),
}
_PRODUCTS = ('mul', 'dot_general', 'ragged_dot_general')


class Site(NamedTuple):
  """One router with its experts, in values of a flat program.

  Attributes:
    last: {input: axis}: the weights that experts apply last, and their experts.
    result: the sum over experts, [..., features].
    logits: what the router gives, [..., experts].
    chosen: the numbers of the experts that it chooses, or None where no operation
      says them.
    biases: the parameters [experts] that are added to what it chooses by.
  """

  last: dict[int, int]
  result: int
  logits: int
  chosen: int | None
  biases: tuple[int, ...]


def groups(structure: structure_lib.Structure) -> list[str]:
  """The groups of experts: the program chooses among them."""
  return [
    name
    for name, group in structure.free.items()
    if any('chooses others' in why for why in group.inexact)
    and any(len(structure.shapes[p]) > 2 for p, _ in structure.members(name))
  ]


def site(
  program: cuts_lib.Program, structure: structure_lib.Structure, name: str
) -> Site | None:
  """Where the experts of a group are in a program; None if they are not.

  Raises:
    ValueError: they are, and no product is their router, or no value their sum.
  """
  axes = dict(structure.members(name))
  inputs = [x for x, path in program.path.items() if path in axes]
  uses = {x: _uses(program, x) for x in inputs}
  weights = [x for x in inputs if program.flat.types[x].ndim > 2 and uses[x]]
  # What a loop goes through is used inside of it.
  if not any(walk.enter(uses[x][0].eqn) is None for x in weights):
    return None
  routers = [
    x
    for x in inputs
    if program.flat.types[x].ndim == 2
    and uses[x]
    and uses[x][0].eqn.primitive.name == 'dot_general'
  ]
  if len(routers) != 1:
    raise ValueError(
      f'{name}: {[program.path[x] for x in routers]} multiply what is routed; one'
      ' router is expected.'
    )
  (router,) = routers
  experts = [
    x for x in inputs if x != router and program.flat.types[x].ndim > 1
  ]
  after = {x: _after(program, uses[x]) for x in experts}
  last = {
    x: axes[program.path[x]]
    for x in experts
    if not any(_reads(step, after[x]) for y in experts for step in uses[y])
  }
  (x,) = program.activations(uses[router][0])
  result = _last_linear(program, set(last), program.flat.types[x].shape)
  shape = program.flat.types[uses[router][0].outputs[0]].shape
  logits = _last_linear(program, {router}, shape)
  if result is None or logits is None:
    raise ValueError(
      f'{name}: no value has the shape {list(program.flat.types[x].shape)} of what is'
      ' routed and is a sum over the experts.'
    )
  biases = tuple(
    x
    for x in inputs
    if program.flat.types[x].size == shape[-1]
    and uses[x]
    and all(step.eqn.primitive.name == 'add' for step in uses[x])
  )
  chosen = _chosen(program, uses[router], result)
  return Site(last, result, logits, chosen, biases)


def depends(
  program: cuts_lib.Program, starts: set[int], end: int
) -> tuple[list[Any], set[int]]:
  """(steps that lead from some values to another one, what else these read)."""
  reached, steps, others = set(starts), [], set()
  for step in flat_lib.live(program.flat, [end]):
    values = {x for x in step.inputs if isinstance(x, int)}
    if values & reached:
      reached.update(step.outputs)
      steps.append(step)
      others |= values
  return steps, others - reached


def _chosen(program, uses, result) -> int | None:
  """What the last choice among all experts gives, before their results meet."""
  after, found = _after(program, uses), None
  n = program.flat.types[uses[0].outputs[0]].shape[-1]
  for step in flat_lib.live(program.flat, [result]):
    if step.eqn.primitive.name in ('top_k', 'argmax'):
      (x,) = step.inputs
      if x in after and program.flat.types[x].shape[-1] == n:
        found = step.outputs[-1]
  return found


def _reads(step, values) -> bool:
  """Whether a step multiplies one of some values; a bias is no next weight."""
  added = step.eqn.primitive.name in ('add', 'add_any')
  return not added and any(
    isinstance(x, int) and x in values for x in step.inputs
  )


def _uses(program, x) -> list:
  """The steps in which a parameter, or what is made of it, meets data."""
  mine = {x}
  found = []
  for step in program.flat.steps:
    if mine.intersection(v for v in step.inputs if isinstance(v, int)):
      if program.activations(step):
        found.append(step)
      else:
        mine.update(step.outputs)
  return found


def _after(program, steps) -> set[int]:
  """What is computed from the results of some steps."""
  found = {x for step in steps for x in step.outputs}
  for step in program.flat.steps:
    if found.intersection(v for v in step.inputs if isinstance(v, int)):
      found.update(step.outputs)
  return found


def _last_linear(program, starts, shape) -> int | None:
  """The last value of a shape that is linear in others."""
  linear, mixed, found = set(starts), set(), None
  for step in program.flat.steps:
    values = [x if isinstance(x, int) else None for x in step.inputs]
    mine = [i for i, x in enumerate(values) if x in linear]
    if any(x in mixed for x in values) or (
      mine and not _is_linear(program, step, values, mine)
    ):
      mixed.update(step.outputs)
    elif mine:
      linear.update(step.outputs)
      for x in step.outputs:
        if program.flat.types[x].shape == shape and x not in program.pure:
          found = x
  return found


def _is_linear(program, step, values, mine) -> bool:
  name = step.eqn.primitive.name
  if name not in _LINEAR:
    return False
  places = _LINEAR[name]
  places = (places,) if isinstance(places, int) else places
  if places is not None and not set(mine) <= set(places):
    return False
  if name not in _PRODUCTS:
    return True
  if all(values[i] in program.pure for i in mine):  # the experts' own weights
    return True
  # What meets another parameter is in the next layer.
  others = [x for i, x in enumerate(values) if i not in mine and x is not None]
  weights = any(x in program.pure and program.leaves.get(x) for x in others)
  return len(mine) == 1 and not weights
