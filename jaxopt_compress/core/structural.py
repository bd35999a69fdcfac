"""How each structural primitive of JAX is rebuilt around a compressed leaf.

A structural equation has a body: jit, remat, scan, cond, while, custom_jvp,
custom_vjp, shard_map. Its rule binds the same primitive again, through JAX's public
function, around an evaluation of the body in which the leaf is still compressed.
A few first-order primitives that mean nothing to a leaf's value are here as well.

This is the only file that knows the parameters of these primitives; they change
between releases of JAX. A primitive that is not here gets dense arrays.
"""

import jax
from jax import lax

from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import sharding


def _drop(ctx, eqn, operand, reason):
  """Materialises one operand of a structural equation, on the record."""
  x, name = operand
  if not array.is_compressed(x):
    return operand
  ctx.note(eqn, name, False, reason)
  return x.materialize(), None


def _inner(ctx, jaxpr, names, written=()):
  """A function of values that evaluates `jaxpr` and returns dense results.

  Of the results at the positions `written`, caches stay leaves.
  """
  body = _body(ctx, jaxpr, names)
  return lambda *args: [
    x if i in written and _is_written(x) else array.materialize(x)
    for i, x in enumerate(body(*args))
  ]


def _body(ctx, jaxpr, names):
  """A function of values that evaluates `jaxpr`; its results may be leaves."""
  jaxpr, consts = _open(jaxpr)
  scope = ctx.scope  # a derivative calls it when the evaluation is elsewhere

  def run(*args):
    with ctx.within(scope):
      return [x for x, _ in jaxprs.run(ctx, jaxpr, consts, args, names)]

  return run


def _inner_apart(ctx, jaxpr, names, written=()):
  """`_inner`, returning (results, what rules found out in the body)."""
  return ctx.apart(_inner(ctx, jaxpr, names, written))


def _is_written(x) -> bool:
  return array.is_compressed(x) and x.writable


def _written(ctx, jaxpr, args, names, places, n_whole=None) -> set[int]:
  """The results of a loop's body that are caches in the form in which they came.

  Args:
    ctx: the rules; nothing is recorded.
    jaxpr: the body.
    args, names: its arguments.
    places: {position of a result: that of the argument}, of those to look at.
    n_whole: how many arguments come whole; the loop cuts the others along their
      first axis.
  """
  places = {i: j for i, j in places.items() if _is_written(args[j])}
  quiet = jaxprs.Context(ctx.rule_for, claims_for=ctx.claims_for)
  while places:

    def turn(*args, places=tuple(places)):
      cut = jax.tree.map(lambda p: p[0], args[n_whole:] if n_whole else ())
      run = _inner(quiet, jaxpr, names, places)
      return run(*args[:n_whole], *cut)

    outs = jax.eval_shape(turn, *args)
    changed = {i: j for i, j in places.items() if not _alike(outs[i], args[j])}
    if not changed:
      break
    args = [
      array.materialize(x) if j in changed.values() else x
      for j, x in enumerate(args)
    ]
    places = {i: j for i, j in places.items() if i not in changed}
  return set(places)


def _alike(a, b) -> bool:
  """Whether two leaves have the same fields and arrays of the same shapes."""
  shapes = [[c.shape for c in jax.tree.leaves(x)] for x in (a, b)]
  return jax.tree.structure(a) == jax.tree.structure(b) and (
    shapes[0] == shapes[1]
  )


def _unzip(operands):
  return [x for x, _ in operands], [name for _, name in operands]


def _open(jaxpr):
  """The equations and the constants of a jaxpr, closed or not."""
  return getattr(jaxpr, 'jaxpr', jaxpr), getattr(jaxpr, 'consts', ())


def _jit(ctx, eqn, operands):
  closed = eqn.params['jaxpr']
  args, names = _unzip(operands)
  ins, outs = (eqn.params.get(k) for k in ('in_shardings', 'out_shardings'))
  if ctx.inline:
    args = _constrain(args, ins)
    found = jaxprs.run(ctx, closed.jaxpr, closed.consts, args, names)
    values, names = _unzip(found)
    return list(zip(_constrain(values, outs), names, strict=True))
  # One jitted function for each shared body, so that JAX's own cache sees the
  # second call of the same block as it would without us.
  key = id(closed), ctx.scope
  if key not in ctx.jits:
    body = _body(ctx, closed, [None] * len(args))
    run = lambda *args: _constrain(body(*_constrain(args, ins)), outs)
    run.__name__ = run.__qualname__ = eqn.params.get('name', 'jit')
    inline = eqn.params.get('inline', False)
    ctx.jits[key] = closed, jax.jit(run, inline=inline)
  return [(x, None) for x in ctx.jits[key][1](*args)]


def _constrain(values, shardings):
  """Keeps the shardings that a jit inside the model asks of dense values."""
  return [
    lax.with_sharding_constraint(x, s)
    if isinstance(s, jax.sharding.Sharding) and not array.is_compressed(x)
    else x
    for x, s in zip(values, shardings or [None] * len(values), strict=True)
  ]


def _call(ctx, eqn, operands):
  closed = eqn.params.get('call_jaxpr', eqn.params.get('jaxpr'))
  if closed is None:
    return NotImplemented
  return _in_place(ctx, closed, operands)


def _in_place(ctx, jaxpr, operands):
  jaxpr, consts = _open(jaxpr)
  args, names = _unzip(operands)
  return jaxprs.run(ctx, jaxpr, consts, args, names)


def _remat(ctx, eqn, operands):
  if ctx.monoids:  # what is observed is not differentiated
    return _in_place(ctx, eqn.params['jaxpr'], operands)
  args, names = _unzip(operands)
  if eqn.params.get('differentiated') and eqn.params['prevent_cse']:
    # The recomputation of a gradient: what keeps XLA from merging it with the
    # forward pass is added when it is lowered, which `jax.checkpoint` undoes.
    args = lax.optimization_barrier(args)
  run = jax.checkpoint(
    _inner(ctx, eqn.params['jaxpr'], names, range(len(eqn.outvars))),
    prevent_cse=eqn.params['prevent_cse'],
    policy=eqn.params['policy'],
  )
  return [(x, None) for x in run(*args)]


def _scan(ctx, eqn, operands):
  p = eqn.params
  closed, (n_consts, n_carry) = p['jaxpr'], scan_counts(p)
  jaxpr = closed.jaxpr
  consts, carry, xs = _split(operands, n_consts, n_carry)
  kept = [
    jaxprs.is_var(out) and out is jaxpr.invars[n_consts + i]
    for i, out in enumerate(jaxpr.outvars[:n_carry])
  ]
  xs = [
    x
    if _sliceable(x[0], p['length'])
    else _drop(ctx, eqn, x, 'not all its parts have the scanned axis')
    for x in xs
  ]
  args, names = _unzip(consts + carry + xs)
  changed = [i for i, keep in enumerate(kept) if not keep]
  places = {i: n_consts + i for i in changed if p['length']}
  n_whole = n_consts + n_carry
  written = _written(ctx, closed, args, names, places, n_whole)
  carry = [
    c if keep or i in written else _drop(ctx, eqn, c, 'the loop changes it')
    for i, (c, keep) in enumerate(zip(carry, kept, strict=True))
  ]
  args, names = _unzip(consts + carry + xs)
  if ctx.handler_at is None and not any(map(array.is_compressed, args)):
    return [(x, None) for x in jaxprs.run_dense(eqn, args)]
  results = {*written, *range(n_carry, len(jaxpr.outvars))}
  run = _inner_apart(ctx, closed, names, results)
  init, rebuild = _loop_state(args[n_consts : n_consts + n_carry], written)

  def body(state, xs):
    outs, found = run(*args[:n_consts], *rebuild(state), *xs)
    return _state_of(outs, init), (outs[n_carry:], found)

  state, (ys, found) = lax.scan(
    body,
    init,
    args[n_consts + n_carry :],
    length=p['length'],
    reverse=p['reverse'],
    unroll=p['unroll'],
  )
  # Leaves that the loop cuts keep what was found about each of their slices.
  sliced = set(names[n_consts + n_carry :])
  ctx.give(
    {
      name: value if name in sliced else _over(ctx.monoids[name], value)
      for name, value in found.items()
    }
  )
  last = zip(rebuild(state), names[n_consts : n_consts + n_carry], strict=True)
  return [*last, *((y, None) for y in ys)]


def _over(monoid, stacked):
  """The findings of all turns of a loop as one."""
  first = jax.tree.map(lambda x: x[0], stacked)
  rest = jax.tree.map(lambda x: x[1:], stacked)
  return lax.scan(lambda a, b: (monoid.merge(a, b), None), first, rest)[0]


def scan_counts(params):
  """How many constants and carried values a scan has."""
  if 'num_consts' in params:
    return params['num_consts'], params['num_carry']
  consts, carry, _ = params['ft_in'].unpack()  # from jax 0.11 on
  return len(consts), len(carry)


def _while(ctx, eqn, operands):
  p = eqn.params
  cond, body = p['cond_jaxpr'], p['body_jaxpr']
  cond_consts, body_consts, carry = _split(
    operands, p['cond_nconsts'], p['body_nconsts']
  )
  n = p['body_nconsts']
  kept = [
    jaxprs.is_var(out) and out is body.jaxpr.invars[n + i]
    for i, out in enumerate(body.jaxpr.outvars)
  ]
  args, names = _unzip(body_consts + carry)
  places = {i: n + i for i, keep in enumerate(kept) if not keep}
  written = _written(ctx, body, args, names, places)
  carry = [
    c if keep or i in written else _drop(ctx, eqn, c, 'the loop changes it')
    for i, (c, keep) in enumerate(zip(carry, kept, strict=True))
  ]
  all_operands = cond_consts + body_consts + carry
  all_args, _ = _unzip(all_operands)
  if ctx.handler_at is None and not any(map(array.is_compressed, all_args)):
    return [(x, None) for x in jaxprs.run_dense(eqn, all_args)]
  cond_args, cond_names = _unzip(cond_consts)
  body_args, body_names = _unzip(body_consts)
  carry_args, carry_names = _unzip(carry)
  # A condition computes no layer; what is found in it is left.
  test = _inner_apart(ctx, cond, cond_names + carry_names)
  step = _inner_apart(ctx, body, body_names + carry_names, written)
  init, rebuild = _loop_state(carry_args, written)

  def turn(carried):
    state, found = carried
    outs, more = step(*body_args, *rebuild(state))
    merged = {n: ctx.monoids[n].merge(found[n], more[n]) for n in more}
    return _state_of(outs, init), merged

  _, shapes = jax.eval_shape(lambda s: step(*body_args, *rebuild(s)), init)
  nothing = {n: ctx.monoids[n].empty(like) for n, like in shapes.items()}
  state, found = lax.while_loop(
    lambda carried: test(*cond_args, *rebuild(carried[0]))[0][0],
    turn,
    (init, nothing),
  )
  ctx.give(found)
  return list(zip(rebuild(state), carry_names, strict=True))


def _split(operands, n_first, n_second):
  operands = list(operands)
  cut = n_first + n_second
  return operands[:n_first], operands[n_first:cut], operands[cut:]


def _loop_state(values, written):
  """Takes compressed leaves that do not change out of a loop's carry.

  Returns the carry, a dict of the others by position, and the function that
  puts the leaves back.
  """
  state = {
    i: x
    for i, x in enumerate(values)
    if i in written or not array.is_compressed(x)
  }
  return state, lambda state: [state.get(i, x) for i, x in enumerate(values)]


def _state_of(outs, like):
  """What of a body's results is the carry, of the positions that `like` has."""
  return {i: outs[i] for i in like}


def _sliceable(x, length) -> bool:
  if not array.is_compressed(x):
    return True
  stacked = all(c.shape[:1] == (length,) for c in array.children(x))
  return stacked and x.can_cut(-x.ndim, 1)


def _cond(ctx, eqn, operands):
  index, *rest = operands
  args, names = _unzip(rest)
  written = _written_by_all(ctx, eqn.params['branches'], args, names)
  branches = [
    _inner_apart(ctx, b, names, written) for b in eqn.params['branches']
  ]
  branches = _complete(ctx, branches, args)
  (index, _) = _drop(ctx, eqn, index, 'it chooses the branch')
  platforms = eqn.params.get('branches_platforms')
  if platforms is not None:  # of lax.platform_dependent; None is its default
    pairs = list(zip(platforms, branches, strict=True))
    by_name = {name: f for names, f in pairs for name in names or ['default']}
    outs, found = lax.platform_dependent(*args, **by_name)
  else:
    outs, found = lax.switch(index, branches, *args)
  ctx.give(found)
  return [(x, None) for x in outs]


def _written_by_all(ctx, branches, args, names) -> set[int]:
  """The results that all branches give as caches of one form."""
  if not any(map(_is_written, args)):
    return set()
  quiet = jaxprs.Context(ctx.rule_for, claims_for=ctx.claims_for)
  everything = range(len(branches[0].out_avals))
  outs = [
    jax.eval_shape(_inner(quiet, b, names, everything), *args) for b in branches
  ]
  return {
    i
    for i, each in enumerate(zip(*outs, strict=True))
    if all(_is_written(x) and _alike(x, each[0]) for x in each)
  }


def _complete(ctx, branches, args):
  """Branches that all find out about the same leaves: nothing, if need be."""
  if not ctx.monoids:
    return branches
  shapes = {}
  for branch in branches:
    shapes |= jax.eval_shape(branch, *args)[1]

  def complete(branch):
    def run(*args):
      outs, found = branch(*args)
      nothing = {n: ctx.monoids[n].empty(like) for n, like in shapes.items()}
      return outs, {**nothing, **found}

    return run

  return [complete(branch) for branch in branches]


def _custom_jvp(ctx, eqn, operands):
  closed = eqn.params['call_jaxpr']
  if ctx.monoids:
    return _in_place(ctx, closed, operands)
  args, names = _unzip(operands)
  run = jax.custom_jvp(_inner(ctx, closed, names))

  @run.defjvp
  def _(primals, tangents):
    dense = lambda *xs: jaxprs.run_dense(eqn, jaxprs.materialized(xs))
    return run(*primals), jax.jvp(dense, primals, tangents)[1]

  return [(x, None) for x in run(*args)]


def _custom_vjp(ctx, eqn, operands):
  closed = eqn.params['call_jaxpr']
  if ctx.monoids:
    return _in_place(ctx, closed, operands)
  args, names = _unzip(operands)
  run = jax.custom_vjp(_inner(ctx, closed, names))
  dense = lambda *xs: jaxprs.run_dense(eqn, jaxprs.materialized(xs))
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
      x = ctx.placed(x, spec)
      leaf_spec = sharding.leaf_specs(x, spec, p['mesh'], v.aval.shape)
      if leaf_spec is None:
        reason = f'its parts cannot be cut as {spec} cuts the array'
        x, name = _drop(ctx, eqn, (x, name), reason)
      else:
        spec = leaf_spec
    placed.append((x, name))
    specs.append(spec)
  args, names = _unzip(placed)
  dense = [not array.is_compressed(x) for x in args]
  kwargs = {}
  if 'newly_manual_axes' in p:
    kwargs['axis_names'] = set(p['newly_manual_axes'])
  checked = p.get('check_vma', True)
  inner = _inner_apart(ctx, p['jaxpr'], names)

  def body(*args):
    outs, found = inner(*args)
    return outs, {
      name: ctx.monoids[name].all_reduce(
        value,
        _varying(value) if checked else _cut_along(p['in_specs'], dense),
        checked,
      )
      for name, value in found.items()
    }

  run = jax.shard_map(
    body,
    mesh=p['mesh'],
    in_specs=tuple(specs),
    out_specs=(list(p['out_specs']), jax.P()),
    check_vma=checked,
    **kwargs,
  )
  outs, found = run(*args)
  ctx.give(found)
  return [(x, None) for x in outs]


def _varying(tree) -> tuple[str, ...]:
  """The manual axes along which devices have different values."""
  axes = [jaxprs.varying(jax.typeof(x)) for x in jax.tree.leaves(tree)]
  return tuple(sorted(set().union(*axes)))


def _cut_along(specs, dense) -> tuple[str, ...]:
  """The mesh axes along which the data of a `shard_map` is cut."""
  kinds = set()
  for spec, is_data in zip(specs, dense, strict=True):
    names = [n if isinstance(n, tuple) else (n,) for n in spec if n is not None]
    if is_data and names:
      kinds.add(frozenset(sum(names, ())))
  if len(kinds) > 1:
    raise ValueError(
      'A shard_map with check_vma=False does not tell along which mesh axes a'
      f' value differs, and its arguments are cut in several ways: {specs}. What'
      ' weights meet cannot be merged over devices. Observe it with'
      ' check_vma=True, or without the shard_map.'
    )
  return tuple(sorted(kinds.pop())) if kinds else ()


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


jaxprs.STRUCTURAL.update(
  {
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
)
