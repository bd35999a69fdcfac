"""A deeper network from a trained one: which layers are repeated, and how they start.

    uniform   0 0 1 1 2 2        each layer is followed by its copies
    stacked   0 1 2 0 1 2        the whole stack is there again, on top of itself

A layer gives what it gets where some of its parameters w are p: the last weights of its
branches zero, or a matrix the identity (`Structure.passing`). A copy starts at

    p + f (w - p)

    copy       f = 1             the layer as it is; the function is another one
    identity   f = 0             of what is new; the function is kept
    gated      f = gate          of what is new; between these two
    shared     f = 1 / copies    of all copies of a layer, each of which makes a part of
                                 its step

`copy` with 'stacked' is Gong et al. 2019, http://proceedings.mlr.press/v97/gong19a.html
(progressive stacking), with 'uniform' Chang et al. 2017,
https://arxiv.org/abs/1710.10348, section 3.2, whose halved step is `shared`. `identity`
is Net2DeeperNet of Chen et al. 2016, https://arxiv.org/abs/1511.05641, section 2.4, and
of residual branches the zero start of Goyal et al. 2017,
https://arxiv.org/abs/1706.02677, section 5.1. At its first step p alone has a gradient,
and with it all parameters of the layer from the second on. With `gated`, of a gate that
is not trained but folded into p, all have one at once.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis.layers import passing
from jaxopt_compress.analysis.layers import siblings
from jaxopt_compress.analysis.layers import streams
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.structure import next_steps
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.distillation.growth import moments

WHERE = ('uniform', 'stacked')
STARTS = ('copy', 'identity', 'gated', 'shared')

# start(copies, is_new) -> f: of each layer how many copies of its source there are,
# whether it is none of the layers that were there, and what is left of w - p.
Start = Callable[[np.ndarray, np.ndarray], np.ndarray]


def copy(copies: np.ndarray, is_new: np.ndarray) -> np.ndarray:
  """Layers as they are.

  >>> copy(np.array([2, 2]), np.array([False, True])).tolist()
  [1.0, 1.0]
  """
  return np.ones(len(copies))


def identity(copies: np.ndarray, is_new: np.ndarray) -> np.ndarray:
  """New layers give what they get.

  >>> identity(np.array([2, 2]), np.array([False, True])).tolist()
  [1.0, 0.0]
  """
  return np.where(is_new, 0.0, 1.0)


def gated(
  copies: np.ndarray, is_new: np.ndarray, *, gate: float = 0.1
) -> np.ndarray:
  """New layers make a part of their step: of another part, `partial(gated, gate=)`.

  >>> gated(np.array([2, 2]), np.array([False, True])).tolist()
  [1.0, 0.1]
  """
  return np.where(is_new, gate, 1.0)


def shared(copies: np.ndarray, is_new: np.ndarray) -> np.ndarray:
  """The copies of a layer share its step.

  >>> shared(np.array([2, 2, 1]), np.array([False, True, False])).tolist()
  [0.5, 0.5, 1.0]
  """
  return 1 / copies


def sources(
  structure: structure_lib.Structure,
  depth: float | Mapping[str, int | Sequence[int]],
  where: str = 'uniform',
) -> dict[str, np.ndarray]:
  """{group of layers: int [new number], the layer that each one is a copy of}.

  Args:
    structure: of the network that is there.
    depth: how many times as many layers, of all groups that may have more; or
      {group: number of layers, or the layer that each is a copy of}.
    where: 'uniform' or 'stacked', unless `depth` says which.

  Raises:
    ValueError: no layers that could be repeated, fewer than there are, or a part of
      one.

  >>> import jaxopt_compress as jc
  >>> block = lambda w, x: x + jnp.tanh(x) @ w
  >>> f = lambda p, x: block(p['w1'], block(p['w0'], x))
  >>> p = {'w0': jnp.ones((4, 4)), 'w1': jnp.ones((4, 4))}
  >>> found = jc.structure(f)(p, jnp.ones((2, 4)))
  >>> {name: s.tolist() for name, s in sources(found, 2).items()}
  {'w0:layers': [0, 0, 1, 1]}
  """
  choices.one_of('where', where, WHERE, '=')
  groups = _groups(structure)
  if isinstance(depth, Mapping):
    for name in depth:
      if name in structure.layers and name not in groups:
        locked = structure.groups[name].locked
        raise ValueError(next_steps.said(name, locked))
      choices.one_of('group of layers', name, tuple(groups))
    asked = dict(depth)
  else:
    if not groups:
      raise ValueError(
        f'depth={depth}, and the structure has no layers that pass one value on, of'
        f' one shape.{_stay(structure)} Leave depth out.'
      )
    asked = {name: _times(structure, name, depth) for name in groups}
  return {
    name: _repeated(name, structure.groups[name].size, n, where)
    for name, n in asked.items()
  }


def apart(plan: plan_lib.Plan) -> tuple[plan_lib.Plan, plan_lib.Plan]:
  """The plan of channels alone, and that of layers, of the network that it makes."""
  structure, names = plan.structure, _groups(plan.structure)
  layers = {n: s for n, s in plan.sources.items() if n in names}
  rest = {n: s for n, s in plan.sources.items() if n not in names}
  widths = plan_lib.Plan(structure, rest, plan.asked)
  sizes = structure.groups | {
    name: dataclasses.replace(structure.groups[name], size=n)
    for name, n in widths.sizes.items()
  }
  wider = dataclasses.replace(
    structure, shapes=widths.resized, groups=sizes, program=None
  )
  return widths, plan_lib.Plan(wider, layers)


def start(plan: plan_lib.Plan, tree: Any, how: str | Start = 'copy') -> Any:
  """The network of a deeper plan as its layers start.

  Args:
    plan: which layers there are.
    tree: what `plan.apply` makes of parameters, each layer a copy, or of any tree with
      subtrees of their form. What an optimizer keeps of them stays, by the names of
      `moments`, as does what is none of the network's parameters.
    how: 'copy', 'identity', 'gated', 'shared' or a function like these.

  Returns:
    A tree like `tree`.

  Raises:
    ValueError: no parameters are known that make a layer give what it gets.
  """
  if isinstance(how, str):
    choices.one_of('layers', how, STARTS, '=')
    # The namespace is the registry.
    how = globals()[how]
  found, shapes = _parts(plan, how), plan.shapes
  names = plan_lib.names_of(shapes)

  def started(path, x):
    mine, _, order = moments.of(path, names)
    part, word = found.get(mine, (None, ''))
    if part is None or order or tuple(np.shape(x)) != shapes[mine]:
      return x
    x = array.materialize(x)
    # One number, or one for each layer of a stack: [layers, 1, ...].
    f = jnp.asarray(part.reshape(part.shape + (1,) * (x.ndim - part.ndim)))
    p = _one(x) if word == passing.IDENTITY else jnp.zeros_like(x)
    return jnp.where(f == 1, x, p + f.astype(x.dtype) * (x - p))

  return rules_lib.map_named(started, tree)


def _groups(structure) -> list[str]:
  """Those that may go, and single layers of which it is known how they pass on."""
  single = [name for name, group in structure.groups.items() if group.repeats]
  return [*streams.groups(structure), *single]


def _times(structure, name, factor) -> int:
  n = structure.groups[name].size
  if factor < 1 or n * factor != round(n * factor):
    raise ValueError(
      f'depth={factor}: {name} has {n} layers, which do not become'
      f' {n * factor:g}. Give a factor that makes a whole number of more, or'
      f' depth={{{name!r}: number of layers}}.'
    )
  return round(n * factor)


def _repeated(name, n, asked, where) -> np.ndarray:
  if not isinstance(asked, int):
    found = np.asarray(asked)
    if {*found.ravel().tolist()} != {*range(n)}:
      raise ValueError(
        f'{name}: each of its {n} layers is to be there at least once, and'
        f' {found.tolist()} are. What goes is said by jc.select.'
      )
    return found
  if asked < n:
    raise ValueError(
      f'{name} has {n} layers, and {asked} are fewer. Say which go with jc.select.'
    )
  if where == 'stacked':
    return np.arange(asked) % n
  return np.arange(asked) * n // asked


def _stay(structure) -> str:
  """Why layers that there are cannot be repeated."""
  locked = [(n, structure.groups[n].locked) for n in structure.layers]
  return ''.join(f' {next_steps.said(n, why[:1])}' for n, why in locked if why)


def _parts(plan, how) -> dict[str, tuple[np.ndarray, str]]:
  """{new path of a parameter: (what stays of w - p, what p is)}.

  The first is one number where a layer has a name, and [layers, 1, ...] of a stack.
  """
  structure, found = plan.structure, {}
  for name in _groups(structure):
    source = plan.sources.get(name)
    if source is None or np.array_equal(source, np.arange(len(source))):
      continue
    copies = np.bincount(source)[source]
    first = np.unique(source, return_index=True)[1]
    is_new = ~np.isin(np.arange(len(source)), first)
    parts = np.asarray(how(copies, is_new), np.float64)
    if (parts == 1).all():
      continue
    if name not in structure.passing:
      raise ValueError(
        f'{name}: no parameters are known that make a layer give what it gets, as the'
        ' last weights of residual branches do. Start these layers as copies, with'
        " layers='copy'."
      )
    words = structure.passing[name]
    if name in structure.layers:
      for path, j in _numbered(plan, name).items():
        found[path] = parts[j], words[plan.origins[path]]
      continue
    axes = dict(structure.members(name))
    for path, word in words.items():
      # Behind the axis of layers come those of the leaf, of size one.
      found[path] = parts.reshape(-1, *(1,) * (-axes[path] - 1)), word
  return found


def _numbered(plan, name) -> dict[str, int]:
  """{new path of what makes a layer pass on what it gets: the number of the layer}."""
  words, alike = plan.structure.passing[name], {}
  for new, old in plan.origins.items():
    if old not in words:
      continue
    for prefixes in plan.structure.layers[name]:
      for k, prefix in enumerate(prefixes):
        if siblings.within(old, (prefix,)):
          n = siblings.member(new, siblings.family_of(prefix))
          rest = k, old.removeprefix(prefix)
          alike.setdefault(rest, []).append((n, new))
  # In the order of their numbers they are the layers of the plan.
  return {
    path: j
    for paths in alike.values()
    for j, (_, path) in enumerate(sorted(paths))
  }


def _one(x) -> jax.Array:
  """Of kernels [..., n, n]: the identity, in the middle of a window."""
  window = tuple(k // 2 for k in x.shape[:-2])
  return jnp.zeros_like(x).at[window].set(jnp.eye(x.shape[-1], dtype=x.dtype))
