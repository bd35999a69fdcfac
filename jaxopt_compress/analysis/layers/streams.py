"""What each layer gets and gives, while a program runs.

    x_in -> layer -> x_out        measure(x_in, x_out), for every layer

Layers are those of a `structure`: siblings with names of their own, and the turns of a
loop over stacked parameters. Of a loop, what is carried from turn to turn is the value.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.layers import cuts as cuts_lib
from jaxopt_compress.analysis.layers import flat as flat_lib
from jaxopt_compress.analysis.layers import layers as layers_lib
from jaxopt_compress.analysis.layers import passing
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.analysis.structure import tied
from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs

# measure(group, x_in, x_out) -> array; x_out may be replaced: see `at_layers`.
Measure = Callable[[str, jax.Array, jax.Array], Any]


def groups(structure: structure_lib.Structure) -> list[str]:
  """The groups of layers: those with names, and those of loops."""
  loops = [
    name
    for name, group in structure.free.items()
    if tied.LOOP in group.inexact and name not in structure.layers
  ]
  named = [n for n in structure.layers if not structure.groups[n].locked]
  return [*named, *loops]


def at_layers(
  structure: structure_lib.Structure,
  fun: Callable,
  measure: Measure | None = None,
  skip: dict[str, jax.Array] | None = None,
) -> Callable:
  """A function that measures what each layer of `fun(params, ...)` does.

  Args:
    structure: of `fun`, or of another function of the same parameters.
    fun: a function of parameters and further arguments.
    measure: a function of what a layer gets and gives.
    skip: {group: bool [layers]}: the layers that pass on what they get.

  Returns:
    A function of the same arguments that returns (leaves of the result of `fun`,
    {group: measures, stacked along the layers}).

  Raises:
    ValueError: `fun` has other layers, or more than one value goes from layer to
      layer in a loop.
  """
  skip = skip or {}

  def measured(params, *args, **kwargs):
    closed, leaves = walk.trace(fun, params, args, kwargs)
    values = _arrays((params, args, kwargs))
    paths = [path for path, _ in leaves]
    program = cuts_lib.Program(flat_lib.flatten(closed), paths)
    found, by = {}, {}
    kinds = layers_lib.found(closed, paths)
    _by_name(structure, program, kinds, measure, skip, found, by)
    _in_loops(structure, program, measure, skip, found, by)
    missing = [name for name in groups(structure) if name not in found]
    if missing:
      raise ValueError(
        f'The function has no layers {missing}: it does not call them one after the'
        ' other, or the structure is that of another one.'
      )
    outs = flat_lib.run(program.flat, values, program.flat.outputs, by=by)
    if measure is None:
      return outs, {}
    return outs, {
      name: jax.tree.map(lambda *x: jnp.stack(x), *turns)
      if isinstance(turns, list)
      else turns
      for name, turns in found.items()
    }

  return measured


def _arrays(tree) -> list:
  values = array.arrays_apart(tree, walk.is_array, array.is_compressed)[0]
  return [array.materialize(x) for x in values]


def _by_name(structure, program, kinds, measure, skip, found, by):
  """Measures layers that have names, where they end."""
  for kind in kinds:
    if kind.name not in structure.layers or kind.locked:
      continue
    found[kind.name] = []
    for i, (begin, end) in enumerate(kind.streams):
      step, _ = program.made_by[end]
      by[step.outputs[0]] = functools.partial(
        _end_of_layer, kind.name, i, begin, end, measure, skip, found
      )


def _end_of_layer(
  name, i, begin, end, measure, skip, found, step, values, read
):
  outs = jaxprs.run_dense(step.eqn, values)
  x, y = read(begin), outs[step.outputs.index(end)]
  if name in skip:
    outs[step.outputs.index(end)] = jnp.where(skip[name][i], x, y)
  if measure is not None:
    found[name].append(measure(name, x, y))
  return outs


def _in_loops(structure, program, measure, skip, found, by):
  """Measures layers of loops, turn by turn."""
  names = [n for n in groups(structure) if n not in structure.layers]
  members = {n: {path for path, _ in structure.members(n)} for n in names}
  for step in program.flat.steps:
    inside = walk.enter(step.eqn)
    if not isinstance(inside, walk.Scan):
      continue
    whole = inside.num_consts + inside.num_carry
    leaves = set().union(
      *(
        program.leaves.get(x, ())
        for x in step.inputs[whole:]
        if isinstance(x, int)
      )
    )
    for name in names:
      if (
        leaves & members[name]
        and structure.groups[name].size == inside.times
        and name not in found
      ):
        carried = _stream(inside, name)
        found[name] = None
        by[step.outputs[0]] = functools.partial(
          _loop, name, inside, carried, measure, skip, found
        )


def _stream(inside, name) -> int:
  """Which of the values that a loop carries goes through its layers."""
  carried = passing.carried(inside)
  if len(carried) != 1:
    made = flat_lib.flatten(inside.body)
    types = [
      made.types[made.inputs[inside.num_consts + k]].str_short()
      for k in carried
    ]
    raise ValueError(
      f'{name}: the loop carries {types or "nothing"} from layer to layer, and one'
      ' array is expected. Score these layers by their weights, or by the loss.'
    )
  return carried[0]


def _loop(name, inside, k, measure, skip, found, step, values, read):
  """A scan, and what each of its turns does."""
  made = flat_lib.flatten(inside.body)
  n, whole = inside.num_consts, inside.num_consts + inside.num_carry
  consts, carry, xs = values[:n], values[n:whole], values[whole:]

  def turn(carry, scanned):
    xs, skipped = scanned
    outs = flat_lib.run(made, [*consts, *carry, *xs], made.outputs)
    new, ys = outs[: len(carry)], outs[len(carry) :]
    told = None if measure is None else measure(name, carry[k], new[k])
    if skipped is not None:
      new = [jnp.where(skipped, a, b) for a, b in zip(carry, new, strict=True)]
    return new, (ys, told)

  carry, (ys, found[name]) = lax.scan(
    turn,
    carry,
    (xs, skip.get(name)),
    length=inside.times,
    reverse=inside.reverse,
  )
  return [*carry, *ys]
