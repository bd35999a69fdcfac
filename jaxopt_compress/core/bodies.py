"""Bodies of loops and branches as functions, and which leaves go in and come out.

A body is evaluated under a JAX transform: `scan`, `while_loop`, `switch`. What goes
around a loop must come back in the form in which it went in. So of the leaves among
its carried values

  one that the body returns untouched is taken out of the carry and put back after;
  one that programs write to (`writable`: a cache) stays a leaf, if it comes back in
  its own form; any other that the loop changes is materialised.

Nothing here knows the parameters of the primitives; `structural` does.
"""

import jax
from jax import lax

from jaxopt_compress.core import array
from jaxopt_compress.core import interpret
from jaxopt_compress.core import jaxprs


def unzip(operands):
  """The values and the names of [(value, name)]."""
  operands = list(operands)
  return [x for x, _ in operands], [name for _, name in operands]


def drop(ctx, eqn, operand, reason):
  """Materialises one operand of a structural equation, on the record."""
  x, name = operand
  if not array.is_compressed(x):
    return operand
  ctx.note(eqn, name, False, reason)
  return x.materialize(), None


def in_place(ctx, jaxpr, operands):
  """Evaluates a body under no transform: [(value, name)]."""
  jaxpr, consts = jaxprs.opened(jaxpr)
  args, names = unzip(operands)
  return interpret.run(ctx, jaxpr, consts, args, names)


def dense(ctx, eqn, jaxpr, names, kept=()):
  """A function of values that evaluates `jaxpr`, the body of an equation.

  Its results are dense, but for leaves at the positions `kept`.
  """
  scope = ctx.scope  # a derivative calls it when the evaluation is elsewhere

  def body(*args):
    with ctx.within(scope):
      outs = in_place(ctx, jaxpr, zip(args, names, strict=True))
      return [
        (out if i in kept else drop(ctx, eqn, out, 'it is a result there'))[0]
        for i, out in enumerate(outs)
      ]

  return body


def apart(ctx, eqn, jaxpr, names, kept=()):
  """`dense`, returning (results, what rules found out in the body)."""
  return ctx.apart(dense(ctx, eqn, jaxpr, names, kept))


# ------------------------------------------------------------------- what stays


def _alike(a, b) -> bool:
  """Whether two leaves have the same fields and arrays of the same types."""
  # Structures hold the static fields of leaves, and no types.
  types = [[(c.shape, c.dtype) for c in jax.tree.leaves(x)] for x in (a, b)]
  structures = [jax.tree.structure(x) for x in (a, b)]
  return structures[0] == structures[1] and types[0] == types[1]


def settled(
  ctx, eqn, jaxpr, operands, n_consts, n_carry, n_whole=None, turns=True
):
  """The operands of a loop's body, and which carried leaves the loop may write.

  Args:
    ctx: the rules.
    eqn: the loop, for the record.
    jaxpr: its body.
    operands: [(value, name)]: constants, carried values, and what the loop cuts.
    n_consts, n_carry: how many constants and carried values there are.
    n_whole: as for `written`.
    turns: whether the loop has any: else nothing can be written.

  Returns:
    (operands, written): carried leaves that neither come back untouched nor are
    written are dense; `written` are positions in the carry.
  """
  inner, _ = jaxprs.opened(jaxpr)
  changed = [
    i
    for i, out in enumerate(inner.outvars[:n_carry])
    if not (jaxprs.is_var(out) and out is inner.invars[n_consts + i])
  ]
  args, names = unzip(operands)
  places = {i: n_consts + i for i in changed if turns}
  stay = written(ctx, jaxpr, args, names, places, n_whole)
  operands = list(operands)
  for at in (n_consts + i for i in changed if i not in stay):
    operands[at] = drop(ctx, eqn, operands[at], 'the loop changes it')
  return operands, stay


def written(ctx, jaxpr, args, names, places, n_whole=None) -> set[int]:
  """The results of a loop's body that are caches in the form in which they came.

  To materialise one cache may change the form of another, so the body is traced
  again until the rest stays.

  Args:
    ctx: the rules; nothing is recorded.
    jaxpr: the body.
    args, names: its arguments.
    places: {position of a result: that of the argument}, of those to look at.
    n_whole: how many arguments come whole; the loop cuts the others along their
      first axis.
  """
  places = {
    i: j for i, j in places.items() if getattr(args[j], 'writable', False)
  }
  while places:

    def turn(*args, places=tuple(places)):
      # As in a scan, of what it cuts the body sees one slice.
      cut = jax.tree.map(lambda p: p[0], args[n_whole:] if n_whole else ())
      here = zip([*args[:n_whole], *cut], names, strict=True)
      return unzip(in_place(ctx.quiet(), jaxpr, here))[0]

    outs, _ = jax.eval_shape(ctx.apart(turn), *args)
    changed = {i: j for i, j in places.items() if not _alike(outs[i], args[j])}
    if not changed:
      break
    args = [
      array.materialize(x) if j in changed.values() else x
      for j, x in enumerate(args)
    ]
    places = {i: j for i, j in places.items() if i not in changed}
  return set(places)


def kept_by_all(ctx, branches, args, names) -> dict[int, str | None]:
  """The results that all branches give as leaves of one form, and their names."""
  if not any(map(array.is_compressed, args)):
    return {}
  given = []

  def trial(*args):
    operands = list(zip(args, names, strict=True))
    outs = [unzip(in_place(ctx.quiet(), b, operands)) for b in branches]
    given.extend(outs[0][1])
    return [values for values, _ in outs]

  outs, _ = jax.eval_shape(ctx.apart(trial), *args)
  alternatives = zip(*outs, strict=True)
  return {
    i: given[i]
    for i, each in enumerate(alternatives)
    if all(array.is_compressed(x) and _alike(x, each[0]) for x in each)
  }


def carried(values, written):
  """Takes compressed leaves that do not change out of a loop's carry.

  Returns the carry, a dict of the others by position, and the function that
  puts the leaves back.
  """
  # By position, so that what is left out moves no other value.
  state = {
    i: x
    for i, x in enumerate(values)
    if i in written or not array.is_compressed(x)
  }
  return state, lambda state: [state.get(i, x) for i, x in enumerate(values)]


def sliceable(x, length) -> bool:
  """Whether a scan of a length can cut a value along its first axis."""
  if not array.is_compressed(x):
    return True
  # A scan cuts the parts of a leaf, each along its own first axis.
  stacked = all(c.shape[:1] == (length,) for c in jax.tree.leaves(x))
  return stacked and x.can_cut(-x.ndim, 1)


# --------------------------------------------------------------- what was found


def over(monoid, stacked):
  """The findings of all turns of a loop as one."""
  # A scan stacks what each turn returns along a new first axis; there may be none.
  none = monoid.empty(jax.tree.map(lambda x: x.sum(0), stacked))
  return lax.scan(lambda a, b: (monoid.merge(a, b), None), none, stacked)[0]


def empty(ctx, shapes):
  """The findings of nothing, like those of the given shapes."""
  return {n: ctx.monoids[n].empty(like) for n, like in shapes.items()}


def complete(ctx, branches, args):
  """Branches that all find out about the same leaves: nothing, if need be."""
  if not ctx.monoids:
    return branches
  shapes = {}
  for branch in branches:
    shapes |= jax.eval_shape(branch, *args)[1]

  def completed(branch):
    def run(*args):
      outs, found = branch(*args)
      return outs, {**empty(ctx, shapes), **found}

    return run

  return [completed(branch) for branch in branches]
