"""Evaluates a jaxpr over values some of which are compressed leaves.

An equation that meets no compressed leaf, and that no handler wants, runs exactly
as it was, custom derivatives included. Any other is

  structural  (jit, remat, scan, cond, while, custom_jvp, custom_vjp, shard_map):
              rebuilt around its body, with the leaf inside still compressed;
  claimed     with others of its body, by one rule for all of them (`claims`);
  first-order at a scope that has a handler: the handler;
  first-order with a rule for (primitive, leaf type): the rule;
  else        the equation as it was, on the materialised array.

A value is a pair (value, name): an array, or a leaf that stands for one, and the
path of the argument that a leaf comes from, or None.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import claims
from jaxopt_compress.core import context
from jaxopt_compress.core import jaxprs


def evaluate(
  ctx: context.Context,
  closed,
  args: Sequence[Any],
  names: Sequence[str | None],
) -> list[Any]:
  """The value of each output of a closed jaxpr; some may be compressed.

  Args:
    ctx: the rules, and where meetings are recorded.
    closed: a ClosedJaxpr.
    args: one value for each input; arrays, or leaves that stand for them.
    names: the path of the leaf that each argument comes from, or None.
  """
  return [v for v, _ in run(ctx, closed.jaxpr, closed.consts, args, names)]


def run(ctx, jaxpr, consts, args, names) -> list[tuple[Any, str | None]]:
  """Evaluates `jaxpr`; returns [(value, name)] of its outputs."""
  return _Evaluation(ctx, jaxpr, consts, args, names).run()


class _Evaluation:
  """One pass over the equations of a body.

  Attributes:
    env: (value, name) of each variable that is known.
    compressed: the variables whose values are leaves.
    steps: the equations in order, those of a claim together: `claims.in_order`.
    before: what each variable was before it was cast to vary along mesh axes.
    last_use: the step that reads a variable last.
    waiting: equations without compressed operands, not run yet.
  """

  def __init__(self, ctx, jaxpr, consts, args, names):
    self.ctx = ctx
    env = dict(zip(jaxpr.constvars, ((c, None) for c in consts), strict=True))
    env.update(zip(jaxpr.invars, zip(args, names, strict=True), strict=True))
    self.env = env
    leaves = {v: x for v, (x, _) in env.items() if array.is_compressed(x)}
    self.compressed = {*leaves}
    # What is observed or replaced is looked at equation by equation.
    alone = ctx.monoids or ctx.handler_at is not None
    finders = () if alone else ctx.finders(set(map(type, leaves.values())))
    # What several equations compute is found across the small jits of JAX's own.
    flat = jaxprs.flattened(jaxpr, ctx.opens, leaves) if finders else jaxpr
    self.jaxpr = flat
    found = [claim for find in finders for claim in find(self.jaxpr, leaves)]
    self.steps = claims.in_order(self.jaxpr, found)
    # What is observed is seen before it is cast to vary along a mesh axis of a
    # weight that it meets: the cast says nothing about the data.
    self.before = _before_casts(jaxpr) if ctx.monoids else {}
    self.last_use = _last_use(self.steps, self.jaxpr.outvars, self.before)
    self.waiting = []

  def run(self):
    for step, (claim, eqns) in enumerate(self.steps):
      if claim is None or not self._claimed(step, claim, eqns):
        for eqn in eqns:
          self._run_or_wait(step, eqn)
    self._run_waiting(len(self.steps))
    return self._read(self.jaxpr.outvars)

  def _run_or_wait(self, step, eqn):
    meets = any(jaxprs.is_var(v) and v in self.compressed for v in eqn.invars)
    if meets or self.ctx.wants(eqn):
      self._run_waiting(step)
      self._treat(eqn)
    else:
      self.waiting.append(eqn)

  def _read(self, operands) -> list[tuple[Any, str | None]]:
    return [
      self.env[v] if jaxprs.is_var(v) else (v.val, None) for v in operands
    ]

  def _run_waiting(self, step):
    """Runs the equations that wait, for those from a step on."""
    eqns, self.waiting = self.waiting, []
    if not eqns:
      return
    made = [v for eqn in eqns for v in eqn.outvars]
    inside = set(made)
    needed = {
      v: self.env[v][0]
      for eqn in eqns
      for v in eqn.invars
      if jaxprs.is_var(v) and v not in inside
    }
    # What nothing reads later is no result: XLA would have to keep it.
    wanted = [v for v in made if self.last_use.get(v, -1) >= step]
    outs = jaxprs.run_together(eqns, needed, wanted)
    self.env.update(zip(wanted, ((out, None) for out in outs), strict=True))

  def _treat(self, eqn):
    """Runs an equation that has a compressed operand or that a handler wants."""
    operands = eqn.invars
    if self.before and eqn.primitive.name not in self.ctx.structural:
      operands = [
        self.before.get(v, v) if jaxprs.is_var(v) else v for v in operands
      ]
    outs = _treat(self.ctx, eqn, self._read(operands))
    for v, out in zip(eqn.outvars, outs, strict=True):
      self.env[v] = out
      if array.is_compressed(out[0]):
        self.compressed.add(v)

  def _claimed(self, step, claim, eqns) -> bool:
    """Whether the rule of a claim computes its equations, which it does here."""
    self._run_waiting(step)
    operands = self._read(claim.reads)
    with jaxprs.within(claim.equation):
      outs = claim.run(lambda v: self._read([v])[0][0])
    declined = isinstance(outs, context.Dense)
    if claim.told and outs is not NotImplemented:
      reason = outs.reason if declined else ''
      self.ctx.note(
        claim.equation, '', not declined, reason, primitive=claim.told
      )
    if outs is NotImplemented or declined:
      return False
    for v, y in zip(claim.outs, outs, strict=True):
      _check(claim.equation, [v], [y])
      self.env[v] = y, None
    self._note_leaves(claim, eqns, operands)
    return True

  def _note_leaves(self, claim, eqns, operands):
    """Records what leaves a claim has computed with."""
    leaves = [
      (v, name)
      for v, (x, name) in zip(claim.reads, operands, strict=True)
      if array.is_compressed(x)
    ]
    names = tuple(str(name) for _, name in leaves)
    together = names if len(names) > 1 else ()
    for v, name in leaves:
      # A leaf has met the equation that reads it, if that is no call.
      met = (e for e in eqns if v in e.invars and not jaxprs.inside(e))
      eqn = next(met, claim.equation)
      self.ctx.note(eqn, name, native=True, together=together)


def _before_casts(jaxpr) -> dict[Any, Any]:
  """What each variable was before it was cast to vary along mesh axes."""
  before = {}
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'pvary':
      for v, out in zip(eqn.invars, eqn.outvars, strict=True):
        if jaxprs.is_var(v):
          before[out] = before.get(v, v)
  return before


def _last_use(steps, outvars, before) -> dict[Any, int]:
  """The step that reads each variable last."""
  last = {}
  for i, (claim, eqns) in enumerate(steps):
    # A claim may read what is behind an operand, as a bias before it is broadcast.
    reads = claim.reads if claim else ()
    for v in (*reads, *(v for eqn in eqns for v in eqn.invars)):
      if jaxprs.is_var(v):
        last[v] = last[before.get(v, v)] = i
  # Results are read behind the last step.
  for v in outvars:
    if jaxprs.is_var(v):
      last[v] = len(steps)
  return last


# ---------------------------------------------------------------- one equation


def _treat(ctx, eqn, operands):
  """Evaluates an equation that has a compressed operand: [(value, name)]."""
  with jaxprs.within(eqn):
    if ctx.wants(eqn) and not ctx.bodies(eqn):
      outs = _handled(ctx, eqn, operands)
      if outs is not None:
        return outs
    structural = ctx.structural.get(eqn.primitive.name)
    if structural is None:
      return _first_order(ctx, eqn, operands)
    with ctx.entering(eqn):
      outs = structural(ctx, eqn, operands)
    if outs is not NotImplemented:
      return outs
    if ctx.wants(eqn):
      raise ValueError(
        f'{ctx.path(eqn)} cannot be entered in this release of JAX, and'
        ' handlers are for operations inside it.'
      )
    for x, name in operands:
      if array.is_compressed(x):
        ctx.note(eqn, name, False, 'its structure is not known')
    return _materialized(eqn, [x for x, _ in operands])


def _handled(ctx, eqn, operands):
  """What a handler makes of an equation, or None where it declines."""
  path = ctx.path(eqn)
  values = [x for x, _ in operands]
  result = ctx.handler_at(path)(eqn.primitive, values, eqn.params)
  if isinstance(result, context.Dense):
    return None
  outs = result if eqn.primitive.multiple_results else [result]
  for v, y in zip(eqn.outvars, outs, strict=True):
    if _type_of(v.aval) != _type_of(y):
      raise ValueError(
        f'The handler of {path} gave {_type_of(y)}; the operation gives'
        f' {_type_of(v.aval)}. Return that shape and dtype, or Dense(reason).'
      )
  return [(y, path if array.is_compressed(y) else None) for y in outs]


def _first_order(ctx, eqn, operands):
  """By the rule of the first leaf that has one and does not decline."""
  values = [x for x, _ in operands]
  declined = {}
  for i, (x, name) in enumerate(operands):
    if not array.is_compressed(x):
      continue
    rule = ctx.rule_for(eqn.primitive, type(x))
    if rule is None:
      declined[i] = context.Dense(f'{type(x).__name__} has no rule for it')
      continue
    # The other operands are dense, but for those that the rule takes as leaves.
    stay = [
      j == i or (getattr(rule, 'together', False) and type(y) is type(x))
      for j, y in enumerate(values)
    ]
    others = [
      y if stays or not array.is_compressed(y) else y.materialize()
      for y, stays in zip(values, stay, strict=True)
    ]
    result = rule(*others, **eqn.params)
    if isinstance(result, context.Dense):
      declined[i] = result
      continue
    ctx.note(eqn, name, native=True)
    for j, (y, other) in enumerate(operands):
      if j != i and array.is_compressed(y):
        ctx.note(eqn, other, stay[j], '' if stay[j] else context.TAKEN)
    outs = result if eqn.primitive.multiple_results else [result]
    _check(eqn, eqn.outvars, outs)
    return [(y, name if array.is_compressed(y) else None) for y in outs]
  for i, why in declined.items():
    ctx.note(eqn, operands[i][1], False, why.reason)
  return _materialized(eqn, values)


def _materialized(eqn, values):
  return [(y, None) for y in jaxprs.run_dense(eqn, array.materialize(values))]


def _check(eqn, outvars, outs):
  for v, y in zip(outvars, outs, strict=True):
    want, got = _type_of(v.aval), _type_of(y)
    assert want == got, (
      f'The rule for {eqn.primitive} gave {got}, the operation gives {want}.'
    )


def _type_of(x):
  return tuple(x.shape), jnp.dtype(x.dtype)
