"""Equations of a jaxpr: where they are, and running them as they are.

This is the only file that imports `jax.extend`.
"""

from collections.abc import Callable
from collections.abc import Container
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.extend import source_info_util


def opened(jaxpr) -> tuple[Any, Sequence[Any]]:
  """A jaxpr and its constants, whether it came closed or not."""
  return getattr(jaxpr, 'jaxpr', jaxpr), getattr(jaxpr, 'consts', ())


def is_var(v) -> bool:
  """Whether an operand is a variable; else it is a literal, `v.val`."""
  return not isinstance(v, core.Literal)


def inside(eqn) -> list[Any]:
  """The jaxprs among the parameters of an equation, not closed."""
  found = []
  for p in eqn.params.values():
    for x in p if isinstance(p, (tuple, list)) else (p,):
      x = getattr(x, 'jaxpr', x)
      if hasattr(x, 'eqns'):
        found.append(x)
  return found


def origin(jaxpr, v) -> Any:
  """The variable that `v` comes from, where bodies only pass it on."""
  for eqn in jaxpr.eqns:
    if v not in eqn.outvars:
      continue
    found, i = [], eqn.outvars.index(v)
    for body in inside(eqn):
      if len(body.outvars) == len(eqn.outvars):
        out = origin(body, body.outvars[i])
        # What an equation has before the operands of its bodies is not for them.
        known = dict(zip(body.invars[::-1], eqn.invars[::-1], strict=False))
        found.append(known.get(out) if is_var(out) else None)
    if found and found[0] is not None and all(x is found[0] for x in found):
      return origin(jaxpr, found[0])
  return v


# -------------------------------------------------------------------- flattened

# Equations of a body that is written in place of its call. One that has leaves, such as
# a layer, is evaluated once for all of its calls if it stays apart.
_SMALL, _SMALL_WITH_LEAVES = 60, 15


def flattened(
  jaxpr, opens: Callable[[Any], Any | None], leaves: Container[Any] = ()
) -> Any:
  """The same with the small bodies that `opens` gives in place of their calls.

  Args:
    jaxpr: not closed.
    opens: equation -> the body that it calls and nothing else, or None.
    leaves: variables that are leaves.
  """

  def small(eqn):
    body = opens(eqn)
    meets = any(is_var(v) and v in leaves for v in eqn.invars)
    most = _SMALL_WITH_LEAVES if meets else _SMALL
    return body if body and _size(body) <= most else None

  if not any(map(small, jaxpr.eqns)):
    return jaxpr
  eqns, known = [], {}
  _write(jaxpr.eqns, known, None, small, eqns)
  return core.Jaxpr(
    jaxpr.constvars,
    jaxpr.invars,
    [_named(v, known) for v in jaxpr.outvars],
    eqns,
    jaxpr.effects,
    jaxpr.debug_info,
  )


def _size(jaxpr) -> int:
  """How many equations there are in a body and in those inside."""
  return sum(1 + sum(map(_size, inside(eqn))) for eqn in jaxpr.eqns)


def _write(eqns, known, call, opens, written):
  """Adds equations of a body to `written`, and the names that they get to `known`.

  Args:
    eqns: of the body.
    known: what its variables are called there.
    call: where its call comes from; None for the outermost body.
    opens: what stands in place of a call, or None.
    written: equations so far.
  """
  for eqn in eqns:
    ins = [_named(v, known) for v in eqn.invars]
    source = eqn.source_info if call is None else _below(call, eqn.source_info)
    body = opens(eqn)
    if body is not None:
      inner = dict(zip(body.invars, ins, strict=True))
      _write(_needed(body), inner, source, opens, written)
      outs = [_named(v, inner) for v in body.outvars]
    elif call is None:
      outs = eqn.outvars
      written.append(eqn.replace(invars=ins))
    else:  # a body that is called twice makes two of each variable
      drop = [isinstance(v, core.DropVar) for v in eqn.outvars]
      outs = [
        v if dropped else core.Var(v.aval)
        for v, dropped in zip(eqn.outvars, drop, strict=True)
      ]
      written.append(eqn.replace(invars=ins, outvars=outs, source_info=source))
    known.update(zip(eqn.outvars, outs, strict=True))


def _named(v, known):
  return known.get(v, v) if is_var(v) else v


def _needed(jaxpr) -> list[Any]:
  """The equations that results or effects of a body need."""
  needed, found = {v for v in jaxpr.outvars if is_var(v)}, []
  for eqn in reversed(jaxpr.eqns):
    if eqn.effects or not needed.isdisjoint(eqn.outvars):
      needed.update(filter(is_var, eqn.invars))
      found.append(eqn)
  return found[::-1]


def _below(outer, inner):
  """Where an equation is whose body is written in place of its call."""
  stack = outer.name_stack + inner.name_stack
  # Bodies of JAX's own functions have no line of the user's; their call has.
  line = inner if source_info_util.summarize(inner) else outer
  return line.replace(name_stack=stack)


# ----------------------------------------------------------------------- where


def source_of(eqn) -> str:
  """File, line and function that an equation comes from, or ''."""
  return source_info_util.summarize(eqn.source_info)


_Scope = type(source_info_util.new_name_stack('a').stack[0])


def scope_names(eqn) -> list[str]:
  """The names of the scopes of an equation in its body, without transforms."""
  runs, marks = [[]], set()
  for entry in eqn.source_info.name_stack.stack:
    if isinstance(entry, _Scope):
      runs[-1].append(entry.name)
    else:
      marks.add(entry.name)
      runs.append([])
  if 'transpose' in marks:
    # The backward pass of a remat has its scopes twice: transpose(jvp(a))/jvp(a).
    runs = [r for i, r in enumerate(runs) if not r or r not in runs[:i]]
  # JAX itself opens a scope around a recomputation.
  return [n for run in runs for n in run if n != 'rematted_computation']


def within(eqn):
  """A context in which operations have the scopes and the line of an equation."""
  stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
  return source_info_util.user_context(
    eqn.source_info.traceback, name_stack=stack
  )


# --------------------------------------------------------------------- running


def run_together(
  eqns: Sequence[Any], values: dict[Any, Any], wanted: Sequence[Any]
) -> list[Any]:
  """Runs equations as one jaxpr of their own, as JAX itself would.

  Args:
    eqns: equations that follow each other.
    values: of the variables that they read and do not make, in any order.
    wanted: the variables of which the values are returned.
  """
  # Through a jaxpr rather than `primitive.bind`: how parameters are bound is
  # private to JAX and changes.
  effects = set().union(*(eqn.effects for eqn in eqns))
  info = core.DebugInfo(
    'lift', 'part of a lifted function', ('',) * len(values), None
  )
  part = core.Jaxpr((), list(values), list(wanted), list(eqns), effects, info)
  return core.jaxpr_as_fun(core.ClosedJaxpr(part, []))(*values.values())


def run_dense(eqn, values: Sequence[Any]) -> list[Any]:
  """Runs an equation as it was on arrays; None for results that nothing reads."""
  env = {}
  for v, x in zip(eqn.invars, values, strict=True):
    if is_var(v) and v not in env:
      env[v] = vary(x, varying(v.aval))
  wanted = [v for v in eqn.outvars if not isinstance(v, core.DropVar)]
  made = dict(zip(wanted, run_together([eqn], env, wanted), strict=True))
  return [made.get(v) for v in eqn.outvars]


def varying(aval) -> frozenset[str]:
  """The manual mesh axes along which a value differs between devices."""
  known = getattr(aval, 'manual_axis_type', None)
  return known.varying if known is not None else frozenset()


def vary(x, axes):
  """Casts an array to vary along mesh axes where it does not yet."""
  missing = tuple(sorted(axes - varying(jax.typeof(x)))) if axes else ()
  return lax.pcast(x, missing, to='varying') if missing else x
