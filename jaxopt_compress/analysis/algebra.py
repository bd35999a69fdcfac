"""What is known of the values of a program, carried from equation to equation.

    what is known of a result = rule(what is known of the operands)

A question brings an `Algebra`: what a value is of which nothing is known, and a
table of rules. `evaluate` goes through the program and enters every program inside
(`walk`); it asks the algebra only for what depends on the question. An equation
without a rule gives values of which nothing is known: an answer may be missed, never
invented.

  >>> import jax.numpy as jnp
  >>> class Depth(Algebra):  # how many products lie behind a value
  ...   rules = {'dot_general': lambda self, at, inputs: [1 + max(inputs)]}
  ...   def plain(self, aval):
  ...     return 0
  ...   def unknown(self, at, inputs):
  ...     return [max(inputs, default=0)] * len(at.eqn.outvars)
  >>> f = lambda x: jnp.tanh(jax.jit(jnp.dot)(x, x)) @ x
  >>> evaluate(Depth(), jax.make_jaxpr(f)(jnp.ones((2, 2))), [0])
  [2]
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax

from jaxopt_compress.analysis import walk
from jaxopt_compress.core import jaxprs


class Algebra:
  """What a question knows of values, and how that goes through a program.

  Only `plain` has to be said. Everything else gives, unless a question knows
  better, values of which nothing is known.

  Attributes:
    rules: name of a primitive -> `rule(algebra, at, inputs)`: the values of its
      results, or None for `unknown`. A primitive with programs inside that has a
      rule is not entered.
    unroll: walk a scan turn by turn; or else once, for all its turns.
  """

  rules: Mapping[str, Callable] = {}
  unroll = False

  def plain(self, aval) -> Any:
    """A value of this type of which nothing is known."""
    raise NotImplementedError

  def constant(self, x) -> Any:
    """An array in the program."""
    return self.plain(jax.typeof(x))

  def unknown(self, at: walk.At, inputs: list) -> list:
    """The results of an equation that no rule covers."""
    return [self.plain(v.aval) for v in at.eqn.outvars]

  def apply(self, at: walk.At, inputs: list) -> list:
    """The results of an equation that is not entered."""
    rule = self.rules.get(at.eqn.primitive.name)
    outs = None if rule is None else rule(self, at, inputs)
    return self.unknown(at, inputs) if outs is None else outs

  def enter(self, at: walk.At, inside: walk.Inside, inputs: list) -> list:
    """The results of an equation with programs inside, which are gone through."""
    return _STEPS[type(inside)](self, at, inside, inputs)

  def join(self, cases: list, aval) -> Any:
    """One of several values: of the branches of a cond, the turns of a loop."""
    return self.plain(aval)

  def decide(self, x) -> None:
    """Meets what chooses a branch, or whether a loop goes on."""

  def carry(self, x, aval) -> Any:
    """What any turn of a loop gets where it changes a value that was x at first.

    Asked where one turn stands for all.
    """
    return self.plain(aval)

  def scanned(self, at: walk.At, xs: list) -> None:
    """Meets what a scan goes through, all of it along the first axis."""

  def layer(self, x, turn: int | None, aval) -> Any:
    """What a turn of a scan gets of x; `turn` is None where one stands for all."""
    return self.plain(aval)

  def stack(self, ys: list, aval) -> Any:
    """The results of the turns of a scan; one where one stands for all."""
    return self.plain(aval)

  def cut(self, at: walk.At, x, spec, aval) -> Any:
    """The part of x that a device of a shard_map gets."""
    return self.plain(aval)

  def assemble(self, at: walk.At, y, spec, aval) -> Any:
    """The whole of which a device of a shard_map made y."""
    return self.plain(aval)


def evaluate(
  algebra: Algebra,
  jaxpr: Any,
  inputs: Sequence,
  outer: walk.At | None = None,
  turn: int | None = None,
) -> list:
  """The values of a program's results.

  Args:
    algebra: what the question knows.
    jaxpr: the program, closed or not.
    inputs: a value of the algebra for each of its inputs.
    outer, turn: for programs inside: the equation that they are in.
  """
  jaxpr, consts = jaxprs.opened(jaxpr)
  env = dict(zip(jaxpr.constvars, map(algebra.constant, consts), strict=True))
  env.update(zip(jaxpr.invars, inputs, strict=True))

  def read(v):
    return env[v] if jaxprs.is_var(v) else algebra.constant(v.val)

  for eqn in jaxpr.eqns:
    at, values = walk.At(eqn, outer, turn), [read(v) for v in eqn.invars]
    known = eqn.primitive.name in algebra.rules
    inside = None if known else walk.enter(eqn)
    if type(inside) in _STEPS:
      outs = algebra.enter(at, inside, values)
    else:
      outs = algebra.apply(at, values)
    env.update(zip(eqn.outvars, outs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def _avals(variables) -> list:
  return [v.aval for v in variables]


def _through_call(algebra, at, inside, inputs):
  return evaluate(algebra, inside.body, inputs, at)


def _through_cond(algebra, at, inside, inputs):
  which, *args = inputs
  algebra.decide(which)
  outs = [evaluate(algebra, branch, args, at) for branch in inside.branches]
  return list(
    map(algebra.join, zip(*outs, strict=True), _avals(at.eqn.outvars))
  )


def _through_scan(algebra, at, inside, inputs):
  consts = inputs[: inside.num_consts]
  whole = inside.num_consts + inside.num_carry
  carry, xs = inputs[inside.num_consts : whole], inputs[whole:]
  algebra.scanned(at, xs)
  parts = _avals(jaxprs.opened(inside.body)[0].invars[whole:])

  def run(carry, turn):
    here = [algebra.layer(x, turn, a) for x, a in zip(xs, parts, strict=True)]
    outs = evaluate(algebra, inside.body, [*consts, *carry, *here], at, turn)
    return outs[: inside.num_carry], outs[inside.num_carry :]

  if algebra.unroll:
    carry, turns = _turn_by_turn(inside, carry, run)
  else:
    variables = carried(inside.body, len(consts), len(carry))
    carry, ys = _once(algebra, variables, carry, lambda c: run(c, None))
    turns = [ys]
  stacked = _avals(at.eqn.outvars[inside.num_carry :])
  ys = [
    algebra.stack([ys[j] for ys in turns], aval)
    for j, aval in enumerate(stacked)
  ]
  return [*carry, *ys]


def _turn_by_turn(scan, carry, run):
  """(last carry, results of each turn), in the order of the first axis."""
  turns = []
  order = range(scan.times)
  for i in reversed(order) if scan.reverse else order:
    carry, ys = run(carry, i)
    turns.append(ys)
  # A reversed scan writes what it computes first to the end.
  return carry, turns[::-1] if scan.reverse else turns


def _through_while(algebra, at, inside, inputs):
  of_test = inputs[: inside.num_test_consts]
  consts = inputs[inside.num_test_consts :][: inside.num_body_consts]
  carry = inputs[inside.num_test_consts + inside.num_body_consts :]

  def run(carry):
    outs = evaluate(algebra, inside.body, [*consts, *carry], at)
    (goes_on,) = evaluate(algebra, inside.test, [*of_test, *carry], at)
    algebra.decide(goes_on)
    return outs, ()

  variables = carried(inside.body, len(consts), len(carry))
  return _once(algebra, variables, carry, run)[0]


def carried(body, num_consts, num_carry) -> list[tuple]:
  """(type, whether it stays as it is) of each value that a loop carries."""
  jaxpr, _ = jaxprs.opened(body)
  before = jaxpr.invars[num_consts : num_consts + num_carry]
  after = jaxpr.outvars[:num_carry]
  return [(a.aval, a is b) for a, b in zip(before, after, strict=True)]


def _once(algebra, variables, carry, run):
  """A loop of which one turn stands for all: (last carry, results of a turn)."""
  # What the body returns as it came is a constant: all turns get its first value.
  # Of the rest a turn may get the first value or what another turn made of it.
  start = [
    x if stays else algebra.carry(x, aval)
    for x, (aval, stays) in zip(carry, variables, strict=True)
  ]
  ends, ys = run(start)
  ends = [
    x if stays else algebra.join([x, end], aval)
    for x, end, (aval, stays) in zip(start, ends, variables, strict=True)
  ]
  return ends, ys


def _through_shard_map(algebra, at, inside, inputs):
  jaxpr, _ = jaxprs.opened(inside.body)
  parts = zip(inputs, inside.in_specs, _avals(jaxpr.invars), strict=True)
  here = [algebra.cut(at, *part) for part in parts]
  outs = evaluate(algebra, inside.body, here, at)
  whole = zip(outs, inside.out_specs, _avals(at.eqn.outvars), strict=True)
  return [algebra.assemble(at, *part) for part in whole]


_STEPS = {
  walk.Call: _through_call,
  walk.Cond: _through_cond,
  walk.Scan: _through_scan,
  walk.ShardMap: _through_shard_map,
  walk.While: _through_while,
}
