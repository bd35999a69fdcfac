"""How each structural primitive of JAX is rebuilt around a compressed leaf.

A structural equation has a body: jit, remat, scan, cond, while, custom_jvp,
custom_vjp, shard_map. Its rule binds the same primitive again, through JAX's public
function, around an evaluation of the body in which the leaf is still compressed.
A few first-order primitives that mean nothing to a leaf's value are here as well.

This file knows the parameters of these primitives, for running them, as
`analysis/walk.py` does for asking; they change between releases of JAX. A primitive
that is not in `RULES` gets dense arrays.
"""

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import bodies
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import sharding


def _jit(ctx, eqn, operands):
  closed = eqn.params['jaxpr']
  args, names = bodies.unzip(operands)
  ins, outs = (eqn.params.get(k) for k in ('in_shardings', 'out_shardings'))
  if ctx.inline:
    args = _constrain(args, ins)
    inside = zip(args, names, strict=True)
    values, names = bodies.unzip(bodies.in_place(ctx, closed, inside))
    return list(zip(_constrain(values, outs), names, strict=True))
  # One jitted function for each shared body, so that JAX's own cache sees the
  # second call of the same block as it would without us.
  key = id(closed), ctx.scope
  if key not in ctx.jits:
    everything = range(len(eqn.outvars))
    body = bodies.dense(ctx, eqn, closed, [None] * len(args), everything)

    def run(*args):
      return _constrain(body(*_constrain(args, ins)), outs)

    run.__name__ = run.__qualname__ = eqn.params.get('name', 'jit')
    inline = eqn.params.get('inline', False)
    ctx.jits[key] = closed, jax.jit(run, inline=inline)
  return [(x, None) for x in ctx.jits[key][1](*args)]


def plain_body(eqn):
  """The body of a jit that says nothing of shardings or buffers; else None."""
  p = eqn.params
  if eqn.primitive.name != 'jit' or any(p.get('donated_invars', ())):
    return None
  places = *p.get('in_shardings', ()), *p.get('out_shardings', ())
  if p['jaxpr'].consts or any(
    isinstance(s, jax.sharding.Sharding) for s in places
  ):
    return None
  return p['jaxpr'].jaxpr


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
  return bodies.in_place(ctx, closed, operands)


def _remat(ctx, eqn, operands):
  if ctx.monoids:  # what is observed is not differentiated
    return bodies.in_place(ctx, eqn.params['jaxpr'], operands)
  args, names = bodies.unzip(operands)
  if eqn.params.get('differentiated') and eqn.params['prevent_cse']:
    # The recomputation of a gradient: what keeps XLA from merging it with the
    # forward pass is added when it is lowered, which `jax.checkpoint` undoes.
    args = lax.optimization_barrier(args)
  run = jax.checkpoint(
    bodies.dense(ctx, eqn, eqn.params['jaxpr'], names, range(len(eqn.outvars))),
    prevent_cse=eqn.params['prevent_cse'],
    policy=eqn.params['policy'],
  )
  return [(x, None) for x in run(*args)]


def _scan(ctx, eqn, operands):
  p = eqn.params
  closed, (n_consts, n_carry) = p['jaxpr'], scan_counts(p)
  n_whole = n_consts + n_carry
  xs = [
    x
    if bodies.sliceable(x[0], p['length'])
    else bodies.drop(ctx, eqn, x, 'not all its parts have the scanned axis')
    for x in operands[n_whole:]
  ]
  operands, written = bodies.settled(
    ctx,
    eqn,
    closed,
    [*operands[:n_whole], *xs],
    n_consts,
    n_carry,
    n_whole,
    turns=p['length'] > 0,
  )
  args, names = bodies.unzip(operands)
  if ctx.handler_at is None and not any(map(array.is_compressed, args)):
    return [(x, None) for x in jaxprs.run_dense(eqn, args)]
  consts, carry, xs = _split(args, n_consts, n_carry)
  # Results of each turn may be leaves: a scan stacks their parts.
  results = {*written, *range(n_carry, len(eqn.outvars))}
  run = bodies.apart(ctx, eqn, closed, names, results)
  init, rebuild = bodies.carried(carry, written)

  turns, cut = _entries(xs, p['length'])

  def body(state, xs):
    outs, found = run(*consts, *rebuild(state), *cut(xs))
    ys = [y.apart() if array.is_compressed(y) else y for y in outs[n_carry:]]
    return {i: outs[i] for i in init}, (ys, found)

  state, (ys, found) = lax.scan(
    body,
    init,
    turns,
    # A length that is left open in an export is that of what the loop cuts.
    length=None if xs else p['length'],
    reverse=p['reverse'],
    unroll=p['unroll'],
  )
  # Leaves that the loop cuts keep what was found about each of their slices.
  sliced = set(names[n_whole:])
  ctx.give(
    {
      name: value if name in sliced else bodies.over(ctx.monoids[name], value)
      for name, value in found.items()
    }
  )
  last = zip(rebuild(state), names[n_consts:n_whole], strict=True)
  return [*last, *((y, None) for y in ys)]


def _entries(xs, length):
  """What a scan loops over, and a function from one turn's to the entries of `xs`.

  Leaves that can be read where they lie stay outside; the loop counts for them.
  """
  whole = {i: x for i, x in enumerate(xs) if getattr(x, 'indexed', False)}
  if not whole or not isinstance(length, int):
    return xs, lambda xs: xs
  others = [None if i in whole else x for i, x in enumerate(xs)]

  def cut(turn):
    index, xs = turn
    entries = {i: x.entry(index) for i, x in whole.items()}
    return [entries.get(i, x) for i, x in enumerate(xs)]

  return (lax.iota(jnp.int32, length), others), cut


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
  n_consts = len(body_consts)
  inner, written = bodies.settled(
    ctx, eqn, body, body_consts + carry, n_consts, len(carry)
  )
  args, names = bodies.unzip(inner)
  cond_args, cond_names = bodies.unzip(cond_consts)
  all_args = cond_args + args
  if ctx.handler_at is None and not any(map(array.is_compressed, all_args)):
    return [(x, None) for x in jaxprs.run_dense(eqn, all_args)]
  body_args, carry_args = args[:n_consts], args[n_consts:]
  carry_names = names[n_consts:]
  # A condition computes no layer; what is found in it is left.
  test = bodies.apart(ctx, eqn, cond, cond_names + carry_names)
  step = bodies.apart(ctx, eqn, body, names, written)
  init, rebuild = bodies.carried(carry_args, written)

  def turn(carried):
    state, found = carried
    outs, more = step(*body_args, *rebuild(state))
    merged = {n: ctx.monoids[n].merge(found[n], more[n]) for n in more}
    return {i: outs[i] for i in init}, merged

  # The carry needs a first value, also of what the first turn finds.
  _, shapes = jax.eval_shape(lambda s: step(*body_args, *rebuild(s)), init)
  state, found = lax.while_loop(
    lambda carried: test(*cond_args, *rebuild(carried[0]))[0][0],
    turn,
    (init, bodies.empty(ctx, shapes)),
  )
  ctx.give(found)
  return list(zip(rebuild(state), carry_names, strict=True))


def _split(operands, n_first, n_second):
  operands = list(operands)
  cut = n_first + n_second
  return operands[:n_first], operands[n_first:cut], operands[cut:]


def _cond(ctx, eqn, operands):
  index, *rest = operands
  args, names = bodies.unzip(rest)
  kept = bodies.kept_by_all(ctx, eqn.params['branches'], args, names)
  branches = [
    _whole_results(bodies.apart(ctx, eqn, b, names, kept))
    for b in eqn.params['branches']
  ]
  # All branches must return the same tree.
  branches = bodies.complete(ctx, branches, args)
  (index, _) = bodies.drop(ctx, eqn, index, 'it chooses the branch')
  platforms = eqn.params.get('branches_platforms')
  if platforms is not None:  # of lax.platform_dependent; None is its default
    pairs = list(zip(platforms, branches, strict=True))
    by_name = {name: f for names, f in pairs for name in names or ['default']}
    outs, found = lax.platform_dependent(*args, **by_name)
  else:
    outs, found = lax.switch(index, branches, *args)
  ctx.give(found)
  return [(x, kept.get(i)) for i, x in enumerate(outs)]


def _whole_results(branch):
  """A branch whose leaves hold no stack that they are a layer of: it would be copied."""

  def run(*args):
    outs, found = branch(*args)
    return [y.apart() if array.is_compressed(y) else y for y in outs], found

  return run


def _custom_jvp(ctx, eqn, operands):
  closed = eqn.params['call_jaxpr']
  if ctx.monoids:
    return bodies.in_place(ctx, closed, operands)
  args, names = bodies.unzip(operands)
  run = jax.custom_jvp(bodies.dense(ctx, eqn, closed, names))

  @run.defjvp
  def derivative(primals, tangents):
    # The rule of the model, which belongs to the dense function.
    _, out = jax.jvp(_as_it_was(eqn), primals, tangents)
    return run(*primals), out

  return [(x, None) for x in run(*args)]


def _as_it_was(eqn):
  """An equation as a function of arrays and leaves."""

  def run_dense(*values):
    return jaxprs.run_dense(eqn, array.materialize(values))

  return run_dense


def _custom_vjp(ctx, eqn, operands):
  closed = eqn.params['call_jaxpr']
  if ctx.monoids:
    return bodies.in_place(ctx, closed, operands)
  args, names = bodies.unzip(operands)
  run = jax.custom_vjp(bodies.dense(ctx, eqn, closed, names))

  def forward(*values):
    return run(*values), jax.vjp(_as_it_was(eqn), *values)[1]

  run.defvjp(forward, lambda pullback, cotangents: pullback(cotangents))
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
      x = ctx.placed(x.apart(), spec)
      leaf_spec = sharding.leaf_specs(x, spec, p['mesh'], v.aval.shape)
      if leaf_spec is None:
        reason = f'its parts cannot be cut as {spec} cuts the array'
        x, name = bodies.drop(ctx, eqn, (x, name), reason)
      else:
        spec = leaf_spec
    placed.append((x, name))
    specs.append(spec)
  args, names = bodies.unzip(placed)
  dense = [not array.is_compressed(x) for x in args]
  kwargs = {}
  if 'newly_manual_axes' in p:
    kwargs['axis_names'] = set(p['newly_manual_axes'])
  checked = p.get('check_vma', True)
  inner = bodies.apart(ctx, eqn, p['jaxpr'], names)

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
    # What was found is the same everywhere once it is reduced.
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
  return [
    (jax.tree.map(lambda part: lax.pcast(part, axes, to='varying'), x), name)
    for x, name in operands
  ]


def _unchanged(ctx, eqn, operands):
  # `sharding_constraint` is a hint to the partitioner: the parts of a leaf have
  # shardings of their own.
  return operands


def _stop_gradient(ctx, eqn, operands):
  return [(jax.tree.map(lax.stop_gradient, x), name) for x, name in operands]


def _barrier(ctx, eqn, operands):
  values, names = bodies.unzip(operands)
  return list(zip(lax.optimization_barrier(values), names, strict=True))


RULES = {
  'pvary': _pvary,
  'sharding_constraint': _unchanged,
  'copy': _unchanged,
  'stop_gradient': _stop_gradient,
  'optimization_barrier': _barrier,
  'jit': _jit,
  'closed_call': _call,
  'core_call': _call,
  'checkpoint': _remat,
  'remat2': _remat,
  'scan': _scan,
  'while': _while,
  'cond': _cond,
  'custom_jvp_call': _custom_jvp,
  'custom_vjp_call': _custom_vjp,
  'shard_map': _shard_map,
}
