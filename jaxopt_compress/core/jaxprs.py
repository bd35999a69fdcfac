"""Evaluates a jaxpr over values some of which are compressed leaves.

An equation that meets no compressed leaf, and that no handler wants, runs exactly
as it was, custom derivatives included. Any other is

  structural  (jit, remat, scan, cond, while, custom_jvp, custom_vjp, shard_map):
              rebuilt around its body, with the leaf inside still compressed;
  first-order at a scope that has a handler: the handler;
  first-order with a rule for (primitive, leaf type): the rule;
  else        the equation as it was, on the materialised array.

Structural rules are in `structural`. This is the only file that imports
`jax.extend`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.extend as jex
from jax.extend import source_info_util
import jax.extend.core  # noqa: F401  (jax.extend loads its parts lazily)
import jax.numpy as jnp

from jaxopt_compress.core import array

# What rebuilds a structural equation around its body, by the primitive's name:
# f(ctx, eqn, [(value, name)]) -> [(value, name)], or NotImplemented.
STRUCTURAL: dict[str, Callable] = {}

# Why a leaf is dense in an operation that another leaf ran natively.
TAKEN = 'another compressed leaf took the operation'


@dataclasses.dataclass(frozen=True)
class Dense:
  """What a rule returns to decline: the equation runs on the dense array.

  Attributes:
    reason: why, in a few words, for `explain`.
    detail: anything that the analysis which installed the rule wants back.
  """

  reason: str
  detail: Any = None


@dataclasses.dataclass(frozen=True)
class Claim:
  """Several equations of a body that one rule computes together.

  Attributes:
    equation: the first of them, or the one equation of a body that it calls: what
      is recorded as met.
    operands: the variables and literals that the first one reads.
    indices: the positions of the others in their body, in order.
    reads: variables and literals that the others read besides.
    run: (values of the operands, read) -> the result of the last equation, where
      `read` gives the value of each of `reads`; `NotImplemented` or `Dense` where
      the equations are left to run one by one.
  """

  equation: Any
  operands: tuple[Any, ...]
  indices: tuple[int, ...]
  reads: tuple[Any, ...]
  run: Callable[[list[Any], Callable[[Any], Any]], Any]

  @property
  def last(self) -> int:
    return self.indices[-1]


@dataclasses.dataclass(frozen=True)
class Met:
  """One meeting of a compressed leaf with an operation of the model.

  Attributes:
    path: name of the leaf in the arguments.
    primitive: name of the JAX primitive.
    native: whether it ran on the compressed form.
    reason: why it did not, or ''.
    source: file, line and function of the model.
    detail: what the rule that declined passed on.
  """

  path: str
  primitive: str
  native: bool
  reason: str
  source: str
  detail: Any = None


@dataclasses.dataclass(frozen=True)
class Monoid:
  """How findings about one leaf are put together.

  Attributes:
    merge: (finding, finding) -> finding.
    empty: a finding's shapes -> the finding of nothing.
    all_reduce: (finding, axes, known) -> the finding over devices. `axes` are those
      along which devices saw different data, which is `known` from types, or else
      assumed from how the arguments are cut.
  """

  merge: Callable[[Any, Any], Any]
  empty: Callable[[Any], Any]
  all_reduce: Callable[[Any, tuple[str, ...], bool], Any]


@dataclasses.dataclass
class Context:
  """What one evaluation needs to know.

  Attributes:
    rule_for: (primitive, leaf type) -> rule or None.
    record: called with a `Met` for every meeting.
    inline: evaluate jitted bodies in place instead of under `jax.jit`, so that
      each call of a shared body is recorded.
    claims_for: leaf type -> what finds the equations that a rule of such a leaf
      computes together: jaxpr -> {position of the first: `Claim`}; or None.
    jits: jitted evaluations of shared bodies, by the identity of their jaxpr and
      the scope around it.
    calls: the lines of the structural equations being evaluated, outermost
      first.
    monoids: how what rules find out about each leaf is put together; empty
      unless something is observed.
    found: what rules found out so far in the body that is evaluated, by the name
      of the leaf.
    placed: (leaf, spec) -> the leaf, which may remember how a `shard_map` cuts it.
    handler_at: scope path, ending in the primitive's name -> what replaces a
      first-order equation there, or None; see `scopes`.
    scope: names of the scopes around the body that is evaluated.
  """

  rule_for: Callable[[Any, type], Callable | None]
  record: Callable[[Met], None] | None = None
  inline: bool = False
  claims_for: Callable[[type], Callable | None] = lambda leaf_type: None
  jits: dict[Any, tuple[Any, Callable]] = dataclasses.field(
    default_factory=dict
  )
  calls: list[str] = dataclasses.field(default_factory=list)
  monoids: dict[str, Monoid] = dataclasses.field(default_factory=dict)
  found: dict[str, Any] = dataclasses.field(default_factory=dict)
  placed: Callable[[Any, Any], Any] = lambda leaf, spec: leaf
  handler_at: Callable[[str], Callable | None] | None = None
  scope: tuple[str, ...] = ()
  _wanted: dict[Any, Any] = dataclasses.field(default_factory=dict)

  def path(self, eqn) -> str:
    """Where an equation of the body that is evaluated is, and what it is."""
    return '/'.join((*self.scope, *scope_names(eqn), eqn.primitive.name))

  def wants(self, eqn) -> bool:
    """Whether a handler is for the equation, or for one inside it."""
    if self.handler_at is None:
      return False
    inside = bodies(eqn)
    if not inside:
      return self.handler_at(self.path(eqn)) is not None
    with self.within((*self.scope, *scope_names(eqn))):
      return any([self._wants_inside(body) for body in inside])

  def _wants_inside(self, jaxpr) -> bool:
    key = id(jaxpr), self.scope
    if (
      key not in self._wanted
    ):  # the jaxpr is held so that its id stays its own
      self._wanted[key] = jaxpr, any(self.wants(eqn) for eqn in jaxpr.eqns)
    return self._wanted[key][1]

  @contextlib.contextmanager
  def within(self, scope):
    """Evaluates a body that is in a scope."""
    outer, self.scope = self.scope, scope
    try:
      yield
    finally:
      self.scope = outer

  def give(self, found: dict[str, Any]) -> None:
    """Adds to what was found."""
    for name, value in found.items():
      if name in self.found:
        value = self.monoids[name].merge(self.found[name], value)
      self.found[name] = value

  def apart(self, run: Callable) -> Callable:
    """`run`, returning (its result, what was found in it): no tracer stays."""

    def both(*args):
      outer, self.found = self.found, {}
      try:
        return run(*args), self.found
      finally:
        self.found = outer

    return both

  def note(self, eqn, name, native, reason='', detail=None):
    if self.record is not None:
      self.record(
        Met(
          name,
          eqn.primitive.name,
          native,
          reason,
          self._source(eqn),
          detail,
        )
      )

  def _source(self, eqn) -> str:
    # Bodies of JAX's own jitted functions have no line of the user's; the call
    # around them has.
    return source_of(eqn) or (self.calls[-1] if self.calls else '')

  @contextlib.contextmanager
  def entering(self, eqn):
    """Remembers where the body that is evaluated meanwhile was called."""
    self.calls.append(self._source(eqn) if self.record else '')
    # Without handlers scopes say nothing, and bodies called from two are shared.
    scope = (*self.scope, *scope_names(eqn)) if self.handler_at else ()
    with self.within(scope):
      yield
    self.calls.pop()


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
  return [n for run in runs for n in run if n not in _MARKS]


# What JAX itself opens around a recomputation.
_MARKS = ('rematted_computation',)


def bodies(eqn) -> list[Any]:
  """The jaxprs that a structural equation runs."""
  if eqn.primitive.name not in STRUCTURAL:
    return []
  found = []
  for p in eqn.params.values():
    for x in p if isinstance(p, (tuple, list)) else (p,):
      x = getattr(x, 'jaxpr', x)
      if hasattr(x, 'eqns'):
        found.append(x)
  return found


def trace(fun: Callable, *args) -> tuple[Any, Any]:
  """The closed jaxpr of `fun` and the structure of its result."""
  closed, out_shape = jax.make_jaxpr(fun, return_shape=True)(*args)
  return closed, jax.tree.structure(out_shape)


def evaluate(
  ctx: Context, closed, args: Sequence[Any], names: Sequence[str | None]
) -> list[Any]:
  """Evaluates a closed jaxpr; `args` and the results may be compressed.

  Args:
    ctx: the rules, and where meetings are recorded.
    closed: a ClosedJaxpr.
    args: one value for each input; arrays, or leaves that stand for them.
    names: the path of the leaf that each argument comes from, or None.

  Returns:
    One value for each output.
  """
  return [v for v, _ in run(ctx, closed.jaxpr, closed.consts, args, names)]


def run(ctx, jaxpr, consts, args, names):
  """Evaluates `jaxpr`; returns [(value, name)] of its outputs."""
  env = dict(zip(jaxpr.constvars, ((c, None) for c in consts), strict=True))
  env.update(zip(jaxpr.invars, zip(args, names, strict=True), strict=True))
  compressed = {v for v, (x, _) in env.items() if array.is_compressed(x)}
  # What is observed is seen before it is cast to vary along a mesh axis of a
  # weight that it meets: the cast says nothing about the data.
  before = _before_casts(jaxpr) if ctx.monoids else {}
  last_use = _last_use(jaxpr, before)
  waiting = []  # equations without compressed operands, not run yet
  claims = _claims(ctx, jaxpr, last_use, [env[v][0] for v in compressed])
  held = {}  # position of an equation: the claim that ends there, or None

  def flush(position):
    if waiting:
      _run_untouched(waiting, env, last_use, position)
      waiting.clear()

  for i, eqn in enumerate(jaxpr.eqns):
    if i in held:
      claim = held.pop(i)
      if claim is not None:
        flush(i)
        _run_claim(ctx, jaxpr.eqns, *claim, env)
      continue
    meets = not compressed.isdisjoint(v for v in eqn.invars if is_var(v))
    if not meets and not ctx.wants(eqn):
      waiting.append(eqn)
      continue
    if i in claims and meets and _is_taken(ctx, claims[i], env):
      claim = claims[i]
      held |= dict.fromkeys(claim.indices) | {claim.last: (i, claim)}
      continue
    flush(i)
    seen = {} if eqn.primitive.name in STRUCTURAL else before
    operands = [
      _read(env, seen.get(v, v) if is_var(v) else v) for v in eqn.invars
    ]
    for v, out in zip(eqn.outvars, _treat(ctx, eqn, operands), strict=True):
      env[v] = out
      if array.is_compressed(out[0]):
        compressed.add(v)
  flush(len(jaxpr.eqns))
  return [_read(env, v) for v in jaxpr.outvars]


def _claims(ctx, jaxpr, last_use, leaves) -> dict[int, Claim]:
  """The claims of a body by their first equations.

  What they read is kept up to where they end.
  """
  if ctx.monoids or ctx.handler_at is not None:
    return {}  # each equation is looked at by itself
  finders = dict.fromkeys(ctx.claims_for(type(x)) for x in leaves)
  claims, taken = {}, set()
  for find in filter(None, finders):
    for i, claim in find(jaxpr).items():
      if taken.isdisjoint((i, *claim.indices)):
        taken.update((i, *claim.indices))
        claims[i] = claim
  for i, claim in claims.items():
    each = [v for j in (i, *claim.indices) for v in jaxpr.eqns[j].invars]
    for v in filter(is_var, [*claim.reads, *each]):
      last_use[v] = max(last_use.get(v, i), claim.last)
  return claims


def _is_taken(ctx, claim, env) -> bool:
  """Whether exactly one operand is a leaf, and of a type that claims."""
  known = [env[v][0] for v in claim.operands if is_var(v) and v in env]
  leaves = [x for x in known if array.is_compressed(x)]
  return len(leaves) == 1 and ctx.claims_for(type(leaves[0])) is not None


def _run_claim(ctx, eqns, first, claim, env):
  """The equations of a claim by its rule, or else one by one."""
  operands = [_read(env, v) for v in claim.operands]
  ((_, name),) = [p for p in operands if array.is_compressed(p[0])]

  def read(v):
    return _read(env, v)[0]

  if not any(array.is_compressed(read(v)) for v in claim.reads):
    with _within(claim.equation):
      y = claim.run([x for x, _ in operands], read)
    if y is not NotImplemented and not isinstance(y, Dense):
      ctx.note(claim.equation, name, native=True)
      _check(eqns[claim.last], [y])
      env[eqns[claim.last].outvars[0]] = y, None
      return
  for i in (first, *claim.indices):
    operands = [_read(env, v) for v in eqns[i].invars]
    if any(array.is_compressed(x) for x, _ in operands):
      outs = _treat(ctx, eqns[i], operands)
    else:
      outs = [(y, None) for y in run_dense(eqns[i], [x for x, _ in operands])]
    env.update(zip(eqns[i].outvars, outs, strict=True))


def is_var(v) -> bool:
  return not isinstance(v, jex.core.Literal)


def _read(env, v):
  return env[v] if is_var(v) else (v.val, None)


def _before_casts(jaxpr) -> dict[Any, Any]:
  """What each variable was before it was cast to vary along mesh axes."""
  before = {}
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'pvary':
      for v, out in zip(eqn.invars, eqn.outvars, strict=True):
        if is_var(v):
          before[out] = before.get(v, v)
  return before


def _last_use(jaxpr, before) -> dict[Any, int]:
  last = {}
  for i, eqn in enumerate(jaxpr.eqns):
    for v in eqn.invars:
      if is_var(v):
        last[v] = last[before.get(v, v)] = i
  for v in jaxpr.outvars:
    if is_var(v):
      last[v] = len(jaxpr.eqns)
  return last


def _run_untouched(eqns, env, last_use, position):
  """Runs equations as one jaxpr of their own, as JAX itself would."""
  made = [v for eqn in eqns for v in eqn.outvars]
  inside = set(made)
  needed = dict.fromkeys(
    v for eqn in eqns for v in eqn.invars if is_var(v) and v not in inside
  )
  wanted = [v for v in made if last_use.get(v, -1) >= position]
  outs = _bind(list(needed), wanted, eqns, [env[v][0] for v in needed])
  env.update(zip(wanted, ((out, None) for out in outs), strict=True))


def _bind(invars, outvars, eqns, values):
  # Through a jaxpr rather than `primitive.bind`: how parameters are bound is
  # private to JAX and changes.
  effects = set().union(*(eqn.effects for eqn in eqns))
  info = jex.core.DebugInfo(
    'lift', 'part of a lifted function', ('',) * len(invars), None
  )
  part = jex.core.Jaxpr((), invars, outvars, list(eqns), effects, info)
  return jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(part, []))(*values)


def run_dense(eqn, values):
  """The equation as it was, on materialised operands."""
  env = {}
  invars = []
  for v, x in zip(eqn.invars, values, strict=True):
    if is_var(v) and v not in env:
      env[v] = vary(x, varying(v.aval))
      invars.append(v)
  outvars = [v for v in eqn.outvars if not _is_dropped(v)]
  outs = iter(_bind(invars, outvars, [eqn], [env[v] for v in invars]))
  return [None if _is_dropped(v) else next(outs) for v in eqn.outvars]


def varying(aval) -> frozenset[str]:
  """The manual mesh axes along which a value differs between devices."""
  known = getattr(aval, 'manual_axis_type', None)
  return known.varying if known is not None else frozenset()


def vary(x, axes):
  """Casts an array to vary along mesh axes where it does not yet."""
  missing = tuple(sorted(axes - varying(jax.typeof(x)))) if axes else ()
  return lax.pcast(x, missing, to='varying') if missing else x


def _is_dropped(v) -> bool:
  return isinstance(v, jex.core.DropVar)


def _within(eqn):
  """Operations are named as those of an equation."""
  stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
  return source_info_util.user_context(
    eqn.source_info.traceback, name_stack=stack
  )


def _treat(ctx, eqn, operands):
  """Evaluates an equation that has a compressed operand: [(value, name)]."""
  with _within(eqn):
    if not bodies(eqn) and ctx.wants(eqn):
      outs = _handled(ctx, eqn, operands)
      if outs is not None:
        return outs
    structural = STRUCTURAL.get(eqn.primitive.name)
    if structural is not None:
      with ctx.entering(eqn):
        outs = structural(ctx, eqn, operands)
      if outs is not NotImplemented:
        return outs
      if ctx.wants(eqn):
        raise ValueError(
          f'{ctx.path(eqn)} cannot be entered in this release of JAX, and'
          ' handlers are for operations inside it.'
        )
      return [(x, None) for x in _dense(ctx, eqn, operands)]
    return _first_order(ctx, eqn, operands)


def _handled(ctx, eqn, operands):
  """What a handler makes of an equation, or None where it declines."""
  path = ctx.path(eqn)
  values = [x for x, _ in operands]
  result = ctx.handler_at(path)(eqn.primitive, values, eqn.params)
  if isinstance(result, Dense):
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
  values = [x for x, _ in operands]
  declined = {}
  for i, (x, name) in enumerate(operands):
    if not array.is_compressed(x):
      continue
    rule = ctx.rule_for(eqn.primitive, type(x))
    if rule is None:
      declined[i] = Dense(f'{type(x).__name__} has no rule for it')
      continue
    stay = [
      j == i or (getattr(rule, 'together', False) and type(y) is type(x))
      for j, y in enumerate(values)
    ]
    others = [
      y if stays or not array.is_compressed(y) else y.materialize()
      for y, stays in zip(values, stay, strict=True)
    ]
    result = rule(*others, **eqn.params)
    if isinstance(result, Dense):
      declined[i] = result
      continue
    ctx.note(eqn, name, native=True)
    for j, (y, other) in enumerate(operands):
      if j != i and array.is_compressed(y):
        ctx.note(eqn, other, stay[j], '' if stay[j] else TAKEN)
    outs = result if eqn.primitive.multiple_results else [result]
    _check(eqn, outs)
    return [(y, name if array.is_compressed(y) else None) for y in outs]
  for i, why in declined.items():
    ctx.note(eqn, operands[i][1], False, why.reason, why.detail)
  return [(y, None) for y in run_dense(eqn, materialized(values))]


def _check(eqn, outs):
  for v, y in zip(eqn.outvars, outs, strict=True):
    want, got = _type_of(v.aval), _type_of(y)
    assert want == got, (
      f'The rule for {eqn.primitive} gave {got}, the operation gives {want}.'
    )


def _type_of(x):
  return tuple(x.shape), jnp.dtype(x.dtype)


def materialized(values):
  return [x.materialize() if array.is_compressed(x) else x for x in values]


def _dense(ctx, eqn, operands):
  for x, name in operands:
    if array.is_compressed(x):
      ctx.note(eqn, name, False, 'its structure is not known')
  return run_dense(eqn, materialized([x for x, _ in operands]))
