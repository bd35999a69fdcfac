"""Intermediate values by name, from the program: no model is edited.

    y, found = jc.features(apply, [(r'blocks/\\d+/mlp/down/kernel', ...)])(params, x)

`values` says which names there are, and `feature_names(apply)(params, x)` lists them.
The program is run with these values as further results: what has them inside, a jit,
a remat or a scan, is built again around a body that returns them, and everything else
runs as it was. So a value of a remat is saved, and the rest recomputed as before;
those of a scan are stacked along its layers. Under `jax.jit`, what no result needs is
not computed.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax

from jaxopt_compress.analysis import extended
from jaxopt_compress.analysis import values as values_lib
from jaxopt_compress.analysis import walk
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib


def features(fun: Callable, rules: Any) -> Callable[..., tuple[Any, dict]]:
  """Returns intermediate values of `fun` beside its result.

  Leaves may be compressed: they compute as under `lift`. The values can be
  differentiated, by parameters as by inputs. Each call traces anew, so wrap the result
  in `jax.jit`.

  Args:
    fun: a function of parameters and further arguments.
    rules: ordered `(regex, what)` over whole names; the first that matches a name
      takes it. `what` is `...` for the value, None to leave it, or, of a value in a
      scan, the number of a layer (from the end if negative), for that layer alone.
      Names that no rule matches are left.

  Returns:
    A function of the same arguments that returns `(fun(...), {name: value})`. Values of
    a scan have the layers as first axis; those of a
    shard_map an axis of the devices on which they differ, in the order of the mesh.

  Raises:
    ValueError: a rule that takes nothing, or what cannot be taken: of a branch, of a
      while loop, of the inside of a function with a derivative of its own; a layer
      that is not there.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: jnp.tanh(x @ p['w']).sum()
  >>> params, x = {'w': jnp.ones((2, 3))}, jnp.ones((1, 2))
  >>> y, found = features(f, [('w', ...)])(params, x)
  >>> found['w']
  Array([[2., 2., 2.]], dtype=float32)
  """
  pairs = rules_lib.compiled_rules(rules)

  @functools.wraps(fun)
  def with_features(params, *args, **kwargs):
    def run(params, *args, **kwargs):
      return _run(fun, pairs, params, args, kwargs)

    return lift.lift(run)(params, *args, **kwargs)

  return with_features


def feature_names(fun: Callable) -> Callable[..., dict]:
  """What rules of `features` match.

  Returns:
    A function of the same arguments as `fun` that returns {name: `values.Feature`},
    its shape, dtype and layers, in program order. Nothing is computed: arguments may be abstract.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: jnp.tanh(x @ p['w']).sum()
  >>> params, x = {'w': jnp.ones((2, 3))}, jnp.ones((1, 2))
  >>> list(feature_names(f)(params, x))
  ['w', 'tanh', 'reduce_sum']
  """

  def listed(params, *args, **kwargs):
    closed, leaves = walk.trace(fun, params, args, kwargs)
    named = values_lib.named(closed, [path for path, _ in leaves])
    return {
      name: values_lib.described(made)
      for name, made in named.items()
      if not values_lib.refused(made)
    }

  return listed


def _run(fun, pairs, params, args, kwargs):
  """(result, values) of a function of arrays."""
  tree = (params, *args), kwargs
  arrays, refill = array.arrays_apart(tree, walk.is_array)
  closed, out_tree = lift.trace(fun, refill, *arrays)
  paths = [p for p, x in rules_lib.named_leaves(params) if walk.is_array(x)]
  chosen = _chosen(pairs, values_lib.named(closed, paths))
  # Of a layer by its number the scan is run by ourselves, to stop behind it.
  made = {
    name: values_lib.outermost(m, through_scans=what is ...)
    for name, (m, what) in chosen.items()
  }
  wanted = {}
  for name, (_, what) in chosen.items():
    m = made[name]
    turns = None if what is ... else what + 1
    if m.key in wanted:
      before = wanted[m.key].turns
      turns = None if None in (before, turns) else max(before, turns)
    wanted[m.key] = extended.Wanted(m, turns)
  outs, found = extended.run(closed, arrays, list(wanted.values()))
  taken = {}
  for name, (_, what) in chosen.items():
    value = found[made[name].key]
    taken[name] = value if what is ... else value[what]
  return jax.tree.unflatten(out_tree, outs)[1], taken


def _chosen(pairs, named) -> dict[str, tuple[values_lib.Made, Any]]:
  """{name: (value, what is taken of it)}."""
  taken, used = {}, set()
  for name, made in named.items():
    for i, (pattern, what) in enumerate(pairs):
      if pattern.fullmatch(name):
        used.add(i)
        if what is not None:
          taken[name] = made, _taken(name, made, what)
        break
  for i, (pattern, _) in enumerate(pairs):
    if i not in used:
      raise ValueError(_unused(pattern, named))
  return taken


def _taken(name, made, what):
  """What is taken of a value: `...`, or the number of a layer from the first."""
  if reason := values_lib.refused(made):
    raise ValueError(
      f'{name} cannot be taken: {reason} ({made.at.source}). Take what comes of it,'
      f' or put ({name!r}, None) before the rule that matches it.'
    )
  if what is ...:
    return what
  if isinstance(what, bool) or not isinstance(what, int):
    raise ValueError(
      f'{what!r} of {name} is asked for; `...` takes the value, None leaves it, a'
      ' number takes a layer of a scan.'
    )
  loops = [walk.enter(outer.eqn) for outer, _ in made.at.around]
  loops = [loop for loop in loops if not isinstance(loop, walk.Call)]
  if not loops or not isinstance(loops[0], walk.Scan):
    raise ValueError(
      f'{name} is in no scan, so that it has no layer {what}. Take it by (regex, ...).'
    )
  layers = loops[0].times
  if not -layers <= what < layers:
    raise ValueError(f'{name} has {layers} layers, and no layer {what}.')
  return what % layers


def _unused(pattern, named) -> str:
  taken = [name for name in named if pattern.fullmatch(name)]
  if taken:
    return (
      f'The rule {pattern.pattern!r} is never used: earlier rules take all that it'
      f' matches ({", ".join(taken[:8])}). Put it before them, or drop it.'
    )
  # Products and sums say where one is; a model has hundreds of other values.
  ends = 'dot_general', 'conv_general_dilated', 'add'
  most = [
    name
    for name, made in named.items()
    if made.at.eqn.primitive.name in ends and not values_lib.refused(made)
  ]
  shown = ', '.join(most[:24]) + (' and more' if len(most) > 24 else '')
  return (
    f'The rule {pattern.pattern!r} matches no value.'
    f'{choices.guess(pattern.pattern, named)} A pattern matches the whole name. Products'
    f' and sums are {shown}. jc.analysis.feature_names(apply)(params, x) lists all of the'
    f' {len(named)} values.'
  )
