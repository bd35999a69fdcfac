"""How much each expert of a mixture matters: what it adds, how often it is chosen.

    found = experts.reap(structure, apply, params, batches)
    plan = jc.select(structure, found, keep=0.5, by=[('.*', 'keep')])

Where experts go, the router chooses among the others: columns of the router go with
them, and a plan keeps as many as it takes. Layers with names of their own may keep
different numbers of experts; layers of a loop keep as many each.
"""

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.layers import cuts as cuts_lib
from jaxopt_compress.analysis.layers import flat as flat_lib
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.structure import experts as experts_lib
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib

Structure = structure_lib.Structure


def reap(
  structure: Structure, fun: Callable, params: Any, batches: Iterable[Any]
) -> dict[str, np.ndarray]:
  """The mean, over the tokens that an expert gets, of gate * ||f(x)||.

  Lasby et al. 2025 (REAP), https://arxiv.org/abs/2510.13999, section 4. An expert's
  tokens are those for which `top_k` or `argmax` gives its number; in a program that
  chooses in another way, those to which it adds something that is not zero.

  Args:
    structure: what `jc.structure` returned.
    fun: `fun(params, ...)`, a function of the same parameters.
    params: the parameters; compressed leaves count for what they stand for.
    batches: each a tuple (positional arguments after `params`), a dict (keyword
      arguments) or anything else (one argument).

  Returns:
    {group: float64 [experts], or [layers, experts] of layers of a loop}; 0 for an
    expert that no token is routed to.

  Raises:
    ValueError: no experts, no batch, or numbers that are not finite.
  """
  found = _counted(structure, fun, params, batches)
  return {
    name: x['norm'] / np.maximum(x['routed'], 1) for name, x in found.items()
  }


def frequency(
  structure: Structure, fun: Callable, params: Any, batches: Iterable[Any]
) -> dict[str, np.ndarray]:
  """The fraction of the tokens that an expert gets. As `reap`."""
  found = _counted(structure, fun, params, batches)
  return {name: x['routed'] / x['tokens'] for name, x in found.items()}


def mass(
  structure: Structure, fun: Callable, params: Any, batches: Iterable[Any]
) -> dict[str, np.ndarray]:
  """The mean probability, softmax of the router's logits. As `reap`."""
  found = _counted(structure, fun, params, batches)
  return {name: x['mass'] / x['tokens'] for name, x in found.items()}


def unreachable(
  plan: plan_lib.Plan, fun: Callable, params: Any, *args: Any, **kwargs: Any
) -> Any:
  """`plan.mask(params)`, in which the router never chooses the experts that go.

  `Plan.mask` makes experts give zero, and the router may choose them all the same.
  Weights alone keep tokens away only where something is added to what the router
  chooses by: a bias, which becomes so low that no other can be below.

  Args:
    plan: of fewer experts.
    fun: `fun(params, ...)`, a function of the parameters.
    params: the parameters.
    *args, **kwargs: further arguments of `fun`, which may be abstract.

  Returns:
    Parameters of the form of `params`: `fun` of them is that of `plan.apply(params)`.

  Raises:
    ValueError: a router has no bias.
  """
  structure, masked = plan.structure, plan.mask(params)
  closed, leaves = walk.trace(fun, params, args, kwargs)
  program = cuts_lib.Program(
    flat_lib.flatten(closed), [path for path, _ in leaves]
  )
  biases: dict[str, set[str]] = {}
  for inside in (program, *_bodies(program)):
    for name in experts_lib.groups(structure):
      site = experts_lib.site(inside, structure, name)
      if site is not None and name in plan.sources:
        paths = {inside.path[x] for x in site.biases}
        biases[name] = biases.get(name, set()) | paths
  without = [n for n in plan.sources if n in biases and not biases[n]]
  if without or not biases:
    raise ValueError(
      f'{without or list(plan.sources)}: nothing is added to what a router chooses by,'
      ' so no weights keep tokens from the experts that go. Shrink instead:'
      ' plan.apply(params).'
    )
  lowered = set().union(*biases.values())
  # Where an entry of a tree of ones becomes zero, its channel goes.
  gone = dict(
    rules_lib.named_leaves(plan.mask(jax.tree.map(jnp.ones_like, params)))
  )

  def closed_to(path, x):
    if path not in lowered:
      return x
    least = max(-1e9, float(jnp.finfo(x.dtype).min) / 2)
    return jnp.where(gone[path] == 0, jnp.asarray(least, x.dtype), x)

  return rules_lib.map_named(closed_to, masked)


# ------------------------------------------------------------------------ inside


def _bodies(program):
  """The programs of the loops of a program."""
  for step in program.flat.steps:
    inside = walk.enter(step.eqn)
    if isinstance(inside, walk.Scan):
      yield _body(program, inside, step)


def _body(outer, inside, step) -> cuts_lib.Program:
  """The program of a loop, whose parameters have the paths of what it goes through."""
  whole = inside.num_consts + inside.num_carry
  flat, paths = flat_lib.flatten(inside.body), {}
  for i, x in enumerate(step.inputs):
    leaves = outer.leaves.get(x, ()) if isinstance(x, int) else ()
    carried = inside.num_consts <= i < whole
    if len(leaves) == 1 and not carried:
      (paths[flat.inputs[i]],) = leaves
  return cuts_lib.Program(flat, paths)


def _counted(structure, fun, params, batches) -> dict[str, dict]:
  names = experts_lib.groups(structure)
  if not names:
    raise ValueError(
      'The structure has no experts: no group of weights among which the program'
      ' chooses, as by top_k. print(structure) says what keeps each group.'
    )

  @jax.jit
  def counted(params, batch):
    def run(params, *args, **kwargs):
      closed, leaves = walk.trace(fun, params, args, kwargs)
      values = array.arrays_apart(
        (params, args, kwargs), walk.is_array, array.is_compressed
      )[0]
      program = cuts_lib.Program(
        flat_lib.flatten(closed), [path for path, _ in leaves]
      )
      return _run(program, structure, list(map(array.materialize, values)))[1]

    return batches_lib.call(run, (params,), batch)

  total, number = {}, 0
  for batch in batches:
    number += 1
    for name, counts in counted(params, batch).items():
      counts = {k: _by_channel(structure, name, x) for k, x in counts.items()}
      old = total.get(name, dict.fromkeys(counts, 0.0))
      total[name] = {k: old[k] + x for k, x in counts.items()}
  return _checked(structure, names, total, number)


def _by_channel(structure, name, counts) -> np.ndarray:
  """Counts of experts [..., n] as those of a group: experts may be in groups."""
  counts = np.asarray(counts, np.float64)
  path, axis = structure.members(name)[0]
  index = structure.channels(structure.axes[path][axis], name)
  onto = np.zeros((len(index), structure.groups[name].size))
  onto[np.arange(len(index)), index] = 1
  return counts @ onto


def _checked(structure, names, total, number):
  if not number:
    raise ValueError(
      'There is no batch: an iterator that was read before is empty.'
    )
  missing = [name for name in names if name not in total]
  if missing:
    raise ValueError(
      f'The function does not use the experts {missing}, or in a loop inside of'
      ' another one.'
    )
  for name, counts in total.items():
    if not all(np.isfinite(x).all() for x in counts.values()):
      raise ValueError(
        f'{name}: what experts add is not finite. Look for where the parameters or the'
        ' data are.'
      )
    # Layers of a loop that all keep the same experts have one number for each.
    if counts['norm'].ndim > 1 and not structure.groups[name].within:
      total[name] = {k: x.sum(0) for k, x in counts.items()}
  return total


def _run(program, structure, values):
  """(results of a program, {group: counts}), loops included."""
  flat, found, by, wanted = program.flat, {}, {}, []
  sites = {}
  for name in experts_lib.groups(structure):
    site = experts_lib.site(program, structure, name)
    if site is not None:
      _, others = experts_lib.depends(program, set(site.last), site.result)
      sites[name] = site, sorted(others)
      wanted += [*others, *site.last, site.logits]
      wanted += [] if site.chosen is None else [site.chosen]
  for step in flat.steps:
    inside = walk.enter(step.eqn)
    if isinstance(inside, walk.Scan):
      by[step.outputs[0]] = _loop(program, structure, inside, found)
  outs = flat_lib.run(flat, values, [*flat.outputs, *wanted], by=by)
  known = dict(zip(wanted, outs[len(flat.outputs) :], strict=True))
  for name, (site, others) in sites.items():
    here = {x: known[x] for x in others}
    last = {x: known[x] for x in site.last}
    chosen = known.get(site.chosen)
    found[name] = _counts(
      flat, site, last, here, known[site.logits], chosen, values
    )
  return outs[: len(flat.outputs)], found


def _counts(flat, site, last, known, logits, chosen, values):
  """What each expert adds, of how many tokens, and its probabilities."""
  n = logits.shape[-1]

  def result(scales):
    scaled = {x: _along(scales, site.last[x], w) * w for x, w in last.items()}
    inputs = [
      scaled.get(x, v) for x, v in zip(flat.inputs, values, strict=True)
    ]
    (y,) = flat_lib.run(flat, inputs, [site.result], known=known)
    return y.astype(jnp.float32)

  _, added = jax.linearize(result, jnp.ones(n))

  def of_expert(one):
    norms = jnp.linalg.norm(added(one), axis=-1)
    return norms.sum(), (norms > 0).sum()

  norm, routed = lax.map(of_expert, jnp.eye(n))
  if chosen is not None:
    routed = jnp.bincount(chosen.ravel(), length=n)
  chances = jax.nn.softmax(logits.astype(jnp.float32)).reshape(-1, n)
  tokens = jnp.full((), len(chances))
  return {
    'norm': norm,
    'routed': routed,
    'mass': chances.sum(0),
    'tokens': jnp.broadcast_to(tokens, (n,)),
  }


def _along(scales, axis, w):
  """Numbers for the entries of an axis of w, counted from the end."""
  shape = [-1 if i == axis else 1 for i in range(-w.ndim, 0)]
  return scales.reshape(shape).astype(w.dtype)


def _loop(outer, structure, inside, found):
  """How a scan is run whose layers may have experts."""

  def run(step, values, read):
    whole = inside.num_consts + inside.num_carry
    program = _body(outer, inside, step)
    consts, carry = (
      values[: inside.num_consts],
      values[inside.num_consts : whole],
    )

    def turn(carry, xs):
      outs, counts = _run(program, structure, [*consts, *carry, *xs])
      return outs[: len(carry)], (outs[len(carry) :], counts)

    carry, (ys, counts) = lax.scan(
      turn,
      carry,
      values[whole:],
      length=inside.times,
      reverse=inside.reverse,
    )
    found.update(counts)
    return [*carry, *ys]

  return run
