"""Runs what is left of a program when some of its values are given.

It is walked again as in `partial`, with data that are there. An equation that meets data
runs as it was. One with programs inside does so too, custom derivatives included, unless
a leaf is made in there: then it is built again, by JAX's public function, around what is
left of its body. What the program makes of leaves is made where it is read.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.hoist import known
from jaxopt_compress.analysis.hoist import partial
from jaxopt_compress.core import jaxprs


class Rest(partial.Partial):
  """A program in which values are nodes of a graph, or arrays."""

  def __init__(
    self,
    asked: partial.Partial,
    leaves: Mapping[known.Known, jax.Array],
  ):
    """From a walk of the same program, and its leaves."""
    super().__init__()
    self.graph = asked.graph
    self._asked, self._leaves = asked, set(leaves)
    # What has been made, of the whole program first; then of each body around.
    self._values = [dict(leaves)]

  def run(self, closed, inputs):
    outs = algebra.evaluate(self, closed, inputs)
    return [self.value(x) for x in outs]

  # Values: an array is itself, a node is looked up, or made here.

  def value(self, x) -> jax.Array:
    """The array of a value."""
    if not partial.is_known(x):
      return x
    for y in known.behind([x], lambda y: self._find(y) is not None):
      if self._find(y) is None:
        self._values[-1].update(computed(y, self._find))
    return self._find(x)

  def _find(self, x):
    for values in reversed(self._values):
      if x in values:
        return values[x]
    return x.value if isinstance(x, known.Constant) else None

  @contextlib.contextmanager
  def body(self, values: Mapping[known.Known, jax.Array]):
    """Within it values are made that the program around cannot read."""
    self._values.append(dict(values))
    try:
      yield
    finally:
      self._values.pop()

  # Equations.

  def read(self, x, primitive):
    """What meets data has been noted before."""

  def apply(self, at, inputs):
    outs = super().apply(at, inputs)
    if all(map(partial.is_known, outs)) and outs:
      return outs
    return jaxprs.run_dense(at.eqn, self._operands(at.eqn, inputs))

  def _operands(self, eqn, inputs) -> list:
    """Arrays for the variables that an equation reads; its numbers it has."""
    pairs = zip(eqn.invars, inputs, strict=True)
    return [self.value(x) if jaxprs.is_var(v) else v.val for v, x in pairs]

  def enter(self, at, inside, inputs):
    if self.as_it_is(at, inside, inputs):
      return self.apply(at, inputs)
    # Without jit each operation of a body runs by itself, too.
    if self._has_leaves(at, inputs) or jax.config.jax_disable_jit:
      with jaxprs.within(at.eqn):
        arrays = _BUILD[type(inside)](self, at, inside, inputs)
    else:
      arrays = jaxprs.run_dense(at.eqn, self._operands(at.eqn, inputs))
    pairs = zip(self._asked.results[at.place], arrays, strict=True)
    return [x if partial.is_known(x) else y for x, y in pairs]

  def _has_leaves(self, at, inputs) -> bool:
    """Whether a leaf is made inside of an equation, rather than read."""
    given = {x for x in inputs if partial.is_known(x)}

    def ends(x):
      return x in given or x in self._leaves

    found = known.behind(self._asked.reads_in[at.place], ends)
    # What nothing in there reads, or a leaf alone, may be nowhere.
    missing = given.difference(found)
    if any(x.parents or x.loops for x in missing):
      return True
    return any(x in self._leaves and x not in given for x in found)

  def rows(self, at, loop: known.Loop) -> dict[known.Known, jax.Array]:
    """What turns of a scan must be given: {value of a turn: those of all}."""
    reads = self._asked.reads_in[at.place]
    found = known.behind(reads, self._leaves.__contains__)
    made_inside = {
      x: self.value(x) for x in found if x in self._leaves and loop in x.loops
    }
    return made_inside | {
      x: self.value(x.of)
      for x in found
      if isinstance(x, known.Row) and x.loop == loop
    }

  def of_data(self, at, outs: list) -> list:
    """Of the results of a body those that data meet, as arrays."""
    pairs = zip(self._asked.results[at.place], outs, strict=True)
    return [self.value(y) for x, y in pairs if not partial.is_known(x)]

  def spread(self, at, arrays: Sequence) -> list:
    """The same in their places among all results, None in the others."""
    arrays = iter(arrays)
    asked = self._asked.results[at.place]
    return [None if partial.is_known(x) else next(arrays) for x in asked]


def computed(
  x: known.Known, find: Callable[[known.Known], jax.Array]
) -> dict[known.Known, jax.Array]:
  """The results of the step that makes a value, of operands that `find` finds."""
  step = x.step
  values = jaxprs.run_dense(step.eqn, list(map(find, step.operands)))
  pairs = zip(step.results, values, strict=True)
  return {result: y for result, y in pairs if y is not None}


def evaluate(x: known.Known, params: Sequence[jax.Array]) -> jax.Array:
  """A known value, equation by equation; turns of its loops are first axes."""
  nodes = known.behind([x], lambda y: False)
  still = _evaluated([y for y in nodes if not y.loops], params, {}, {})
  turning = [y for y in nodes if y.loops]

  def of_turns(turn):
    loops = x.loops[len(turn) :]
    if not loops:
      at = dict(zip(x.loops, turn, strict=True))
      return _evaluated(turning, params, still, at)[x]
    # Turn by turn, as the scan does, so that the same numbers come of it.
    each = [of_turns((*turn, i)) for i in range(loops[0].times)]
    shape = x.shape[len(turn) :]
    return jnp.stack(each) if each else jnp.zeros(shape, x.aval.dtype)

  return of_turns(())


def _evaluated(nodes, params, before, at) -> dict[known.Known, jax.Array]:
  """The values of nodes in their order, in one turn of each loop."""
  values = dict(before)
  for x in nodes:
    if isinstance(x, known.Given):
      (i,) = x.parents
      values[x] = params[i]
    elif isinstance(x, known.Constant):
      values[x] = x.value
    elif isinstance(x, known.Row):
      values[x] = values[x.of][at[x.loop]]
    elif x not in values:
      values |= computed(x, values.__getitem__)
  return values


# ----------------------------------------------- what is built around its body


def _merged(inputs, arrays) -> list:
  """The inputs of a body: known ones, and arrays in the places of the others."""
  arrays = iter(arrays)
  return [x if partial.is_known(x) else next(arrays) for x in inputs]


def _arrays(inputs) -> list:
  return [x for x in inputs if not partial.is_known(x)]


def _call(rest, at, call, inputs):
  """A jit, which becomes part of the program around, or a remat."""
  if call.remat is None:
    inputs = _constrained(inputs, call.in_shardings)
    outs = algebra.evaluate(rest, call.body, inputs, at)
    return _constrained(outs, call.out_shardings)
  arrays = _arrays(inputs)
  if call.recomputes and call.remat['prevent_cse']:
    # What keeps XLA from merging it with the forward pass is added when it is
    # lowered, which `jax.checkpoint` undoes.
    arrays = lax.optimization_barrier(arrays)

  def body(*arrays):
    with rest.body({}):
      outs = algebra.evaluate(rest, call.body, _merged(inputs, arrays), at)
      return rest.of_data(at, outs)

  return rest.spread(at, jax.checkpoint(body, **call.remat)(*arrays))


def _constrained(values, shardings):
  """Keeps the shardings that a jit inside the program asks of data."""
  return [
    lax.with_sharding_constraint(x, s)
    if isinstance(s, jax.sharding.Sharding) and not partial.is_known(x)
    else x
    for x, s in zip(values, shardings or [None] * len(values), strict=True)
  ]


def _cond(rest, at, cond, inputs):
  index, *inputs = inputs

  def built(branch):
    def body(*arrays):
      with rest.body({}):
        outs = algebra.evaluate(rest, branch, _merged(inputs, arrays), at)
        return rest.of_data(at, outs)

    return body

  branches = [built(branch) for branch in cond.branches]
  outs = lax.switch(rest.value(index), branches, *_arrays(inputs))
  return rest.spread(at, outs)


def _scan(rest, at, scan, inputs):
  n, whole = scan.num_consts, scan.num_consts + scan.num_carry
  consts, carry, xs = inputs[:n], inputs[n:whole], inputs[whole:]
  starts, stays = rest.starts(at, scan, carry)
  # A leaf that is made in there comes as one for each turn, as rows do.
  rows = rest.rows(at, partial.loop(at))

  def turn(state, cut):
    arrays, here = cut
    with rest.body(dict(zip(rows, here, strict=True))):
      now = [
        x if partial.is_known(x) else state[i] for i, x in enumerate(starts)
      ]
      outs = rest.turn(at, scan, consts, now, _merged(xs, arrays))
      ys = [rest.value(y) for y in outs[len(carry) :]]
      return {i: rest.value(outs[i]) for i in state}, ys

  cut = _arrays(xs), list(rows.values())
  state, ys = lax.scan(
    turn,
    {i: rest.value(x) for i, x in enumerate(carry) if not stays[i]},
    cut,
    # A length that is left open in an export is that of what the loop cuts.
    length=None if jax.tree.leaves(cut) else scan.times,
    reverse=scan.reverse,
    unroll=scan.unroll,
  )
  return [*(state.get(i) for i in range(len(carry))), *ys]


def _while(rest, at, loop, inputs):
  n_test, n_body = loop.num_test_consts, loop.num_body_consts
  of_test, consts = inputs[:n_test], inputs[n_test : n_test + n_body]
  carry = inputs[n_test + n_body :]
  variables = algebra.carried(loop.body, len(consts), len(carry))
  # A value that the body returns as it came is no part of the carry.
  init = {
    i: rest.value(x)
    for i, (x, (_, stays)) in enumerate(zip(carry, variables, strict=True))
    if not (stays and partial.is_known(x))
  }

  def filled(state):
    return [state.get(i, x) for i, x in enumerate(carry)]

  def test(state):
    with rest.body({}):
      inputs = [*of_test, *filled(state)]
      (goes_on,) = algebra.evaluate(rest, loop.test, inputs, at)
      return rest.value(goes_on)

  def turn(state):
    with rest.body({}):
      outs = algebra.evaluate(rest, loop.body, [*consts, *filled(state)], at)
      return {i: rest.value(outs[i]) for i in state}

  state = lax.while_loop(test, turn, init)
  return [state.get(i) for i in range(len(carry))]


_BUILD = {
  walk.Call: _call,
  walk.Cond: _cond,
  walk.Scan: _scan,
  walk.While: _while,
}
