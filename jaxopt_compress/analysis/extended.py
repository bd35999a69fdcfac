"""A program with further results: values of its inside.

What has none inside runs as it was. A jit, a remat, a scan or a shard_map that has some
is built again, by JAX's public function, around a body that also returns them.
"""

from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import lax

from jaxopt_compress.analysis import values as values_lib
from jaxopt_compress.analysis import walk
from jaxopt_compress.core import jaxprs


class Wanted(NamedTuple):
  """A value, and of how many turns of the outermost scan; None: of all."""

  made: values_lib.Made
  turns: int | None


def run(
  jaxpr: Any, args: Sequence[Any], wanted: Sequence[Wanted], depth: int = 0
) -> tuple[list, dict]:
  """Evaluates a program.

  Args:
    jaxpr: the program, closed or not.
    args: arrays.
    wanted: values inside.
    depth: how many equations are around the program.

  Returns:
    Its results, and {key of a value: the value}: layers of scans first, and devices of
    shard_maps.
  """
  jaxpr, consts = jaxprs.opened(jaxpr)
  env = dict(zip(jaxpr.constvars, consts, strict=True))
  env.update(zip(jaxpr.invars, args, strict=True))
  here, inside = {}, {}
  for w in wanted:
    at = w.made.at
    if len(at.around) == depth:
      here[w.made.key] = at.eqn.outvars[w.made.result]
    else:
      outer = at.around[depth][0].eqn
      inside.setdefault(id(outer), []).append(w)
  last_use = _last_use(jaxpr, here.values())
  found, begin = {}, 0
  for i, eqn in enumerate(jaxpr.eqns):
    if id(eqn) not in inside:
      continue
    _run_stretch(jaxpr.eqns[begin:i], env, last_use, i)
    begin = i + 1
    operands = [_read(env, v) for v in eqn.invars]
    with jaxprs.within(eqn):
      program = walk.enter(eqn)
      build = _BUILD[type(program)]
      outs, more = build(program, operands, inside[id(eqn)], depth + 1)
    env.update(zip(eqn.outvars, outs, strict=True))
    found |= more
  _run_stretch(jaxpr.eqns[begin:], env, last_use, len(jaxpr.eqns))
  found |= {key: env[v] for key, v in here.items()}
  return [_read(env, v) for v in jaxpr.outvars], found


def _read(env, v):
  return env[v] if jaxprs.is_var(v) else v.val


def _last_use(jaxpr, kept) -> dict[Any, int]:
  """The position of the equation that reads each variable last."""
  last = {}
  for i, eqn in enumerate(jaxpr.eqns):
    last.update((v, i) for v in eqn.invars if jaxprs.is_var(v))
  # Results are read behind the last equation.
  end = len(jaxpr.eqns)
  last.update((v, end) for v in (*jaxpr.outvars, *kept) if jaxprs.is_var(v))
  return last


def _run_stretch(eqns, env, last_use, position):
  """Runs equations that stay as they are, for those from a position on."""
  if not eqns:
    return
  made = [v for eqn in eqns for v in eqn.outvars]
  inside = set(made)
  reads = [v for eqn in eqns for v in eqn.invars if jaxprs.is_var(v)]
  needed = {v: env[v] for v in reads if v not in inside}
  later = [v for v in made if last_use.get(v, -1) >= position]
  outs = jaxprs.run_together(eqns, needed, later)
  env.update(zip(later, outs, strict=True))


# ----------------------------------------------- what is built around its body


def _call(call, args, wanted, depth):
  """A jit or a remat."""
  if call.remat is not None:
    if call.recomputes and call.remat['prevent_cse']:
      # What keeps XLA from merging it with the forward pass is added when it is
      # lowered, which `jax.checkpoint` undoes.
      args = lax.optimization_barrier(args)
    body = functools.partial(run, call.body, wanted=wanted, depth=depth)
    return jax.checkpoint(lambda *args: body(args), **call.remat)(*args)
  args = _constrained(args, call.in_shardings)
  outs, found = run(call.body, args, wanted, depth)
  return _constrained(outs, call.out_shardings), found


def _constrained(values, shardings):
  """Keeps the shardings that a jit inside the program asks for."""
  return [
    lax.with_sharding_constraint(x, s)
    if isinstance(s, jax.sharding.Sharding)
    else x
    for x, s in zip(values, shardings or [None] * len(values), strict=True)
  ]


def _scan(scan, args, wanted, depth):
  n, whole = scan.num_consts, scan.num_consts + scan.num_carry
  consts, carry, xs = args[:n], args[n:whole], args[whole:]

  def loop(carry, first, last, wanted):
    def turn(carry, xs):
      outs, found = run(scan.body, [*consts, *carry, *xs], wanted, depth)
      return outs[: len(carry)], (outs[len(carry) :], found)

    cut = (
      [x[first:last] for x in xs] if (first, last) != (0, scan.times) else xs
    )
    return lax.scan(
      turn,
      carry,
      cut,
      length=last - first,
      reverse=scan.reverse,
      unroll=scan.unroll,
    )

  turns = [w.turns for w in wanted]
  # Loops inside of this one go to their ends.
  wanted = [w._replace(turns=None) for w in wanted]
  if None in turns or scan.reverse or max(turns) == scan.times:
    carry, (ys, found) = loop(carry, 0, scan.times, wanted)
    return [*carry, *ys], found
  # In two parts, so that XLA drops the second where nothing needs its results.
  carry, (ys, found) = loop(carry, 0, max(turns), wanted)
  carry, (rest, _) = loop(carry, max(turns), scan.times, [])
  ys = [lax.concatenate(pair, 0) for pair in zip(ys, rest, strict=True)]
  return [*carry, *ys], found


def _shard_map(inside, args, wanted, depth):
  def body(*args):
    outs, found = run(inside.body, args, wanted, depth)
    # An axis of size one on each device, joined over them.
    return outs, {key: x[None] for key, x in found.items()}

  specs = {w.made.key: jax.P(inside.differing(w.made.aval)) for w in wanted}
  return jax.shard_map(
    body,
    mesh=inside.mesh,
    in_specs=tuple(inside.in_specs),
    out_specs=(list(inside.out_specs), specs),
    check_vma=inside.checked,
    axis_names=set(inside.axes),
  )(*args)


_BUILD = {walk.Call: _call, walk.Scan: _scan, walk.ShardMap: _shard_map}
