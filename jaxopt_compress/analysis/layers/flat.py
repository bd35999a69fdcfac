"""A program as one list of operations, and running a part of it.

What is called is put in its place: jit, remat, custom derivatives. Loops and branches
stay one operation. Values are numbers, so they can be named before the program runs:
`run` computes those that are wanted, and may put one value in the place of another.

  >>> import jax, jax.numpy as jnp
  >>> made = flatten(jax.make_jaxpr(jax.jit(lambda x: jnp.sin(jnp.cos(x))))(1.0))
  >>> [step.eqn.primitive.name for step in made.steps]
  ['cos', 'sin']
  >>> cos, sin = (step.outputs[0] for step in made.steps)
  >>> [x.item() for x in run(made, [jnp.zeros(())], [cos])]
  [1.0]
  >>> [x.item() for x in run(made, [jnp.zeros(())], [sin], {cos: made.inputs[0]})]
  [0.0]
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from jaxopt_compress.analysis import walk
from jaxopt_compress.core import jaxprs


@dataclasses.dataclass(frozen=True)
class Step:
  """An operation: its operands are values by number, or literals."""

  at: walk.At
  inputs: tuple[Any, ...]
  outputs: tuple[int, ...]

  eqn = property(lambda self: self.at.eqn)


@dataclasses.dataclass
class Flat:
  """A program.

  Attributes:
    inputs, outputs: values by number; an output may be a literal.
    steps: in an order in which they can run.
    types: the type of each value.
    constants: {value: array}.
  """

  inputs: tuple[int, ...] = ()
  outputs: tuple[Any, ...] = ()
  steps: list[Step] = dataclasses.field(default_factory=list)
  types: list[Any] = dataclasses.field(default_factory=list)
  constants: dict[int, Any] = dataclasses.field(default_factory=dict)

  def new(self, aval) -> int:
    """The number of a new value."""
    self.types.append(aval)
    return len(self.types) - 1


def flatten(closed) -> Flat:
  """The operations of a closed jaxpr."""
  made = Flat()
  jaxpr, _ = jaxprs.opened(closed)
  made.inputs = tuple(made.new(v.aval) for v in jaxpr.invars)
  made.outputs = tuple(_added(made, closed, made.inputs, None))
  return made


def _added(made, jaxpr, inputs, outer) -> list:
  """The results of a program of which the steps are added."""
  jaxpr, consts = jaxprs.opened(jaxpr)
  env = dict(zip(jaxpr.invars, inputs, strict=True))
  for v, x in zip(jaxpr.constvars, consts, strict=True):
    env[v] = made.new(jax.typeof(x))
    made.constants[env[v]] = x

  def read(v):
    return env[v] if jaxprs.is_var(v) else v

  for eqn in jaxpr.eqns:
    at, values = walk.At(eqn, outer), tuple(map(read, eqn.invars))
    inside = walk.enter(eqn)
    if isinstance(inside, walk.Call):
      outs = _added(made, inside.body, values, at)
    else:
      outs = tuple(made.new(v.aval) for v in eqn.outvars)
      made.steps.append(Step(at, values, outs))
    env.update(zip(eqn.outvars, outs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def live(
  made: Flat,
  wanted: Sequence[Any],
  instead: Mapping[int, int] = {},
  known: Collection[int] = (),
) -> list[Step]:
  """The steps that the wanted values need, some values in the place of others."""
  needed = {_source(x, instead) for x in wanted if isinstance(x, int)}
  needed -= set(known)
  found = []
  for step in reversed(made.steps):
    if needed.intersection(step.outputs):
      needed |= {_source(x, instead) for x in step.inputs if isinstance(x, int)}
      needed -= set(known)
      found.append(step)
  return found[::-1]


def run(
  made: Flat,
  inputs: Sequence[Any],
  wanted: Sequence[Any],
  instead: Mapping[int, int] = {},
  by: Mapping[int, Callable] = {},
  known: Mapping[int, Any] = {},
) -> list[Any]:
  """The wanted values.

  Args:
    made: the program.
    inputs: a value for each of its inputs.
    wanted: values by number, or literals.
    instead: {value: the one that is taken in its place}.
    by: {value: what runs the step of which it is the first result}: a function of
      the step, its operands, and a function that reads earlier values by number.
    known: {value: array} of what need not be computed again.
  """
  env = made.constants | dict(zip(made.inputs, inputs, strict=True)) | known

  def read(x):
    return env[_source(x, instead)] if isinstance(x, int) else x.val

  for step in live(made, wanted, instead, known):
    values = list(map(read, step.inputs))
    run_step = by.get(step.outputs[0] if step.outputs else -1)
    if run_step is None:
      outs = jaxprs.run_dense(step.eqn, values)
    else:
      outs = run_step(step, values, read)
    env.update(zip(step.outputs, outs, strict=True))
  return list(map(read, wanted))


def _source(x: int, instead) -> int:
  while x in instead:
    x = instead[x]
  return x
