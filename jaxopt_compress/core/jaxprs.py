"""Evaluates a jaxpr over values some of which are compressed leaves.

An equation that meets no compressed leaf runs exactly as it was, custom
derivatives included. An equation that meets one is

  structural  (jit, remat, scan, cond, while, custom_jvp, custom_vjp, shard_map):
              rebuilt around its body, with the leaf inside still compressed;
  first-order with a rule for (primitive, leaf type): the rule;
  else        the equation as it was, on the materialised array.

This is the only file that knows the parameters of JAX's structural primitives
and the only one that imports `jax.extend`.
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
from jaxopt_compress.core import sharding

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


@dataclasses.dataclass
class Context:
  """What one evaluation needs to know.

  Attributes:
    rule_for: (primitive, leaf type) -> rule or None.
    record: called with a `Met` for every meeting.
    inline: evaluate jitted bodies in place instead of under `jax.jit`, so that
      each call of a shared body is recorded.
    jits: jitted evaluations of shared bodies, by the identity of their jaxpr.
    calls: the lines of the structural equations being evaluated, outermost
      first.
  """

  rule_for: Callable[[Any, type], Callable | None]
  record: Callable[[Met], None] | None = None
  inline: bool = False
  jits: dict[int, tuple[Any, Callable]] = dataclasses.field(
    default_factory=dict
  )
  calls: list[str] = dataclasses.field(default_factory=list)

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
    here = source_info_util.summarize(eqn.source_info)
    return here or (self.calls[-1] if self.calls else '')

  @contextlib.contextmanager
  def entering(self, eqn):
    """Remembers where the body that is evaluated meanwhile was called."""
    self.calls.append(self._source(eqn) if self.record else '')
    yield
    self.calls.pop()


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
  return [v for v, _ in _run(ctx, closed.jaxpr, closed.consts, args, names)]


def _run(ctx, jaxpr, consts, args, names):
  """Evaluates `jaxpr`; returns [(value, name)] of its outputs."""
  env = dict(zip(jaxpr.constvars, ((c, None) for c in consts), strict=True))
  env.update(zip(jaxpr.invars, zip(args, names, strict=True), strict=True))
  compressed = {v for v, (x, _) in env.items() if array.is_compressed(x)}
  last_use = _last_use(jaxpr)
  waiting = []  # equations without compressed operands, not run yet

  def flush(position):
    if waiting:
      _run_untouched(waiting, env, last_use, position)
      waiting.clear()

  for i, eqn in enumerate(jaxpr.eqns):
    if compressed.isdisjoint(v for v in eqn.invars if _is_var(v)):
      waiting.append(eqn)
      continue
    flush(i)
    operands = [_read(env, v) for v in eqn.invars]
    for v, out in zip(eqn.outvars, _treat(ctx, eqn, operands), strict=True):
      env[v] = out
      if array.is_compressed(out[0]):
        compressed.add(v)
  flush(len(jaxpr.eqns))
  return [_read(env, v) for v in jaxpr.outvars]


def _is_var(v) -> bool:
  return not isinstance(v, jex.core.Literal)


def _read(env, v):
  return env[v] if _is_var(v) else (v.val, None)


def _last_use(jaxpr) -> dict[Any, int]:
  last = {}
  for i, eqn in enumerate(jaxpr.eqns):
    for v in eqn.invars:
      if _is_var(v):
        last[v] = i
  for v in jaxpr.outvars:
    if _is_var(v):
      last[v] = len(jaxpr.eqns)
  return last


def _run_untouched(eqns, env, last_use, position):
  """Runs equations as one jaxpr of their own, as JAX itself would."""
  made = [v for eqn in eqns for v in eqn.outvars]
  inside = set(made)
  needed = dict.fromkeys(
    v for eqn in eqns for v in eqn.invars if _is_var(v) and v not in inside
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


def _run_dense(eqn, values):
  """The equation as it was, on materialised operands."""
  env = {}
  invars = []
  for v, x in zip(eqn.invars, values, strict=True):
    if _is_var(v) and v not in env:
      env[v] = x
      invars.append(v)
  outvars = [v for v in eqn.outvars if not _is_dropped(v)]
  outs = iter(_bind(invars, outvars, [eqn], [env[v] for v in invars]))
  return [None if _is_dropped(v) else next(outs) for v in eqn.outvars]


def _is_dropped(v) -> bool:
  return isinstance(v, jex.core.DropVar)


def _treat(ctx, eqn, operands):
  """Evaluates an equation that has a compressed operand: [(value, name)]."""
  stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
  with source_info_util.user_context(
    eqn.source_info.traceback, name_stack=stack
  ):
    structural = _STRUCTURAL.get(eqn.primitive.name)
    if structural is not None:
      with ctx.entering(eqn):
        outs = structural(ctx, eqn, operands)
      if outs is not NotImplemented:
        return outs
      return [(x, None) for x in _dense(ctx, eqn, operands)]
    return _first_order(ctx, eqn, operands)


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
    others = [
      y if j == i or not array.is_compressed(y) else y.materialize()
      for j, y in enumerate(values)
    ]
    result = rule(*others, **eqn.params)
    if isinstance(result, Dense):
      declined[i] = result
      continue
    ctx.note(eqn, name, native=True)
    for j, (y, other) in enumerate(operands):
      if j != i and array.is_compressed(y):
        ctx.note(eqn, other, False, TAKEN)
    outs = result if eqn.primitive.multiple_results else [result]
    _check(eqn, outs)
    return [(y, name if array.is_compressed(y) else None) for y in outs]
  for i, why in declined.items():
    ctx.note(eqn, operands[i][1], False, why.reason, why.detail)
  return [(y, None) for y in _run_dense(eqn, _materialized(values))]


def _check(eqn, outs):
  for v, y in zip(eqn.outvars, outs, strict=True):
    want = (tuple(v.aval.shape), v.aval.dtype)
    got = (tuple(y.shape), jnp.dtype(y.dtype))
    assert want == got, (
      f'The rule for {eqn.primitive} gave {got}, the operation gives {want}.'
    )


def _materialized(values):
  return [x.materialize() if array.is_compressed(x) else x for x in values]


def _dense(ctx, eqn, operands, reason='its structure is not known'):
  for x, name in operands:
    if array.is_compressed(x):
      ctx.note(eqn, name, False, reason)
  return _run_dense(eqn, _materialized([x for x, _ in operands]))


def _drop(ctx, eqn, operand, reason):
  """Materialises one operand of a structural equation, on the record."""
  x, name = operand
  if not array.is_compressed(x):
    return operand
  ctx.note(eqn, name, False, reason)
  return x.materialize(), None


def _inner(ctx, jaxpr, names, consts=()):
  """A function of values that evaluates `jaxpr` and returns dense results."""

  def run(*args):
    outs = _run(ctx, jaxpr, consts, args, names)
    return _materialized([x for x, _ in outs])

  return run


def _unzip(operands):
  return [x for x, _ in operands], [name for _, name in operands]


# ----------------------------------------------------------- structural rules


def _jit(ctx, eqn, operands):
  closed = eqn.params['jaxpr']
  args, names = _unzip(operands)
  if ctx.inline:
    return _run(ctx, closed.jaxpr, closed.consts, args, names)
  # One jitted function for each shared body, so that JAX's own cache sees the
  # second call of the same block as it would without us.
  if id(closed) not in ctx.jits:

    def run(*args):
      outs = _run(ctx, closed.jaxpr, closed.consts, args, [None] * len(args))
      return [x for x, _ in outs]

    run.__name__ = run.__qualname__ = eqn.params.get('name', 'jit')
    inline = eqn.params.get('inline', False)
    ctx.jits[id(closed)] = closed, jax.jit(run, inline=inline)
  outs = ctx.jits[id(closed)][1](*args)
  return [(x, None) for x in outs]


def _call(ctx, eqn, operands):
  closed = eqn.params.get('call_jaxpr', eqn.params.get('jaxpr'))
  if closed is None:
    return NotImplemented
  jaxpr = getattr(closed, 'jaxpr', closed)
  args, names = _unzip(operands)
  return _run(ctx, jaxpr, getattr(closed, 'consts', ()), args, names)


def _remat(ctx, eqn, operands):
  args, names = _unzip(operands)
  run = jax.checkpoint(
    _inner(ctx, eqn.params['jaxpr'], names),
    prevent_cse=eqn.params['prevent_cse'],
    policy=eqn.params['policy'],
  )
  return [(x, None) for x in run(*args)]


def _scan(ctx, eqn, operands):
  p = eqn.params
  closed, n_consts, n_carry = p['jaxpr'], p['num_consts'], p['num_carry']
  jaxpr = closed.jaxpr
  consts, carry, xs = _split(operands, n_consts, n_carry)
  kept = [
    _is_var(out) and out is jaxpr.invars[n_consts + i]
    for i, out in enumerate(jaxpr.outvars[:n_carry])
  ]
  carry = [
    c if keep else _drop(ctx, eqn, c, 'the loop changes it')
    for c, keep in zip(carry, kept, strict=True)
  ]
  xs = [
    x
    if _sliceable(x[0], p['length'])
    else _drop(ctx, eqn, x, 'not all its parts have the scanned axis')
    for x in xs
  ]
  args, names = _unzip(consts + carry + xs)
  if not any(map(array.is_compressed, args)):
    return [(x, None) for x in _run_dense(eqn, args)]
  run = _inner(ctx, jaxpr, names, closed.consts)
  init, rebuild = _loop_state(args[n_consts : n_consts + n_carry])

  def body(state, xs):
    outs = run(*args[:n_consts], *rebuild(state), *xs)
    return _loop_state(outs[:n_carry], init)[0], outs[n_carry:]

  state, ys = lax.scan(
    body,
    init,
    args[n_consts + n_carry :],
    length=p['length'],
    reverse=p['reverse'],
    unroll=p['unroll'],
  )
  last = zip(rebuild(state), names[n_consts : n_consts + n_carry], strict=True)
  return [*last, *((y, None) for y in ys)]


def _while(ctx, eqn, operands):
  p = eqn.params
  cond, body = p['cond_jaxpr'], p['body_jaxpr']
  cond_consts, body_consts, carry = _split(
    operands, p['cond_nconsts'], p['body_nconsts']
  )
  n = p['body_nconsts']
  kept = [
    _is_var(out) and out is body.jaxpr.invars[n + i]
    for i, out in enumerate(body.jaxpr.outvars)
  ]
  carry = [
    c if keep else _drop(ctx, eqn, c, 'the loop changes it')
    for c, keep in zip(carry, kept, strict=True)
  ]
  all_operands = cond_consts + body_consts + carry
  if not any(array.is_compressed(x) for x, _ in all_operands):
    return [(x, None) for x in _run_dense(eqn, [x for x, _ in all_operands])]
  cond_args, cond_names = _unzip(cond_consts)
  body_args, body_names = _unzip(body_consts)
  carry_args, carry_names = _unzip(carry)
  test = _inner(ctx, cond.jaxpr, cond_names + carry_names, cond.consts)
  step = _inner(ctx, body.jaxpr, body_names + carry_names, body.consts)
  init, rebuild = _loop_state(carry_args)
  state = lax.while_loop(
    lambda state: test(*cond_args, *rebuild(state))[0],
    lambda state: _loop_state(step(*body_args, *rebuild(state)), init)[0],
    init,
  )
  return list(zip(rebuild(state), carry_names, strict=True))


def _split(operands, n_first, n_second):
  operands = list(operands)
  cut = n_first + n_second
  return operands[:n_first], operands[n_first:cut], operands[cut:]


def _loop_state(values, like=None):
  """Takes compressed (so unchanging) leaves out of a loop's carry.

  Returns the carry, a dict of the others by position, and the function that
  puts the leaves back. With `like`, keeps the positions that `like` has.
  """
  positions = (
    [i for i, x in enumerate(values) if not array.is_compressed(x)]
    if like is None
    else list(like)
  )
  state = {i: values[i] for i in positions}
  return state, lambda state: [state.get(i, x) for i, x in enumerate(values)]


def _sliceable(x, length) -> bool:
  if not array.is_compressed(x):
    return True
  stacked = all(c.shape[:1] == (length,) for c in array.children(x))
  return stacked and x.can_cut(-x.ndim, 1)


def _cond(ctx, eqn, operands):
  index, *rest = operands
  args, names = _unzip(rest)
  branches = [
    _inner(ctx, b.jaxpr, names, b.consts) for b in eqn.params['branches']
  ]
  (index, _) = _drop(ctx, eqn, index, 'it chooses the branch')
  platforms = eqn.params.get('branches_platforms')
  if platforms is not None:  # of lax.platform_dependent; None is its default
    pairs = list(zip(platforms, branches, strict=True))
    by_name = {name: f for names, f in pairs for name in names or ['default']}
    return [(x, None) for x in lax.platform_dependent(*args, **by_name)]
  return [(x, None) for x in lax.switch(index, branches, *args)]


def _custom_jvp(ctx, eqn, operands):
  args, names = _unzip(operands)
  closed = eqn.params['call_jaxpr']
  run = jax.custom_jvp(_inner(ctx, closed.jaxpr, names, closed.consts))

  @run.defjvp
  def _(primals, tangents):
    dense = lambda *xs: _run_dense(eqn, _materialized(xs))
    return run(*primals), jax.jvp(dense, primals, tangents)[1]

  return [(x, None) for x in run(*args)]


def _custom_vjp(ctx, eqn, operands):
  args, names = _unzip(operands)
  closed = eqn.params['call_jaxpr']
  run = jax.custom_vjp(_inner(ctx, closed.jaxpr, names, closed.consts))
  dense = lambda *xs: _run_dense(eqn, _materialized(xs))
  run.defvjp(
    lambda *xs: (run(*xs), jax.vjp(dense, *xs)[1]),
    lambda pullback, cotangents: pullback(cotangents),
  )
  return [(x, None) for x in run(*args)]


def _shard_map(ctx, eqn, operands):
  p = eqn.params
  if not {'mesh', 'in_specs', 'out_specs', 'jaxpr'} <= set(p):
    return NotImplemented
  placed, specs = [], []
  for (x, name), spec, v in zip(
    operands, p['in_specs'], p['jaxpr'].invars, strict=True
  ):
    if array.is_compressed(x):
      leaf_spec = sharding.leaf_specs(x, spec, p['mesh'], v.aval.shape)
      if leaf_spec is None:
        reason = f'its parts cannot be cut as {spec} cuts the array'
        x, name = _drop(ctx, eqn, (x, name), reason)
      else:
        spec = leaf_spec
    placed.append((x, name))
    specs.append(spec)
  args, names = _unzip(placed)
  kwargs = {}
  if 'newly_manual_axes' in p:
    kwargs['axis_names'] = set(p['newly_manual_axes'])
  run = jax.shard_map(
    _inner(ctx, p['jaxpr'], names),
    mesh=p['mesh'],
    in_specs=tuple(specs),
    out_specs=list(p['out_specs']),
    check_vma=p.get('check_vma', True),
    **kwargs,
  )
  return [(x, None) for x in run(*args)]


def _pvary(ctx, eqn, operands):
  axes = tuple(eqn.params['axes'])
  vary = lambda part: lax.pcast(part, axes, to='varying')
  return [(jax.tree.map(vary, x), name) for x, name in operands]


def _unchanged(ctx, eqn, operands):
  # `sharding_constraint` is a hint to the partitioner: the parts of a leaf have
  # shardings of their own.
  return operands


def _stop_gradient(ctx, eqn, operands):
  return [(jax.tree.map(lax.stop_gradient, x), name) for x, name in operands]


def _barrier(ctx, eqn, operands):
  values, names = _unzip(operands)
  return list(zip(lax.optimization_barrier(values), names, strict=True))


_STRUCTURAL = {
  'pvary': _pvary,
  'sharding_constraint': _unchanged,
  'copy': _unchanged,
  'copy_p': _unchanged,
  'stop_gradient': _stop_gradient,
  'optimization_barrier': _barrier,
  'jit': _jit,
  'pjit': _jit,
  'closed_call': _call,
  'core_call': _call,
  'checkpoint': _remat,
  'remat': _remat,
  'remat2': _remat,
  'scan': _scan,
  'while': _while,
  'cond': _cond,
  'custom_jvp_call': _custom_jvp,
  'custom_vjp_call': _custom_vjp,
  'shard_map': _shard_map,
}
