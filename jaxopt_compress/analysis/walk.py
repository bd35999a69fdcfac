"""One walk through a program, for every question that is asked of it.

    what is known of a result = rule(what is known of the operands)

A program is a jaxpr: a list of equations, some of which have programs inside (jit,
scan, cond, ...). Two tools read it, and nothing else in this room knows how JAX
writes such an equation down.

  `enter(eqn)`    the programs inside an equation as one of a few records: `Call`,
                  `Scan`, `While`, `Cond`, `ShardMap`, `Opaque`. Enough for what adds
                  up over equations, as `flops` does.
  `evaluate`      the values of a program, in an `Algebra` that the question brings.
                  It enters every program inside and asks the algebra only for what
                  depends on the question.

A new question starts with a subclass of `Algebra` that says what a value is of which
nothing is known, and a table of rules. An equation without a rule gives values of
which nothing is known: an answer may be missed, never invented.

  >>> import jax, jax.numpy as jnp
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
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax

from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import structural

# ------------------------------------------------------ programs inside programs


@dataclasses.dataclass(frozen=True)
class Call:
  """A program that runs once on all operands: jit, remat, custom derivatives."""

  body: Any
  times = 1
  bodies = property(lambda self: (self.body,))


@dataclasses.dataclass(frozen=True)
class Scan:
  """A loop over the first axis: operands are (constants, carry, scanned)."""

  body: Any
  num_consts: int
  num_carry: int
  times: int
  reverse: bool
  bodies = property(lambda self: (self.body,))


@dataclasses.dataclass(frozen=True)
class While:
  """A loop: operands are (constants of test, constants of body, carry)."""

  test: Any
  body: Any
  num_test_consts: int
  num_body_consts: int
  times = 1  # or more: a program does not tell
  bodies = property(lambda self: (self.test, self.body))


@dataclasses.dataclass(frozen=True)
class Cond:
  """Branches on the same operands: the first operand chooses."""

  branches: tuple
  times = 1
  bodies = property(lambda self: self.branches)


@dataclasses.dataclass(frozen=True)
class ShardMap:
  """A program that each of `times` devices runs on its part of the operands."""

  body: Any
  in_specs: Sequence
  out_specs: Sequence
  times: int
  bodies = property(lambda self: (self.body,))


@dataclasses.dataclass(frozen=True)
class Opaque:
  """Programs whose inputs are not the operands: they can be counted, no more.

  `times` is None where it is known only when the program runs.
  """

  bodies: tuple
  times: int | None = 1


Inside = Call | Scan | While | Cond | ShardMap | Opaque


def _call(p):
  body = p.get('call_jaxpr', p.get('jaxpr'))
  return None if body is None else Call(body)


def _scan(p):
  consts, carry = structural.scan_counts(p)
  return Scan(p['jaxpr'], consts, carry, p['length'], p['reverse'])


def _while(p):
  consts = p['cond_nconsts'], p['body_nconsts']
  return While(p['cond_jaxpr'], p['body_jaxpr'], *consts)


def _cond(p):
  return Cond(tuple(p['branches']))


def _shard_map(p):
  # Shapes inside are those of one device along the axes that are manual here.
  mesh = p['mesh']
  axes = p.get('newly_manual_axes')
  if axes is None:
    axes = p.get('manual_axes', mesh.axis_names)
  devices = math.prod(mesh.shape[a] for a in axes)
  return ShardMap(p['jaxpr'], p['in_specs'], p['out_specs'], devices)


def _linear_solve(p):
  return Opaque((p['jaxprs'].solve,))


def _pallas_call(p):
  grid = p['grid_mapping'].grid
  known = all(isinstance(n, int) for n in grid)
  return Opaque((p['jaxpr'],), math.prod(grid) if known else None)


_ENTER: dict[str, Callable[[dict], Inside | None]] = {
  'jit': _call,
  'pjit': _call,
  'closed_call': _call,
  'core_call': _call,
  'checkpoint': _call,
  'remat': _call,
  'remat2': _call,
  'custom_jvp_call': _call,
  'custom_vjp_call': _call,
  'scan': _scan,
  'while': _while,
  'cond': _cond,
  'shard_map': _shard_map,
  'custom_linear_solve': _linear_solve,
  'pallas_call': _pallas_call,
}


def enter(eqn) -> Inside | None:
  """The programs inside an equation, or None where there are none."""
  how = _ENTER.get(eqn.primitive.name)
  return None if how is None else how(eqn.params)


def unnamed_bodies(eqn) -> Iterator[Any]:
  """The programs among the parameters of a primitive that `enter` does not know."""
  for key, param in eqn.params.items():
    if key == 'transpose':  # of linear_call: run by the gradient, not here
      continue
    for x in param if isinstance(param, (tuple, list)) else (param,):
      if hasattr(x, 'eqns') or hasattr(getattr(x, 'jaxpr', None), 'eqns'):
        yield x


def opened(jaxpr) -> tuple[Any, Sequence]:
  """A jaxpr and its constants, whether it came closed or not."""
  return getattr(jaxpr, 'jaxpr', jaxpr), getattr(jaxpr, 'consts', ())


def live(jaxpr) -> list:
  """The equations whose results are read, or that have effects, in order."""
  jaxpr, _ = opened(jaxpr)
  needed = {v for v in jaxpr.outvars if jaxprs.is_var(v)}
  found = []
  for eqn in reversed(jaxpr.eqns):
    if eqn.effects or any(v in needed for v in eqn.outvars):
      needed.update(v for v in eqn.invars if jaxprs.is_var(v))
      found.append(eqn)
  return found[::-1]


# ---------------------------------------------------------------- where one is


@dataclasses.dataclass(frozen=True)
class At:
  """An equation of the walk, and what is around it.

  Attributes:
    eqn: the equation.
    outer: the equation whose program this one is in, or None.
    turn: which turn of the loop `outer` it is, where turns are walked apart.
  """

  eqn: Any
  outer: 'At | None' = None
  turn: int | None = None

  @functools.cached_property
  def scope(self) -> tuple[str, ...]:
    """Names of the scopes around the equation, outermost first."""
    around = self.outer.scope if self.outer else ()
    return (*around, *jaxprs.scope_names(self.eqn))

  @property
  def path(self) -> str:
    """Its scopes and its primitive, as in 'blocks/attn/dot_general'."""
    return '/'.join((*self.scope, self.eqn.primitive.name))

  @property
  def source(self) -> str:
    """File, line and function of the model."""
    # Programs of JAX's own functions have no line of the user's; the call has.
    here = jaxprs.source_of(self.eqn)
    return here or (self.outer.source if self.outer else '')

  @property
  def around(self) -> list[tuple['At', int | None]]:
    """The equations that this one is inside of, outermost first, and the turn."""
    if self.outer is None:
      return []
    return [*self.outer.around, (self.outer, self.turn)]

  def shape(self, i: int = 0) -> tuple[int, ...]:
    """The shape of a result."""
    return tuple(self.eqn.outvars[i].aval.shape)


def places(jaxpr, outer: At | None = None) -> Iterator[At]:
  """Every equation that has no program inside, in program order."""
  for eqn in opened(jaxpr)[0].eqns:
    at, inside = At(eqn, outer), enter(eqn)
    if inside is None or isinstance(inside, Opaque):
      yield at
      continue
    for body in inside.bodies:
      yield from places(body, at)


# -------------------------------------------------------------------- the walk


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

  def unknown(self, at: At, inputs: list) -> list:
    """The results of an equation that no rule covers."""
    return [self.plain(v.aval) for v in at.eqn.outvars]

  def apply(self, at: At, inputs: list) -> list:
    """The results of an equation that is not entered."""
    rule = self.rules.get(at.eqn.primitive.name)
    outs = None if rule is None else rule(self, at, inputs)
    return self.unknown(at, inputs) if outs is None else outs

  def join(self, cases: list, aval) -> Any:
    """One of several values: of the branches of a cond, the turns of a loop."""
    return self.plain(aval)

  def decide(self, x) -> None:
    """Meets what chooses a branch, or whether a loop goes on."""

  def carry(self, x, aval) -> Any:
    """What a loop that changes a value starts its turns with, of first value x.

    Asked where a loop is walked once for all its turns.
    """
    return self.plain(aval)

  def layer(self, x, turn: int | None, aval) -> Any:
    """What a turn of a scan gets of x; `turn` is None where one stands for all."""
    return self.plain(aval)

  def stack(self, ys: list, aval) -> Any:
    """The results of the turns of a scan; one where one stands for all."""
    return self.plain(aval)

  def cut(self, x, spec, aval) -> Any:
    """The part of x that a device of a shard_map gets."""
    return self.plain(aval)

  def assemble(self, y, spec, aval) -> Any:
    """The whole of which a device of a shard_map made y."""
    return self.plain(aval)


def evaluate(
  algebra: Algebra,
  jaxpr: Any,
  inputs: Sequence,
  outer: At | None = None,
  turn: int | None = None,
) -> list:
  """The values of a program's results.

  Args:
    algebra: what the question knows.
    jaxpr: the program, closed or not.
    inputs: a value of the algebra for each of its inputs.
    outer, turn: for programs inside: the equation that they are in.
  """
  jaxpr, consts = opened(jaxpr)
  env = dict(zip(jaxpr.constvars, map(algebra.constant, consts), strict=True))
  env.update(zip(jaxpr.invars, inputs, strict=True))

  def read(v):
    return env[v] if jaxprs.is_var(v) else algebra.constant(v.val)

  for eqn in jaxpr.eqns:
    at, values = At(eqn, outer, turn), [read(v) for v in eqn.invars]
    known = eqn.primitive.name in algebra.rules
    inside = None if known else enter(eqn)
    step = _STEPS.get(type(inside))
    if step is None:
      outs = algebra.apply(at, values)
    else:
      outs = step(algebra, at, inside, values)
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
  avals = _avals(opened(inside.body)[0].invars[whole:])
  after = _avals(at.eqn.outvars[inside.num_carry :])

  def run(carry, turn):
    here = [algebra.layer(x, turn, a) for x, a in zip(xs, avals, strict=True)]
    outs = evaluate(algebra, inside.body, [*consts, *carry, *here], at, turn)
    return outs[: inside.num_carry], outs[inside.num_carry :]

  if not algebra.unroll:
    carry, ys = _once(
      algebra, inside, len(consts), carry, lambda c: run(c, None)
    )
    turns = [ys]
  else:
    turns = []
    order = range(inside.times)
    for i in reversed(order) if inside.reverse else order:
      carry, ys = run(carry, i)
      turns.append(ys)
    if inside.reverse:
      turns.reverse()
  stacked = [
    algebra.stack([ys[j] for ys in turns], aval) for j, aval in enumerate(after)
  ]
  return [*carry, *stacked]


def _through_while(algebra, at, inside, inputs):
  of_test = inputs[: inside.num_test_consts]
  consts = inputs[inside.num_test_consts :][: inside.num_body_consts]
  carry = inputs[inside.num_test_consts + inside.num_body_consts :]

  def run(carry):
    outs = evaluate(algebra, inside.body, [*consts, *carry], at)
    (goes_on,) = evaluate(algebra, inside.test, [*of_test, *carry], at)
    algebra.decide(goes_on)
    return outs, ()

  return _once(algebra, inside, len(consts), carry, run)[0]


def _once(algebra, inside, num_consts, carry, run):
  """A loop whose turns one stands for: (last carry, results of a turn)."""
  jaxpr, _ = opened(inside.body)
  variables = jaxpr.invars[num_consts : num_consts + len(carry)]
  kept = [a is b for a, b in zip(variables, jaxpr.outvars, strict=False)]
  start = [
    x if keeps else algebra.carry(x, v.aval)
    for x, keeps, v in zip(carry, kept, variables, strict=True)
  ]
  ends, ys = run(start)
  ends = [
    x if keeps else algebra.join([x, end], v.aval)
    for x, end, keeps, v in zip(start, ends, kept, variables, strict=True)
  ]
  return ends, ys


def _through_shard_map(algebra, at, inside, inputs):
  jaxpr, _ = opened(inside.body)
  here = map(algebra.cut, inputs, inside.in_specs, _avals(jaxpr.invars))
  outs = evaluate(algebra, inside.body, list(here), at)
  whole = _avals(at.eqn.outvars)
  return list(map(algebra.assemble, outs, inside.out_specs, whole))


_STEPS = {
  Call: _through_call,
  Cond: _through_cond,
  Scan: _through_scan,
  ShardMap: _through_shard_map,
  While: _through_while,
}
