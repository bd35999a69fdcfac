"""What makes a layer give what it gets: which of its parameters, as what.

    x + f(x) W + b         W and b zero
    relu(x W + b)          W the identity and b zero, if x is positive already, as it is
                           behind another such layer

Such a layer may be added to a network, behind one of its kind. The parameters are found
in the program of the layer: of all sets that do it, the one that its operations meet
last. So the rest of a branch that is added to a stream may have any value, and the
gradient of the last weight is not zero.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator

import jax.numpy as jnp

from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.layers import cuts as cuts_lib
from jaxopt_compress.analysis.layers import flat as flat_lib
from jaxopt_compress.analysis.structure import numbers as structure_numbers
from jaxopt_compress.analysis.structure import tied

ZEROS, IDENTITY = 'zeros', 'identity'

# What gives its one operand, of another type perhaps.
_COPIES = ('copy', 'stop_gradient', 'optimization_barrier', 'name')


def settings(
  program: cuts_lib.Program, begin: int, end: int, mine: Collection[int]
) -> dict[str, str]:
  """{path: 'zeros' or 'identity'} with which a layer gives what it gets.

  Args:
    program: that the layer is in.
    begin, end: what it gets and gives.
    mine: its parameters, by number.

  Returns:
    Nothing where no such parameters do it.
  """
  if not passes(program, begin, end, mine):
    return _plain(program, begin, end, mine)
  zero = set(mine)
  # What is met first is the first to keep its value.
  for x in _in_order(program, begin, end, mine):
    if passes(program, begin, end, zero - {x}):
      zero.remove(x)
  return {program.path[x]: ZEROS for x in mine if x in zero}


def passes(
  program: cuts_lib.Program, begin: int, end: int, zero: Collection[int]
) -> bool:
  """Whether a layer gives what it gets where some parameters are zero."""
  asked = tied.Tied(structure_numbers.RULES)
  known, same = {}, {begin}

  def read(x):
    if not isinstance(x, int):
      return asked.constant(x.val)
    if x not in known:
      if x in program.flat.constants:
        known[x] = asked.constant(program.flat.constants[x])
      else:
        known[x] = asked.plain(program.flat.types[x])._replace(
          zeros=tied.everywhere if x in zero else tied.nowhere
        )
    return known[x]

  for step in steps(program, begin, end):
    values = [read(x) for x in step.inputs]
    outs = asked.apply(step.at, values)
    known.update(zip(step.outputs, outs, strict=True))
    if _passes_on(program, step, values, same, begin):
      same.add(step.outputs[0])
  return end in same


def steps(
  program: cuts_lib.Program, begin: int, end: int
) -> list[flat_lib.Step]:
  """The steps that lead from one value to another, and what they need."""
  needed, found = {end}, []
  for step in reversed(program.flat.steps):
    if needed.intersection(step.outputs):
      found.append(step)
      needed.update(x for x in step.inputs if x != begin and isinstance(x, int))
  return found[::-1]


def of_loops(
  program: cuts_lib.Program, names: Iterable[str], structure
) -> Iterator[tuple[str, dict[str, str]]]:
  """(group, settings of its layers) of loops over stacked parameters.

  Args:
    program: a whole one.
    names: of the groups of loops.
    structure: that has them.
  """
  left = list(names)
  for step in program.flat.steps:
    inside = walk.enter(step.eqn)
    if not isinstance(inside, walk.Scan):
      continue
    n, whole = inside.num_consts, inside.num_consts + inside.num_carry
    made = flat_lib.flatten(inside.body)
    paths = {}
    for outer, inner in zip(step.inputs[whole:], made.inputs[whole:]):
      path = program.leaves.get(outer, ()) if isinstance(outer, int) else ()
      if len(path) == 1:
        paths[inner] = next(iter(path))
    for name in left:
      size = structure.groups[name].size
      # The layer is the first axis of what the loop goes along.
      stacked = {p for p, _ in structure.members(name)}
      if size != inside.times or stacked.isdisjoint(paths.values()):
        continue
      left.remove(name)
      streams = carried(inside)
      if len(streams) == 1:
        (k,) = streams
        body = cuts_lib.Program(made, paths)
        begin, end = made.inputs[n + k], made.outputs[k]
        yield name, settings(body, begin, end, tuple(paths))
      break


def carried(inside: walk.Scan) -> list[int]:
  """Which of the values that a loop carries go through its layers."""
  made = flat_lib.flatten(inside.body)
  found = []
  for k in range(inside.num_carry):
    x = made.inputs[inside.num_consts + k]
    y, kind = made.outputs[k], made.types[x]
    if y != x and kind.size > 1 and jnp.issubdtype(kind.dtype, jnp.floating):
      found.append(k)
  return found


def _in_order(program, begin, end, mine) -> list[int]:
  """Parameters in the order in which they meet data, biases before weights."""
  inside = steps(program, begin, end)
  pure, met = {x: {x} for x in mine}, {}
  for i, step in enumerate(inside):
    values = [x for x in step.inputs if isinstance(x, int)]
    here = set().union(*(pure.get(x, ()) for x in values))
    if all(x in pure or x in program.pure for x in values):
      pure.update((x, here) for x in step.outputs)
    else:
      for x in here:
        met.setdefault(x, i)
  return sorted(mine, key=lambda x: met.get(x, -1))


def _passes_on(program, step, values, same, begin) -> bool:
  """Whether a step gives the value that the layer got."""
  name, types = step.eqn.primitive.name, program.flat.types
  here = [isinstance(x, int) and x in same for x in step.inputs]
  if not any(here):
    return False
  if types[step.outputs[0]].shape != types[next(iter(same))].shape:
    return False
  rest = [v for v, mine in zip(values, here, strict=True) if not mine]
  zero = all(v.zeros is tied.everywhere for v in rest)
  if name in ('add', 'add_any'):
    return len(rest) == 1 and zero
  if name == 'sub':
    return here[0] and zero
  if name == 'max':
    # What is positive already: it came out of another maximum with zero.
    return zero and _is_positive(program, begin)
  return name in _COPIES


def _is_positive(program, x) -> bool:
  step, _ = program.made_by.get(x, (None, 0))
  return (
    step is not None
    and step.eqn.primitive.name == 'max'
    and any(not isinstance(v, int) and not v.val for v in step.inputs)
  )


def _plain(program, begin, end, mine) -> dict[str, str]:
  """Settings of relu(x W + b), of a matrix or a convolution; {} of anything else.

  Chen et al. 2016, https://arxiv.org/abs/1511.05641, section 2.4 (Net2DeeperNet).
  """
  found, x, own = {}, end, {program.path[x] for x in mine}
  while x != begin:
    step, _ = program.made_by.get(x, (None, 0))
    data = program.activations(step) if step else []
    if len(data) != 1:
      return {}
    weights = [
      y for y in step.inputs if isinstance(y, int) and y in program.pure
    ]
    paths = set().union(*(program.leaves.get(y, ()) for y in weights))
    name = step.eqn.primitive.name
    if name == 'max':
      floor = [y.val for y in step.inputs if not isinstance(y, int)]
      if floor != [0] or not _is_positive(program, begin):
        return {}
    elif name == 'add' and len(paths) == 1 and paths <= own:
      found[paths.pop()] = ZEROS
    elif name in ('dot_general', 'conv_general_dilated'):
      if (
        len(paths) != 1
        or not paths <= own
        or not _can_be_one(program, step, data[0])
      ):
        return {}
      found[paths.pop()] = IDENTITY
    elif name not in _COPIES:
      return {}
    (x,) = data
  return found if IDENTITY in found.values() else {}


def _can_be_one(program, step, x) -> bool:
  """Whether a product gives x of the weight that `identity` makes."""
  types, params = program.flat.types, step.eqn.params
  y, (w,) = step.outputs[0], [v for v in step.inputs if v != x]
  if types[x].shape != types[y].shape or not isinstance(w, int):
    return False
  if step.eqn.primitive.name == 'dot_general':
    (left, right), (b, _) = params['dimension_numbers']
    axes = left if step.inputs[0] == x else right
    return types[w].ndim == 2 and not b and tuple(axes) == (types[x].ndim - 1,)
  ndim, spec = types[w].ndim, params['dimension_numbers'].rhs_spec
  window = [types[w].shape[i] for i in range(ndim - 2)]
  return (
    # Windows first, then inputs and outputs, as Flax keeps kernels.
    tuple(spec) == (ndim - 1, ndim - 2, *range(ndim - 2))
    and params['feature_group_count'] == params['batch_group_count'] == 1
    and {*params['window_strides'], *params['lhs_dilation']} == {1}
    and all(
      pad == ((k - 1) // 2 * d, (k - 1) // 2 * d) and k % 2
      for k, d, pad in zip(window, params['rhs_dilation'], params['padding'])
    )
  )
