"""A larger network that starts from a small one, of which it keeps the function.

    plan = jc.widen(jc.structure(apply)(params, x), factor=2)
    large = jc.grow(plan, params, key=key)        apply(large, x) = apply(params, x)

Which channels go together is known from the program (`structure`), and which weights
have to share what (`plan.shares`): no layer is known by its name.
"""

from collections.abc import Callable
import functools
from typing import Any
import warnings

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis.plan import kept_axes
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.distillation.growth import depth
from jaxopt_compress.distillation.growth import layers_above
from jaxopt_compress.distillation.growth import moments
from jaxopt_compress.distillation.growth import parts
from jaxopt_compress.distillation.growth import starts

Start = Callable[[starts.Leaf, jax.Array | None], jax.Array]


def grow(
  plan: plan_lib.Plan,
  tree: Any,
  how: str | Start = 'net2net',
  *,
  key: jax.Array | None = None,
  exact: bool = True,
  rebuilt: Callable | None = None,
  layers: str | depth.Start = 'identity',
) -> Any:
  """The network of a plan that grows, started from the one that is there.

  Args:
    plan: what `jc.widen` returned.
    tree: parameters, compressed leaves for what they stand for, or any tree with
      subtrees of their form: statistics of norms, averages, the state of an
      optimizer. What is kept under 'mu', 'trace' and the
      like of optax goes as gradients do, what is kept under 'nu' as their squares
      (`moments`: exact but for random shares, which differ from output to output, of
      which it has the mean); anything else as parameters do.
    how: a function of `growth.starts`, by name: net2net, fpi, aki, zero; or a function
      `(leaf, key) -> array` of such a kind.
    key: consumed for random shares of copies, and for random weights. None: shares are
      equal, and copies stay alike until something else tells them apart, such as dropout.
    exact: whether to refuse where the function cannot be kept. The epsilon of a norm is
      exact where what writes to the norm can take a factor up; elsewhere a warning and
      `print(plan)` say up to what the function is kept.
    rebuilt: the function of the model that is built of the new sizes, where that of
      the structure has sizes of its own; numbers that depend on these, as 1 / sqrt(d),
      are read there. None: numbers that fit a size are taken to go with it, and where
      the function would run as another network it has to be given. Where
      layers with names of their own come as well, it has as many as there are: make
      it wider first, by a plan of its own.
    layers: how layers start that come: 'identity' (the function is kept), 'gated',
      'shared', 'copy', or a function like those of `growth.depth`. What optimizers
      keep of a layer is there again with each copy.

  Returns:
    The same tree, of the larger shapes.

  Raises:
    ValueError: an unknown word, what is no key, the tree is of another network, a plan
      that has other sources for each channel of another group, or no copies keep the
      function.

  >>> import jaxopt_compress as jc
  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.array([[1., 2.]]), 'b': jnp.array([[4.], [6.]])}
  >>> plan = jc.widen(jc.structure(f)(p, jnp.ones((1, 1))), factor=2)
  >>> {name: x.tolist() for name, x in jc.grow(plan, p).items()}
  {'a': [[1.0, 2.0, 1.0, 2.0]], 'b': [[2.0], [3.0], [2.0], [3.0]]}
  """
  start = how if callable(how) else _named(how)
  if not callable(layers):
    choices.one_of('layers', layers, depth.STARTS, '=')
  starts.check(key)
  widths, deeper = depth.apart(plan)
  tree = array.materialize(tree)
  if widths.sources:
    tree = _wider(widths, tree, start, key, exact, rebuilt)
  if not deeper.sources:
    return tree
  return depth.start(deeper, deeper.apply(tree), layers)


def _wider(plan, tree, start, key, exact, rebuilt):
  """The tree with the channels of a plan."""
  grown = parts.Grown(plan, start is starts.zero, rebuilt)
  if exact and grown.constants:
    raise ValueError(_another(grown.constants))
  if exact and grown.left:
    raise ValueError(_refused(grown.left))
  if grown.alike:
    warnings.warn(_alike(grown.alike), stacklevel=3)
  if exact and grown.shares and grown.shares.near:
    warnings.warn(_near(grown.shares.near), stacklevel=3)
  copies, above = plan.apply(tree), None
  if start not in (starts.net2net, starts.fpi, starts.zero):
    above = plan.apply(layers_above.of(plan.structure, tree))
  names = plan_lib.names_of(plan.structure.shapes)

  def started(key, path, x, above):
    # `order` is the power of gradients that an optimizer keeps here; 0: it is weights.
    mine, rest, order = moments.of(path, names)
    if mine is None or not _floating(x):
      return x
    part = grown.part(mine)
    whole = plan.resized[mine], rest, plan.structure.shapes[mine]
    axes = kept_axes.of(x.shape, *whole)
    if order and axes is not None:
      drawn = key if start is starts.net2net else None
      return part.moment(x, axes, order, drawn).astype(x.dtype)
    if x.shape != plan.resized[mine]:
      return x
    leaf = starts.Leaf(
      mine,
      x,
      x if above is None else above,
      part.product,
      part.new,
      part.made,
      part.shared,
      functools.partial(part.alone, copies=x),
    )
    return start(leaf, key).astype(x.dtype)

  # One program for all: operation by operation each shape would be compiled.
  arrays = {p: x for p, x in rules_lib.named_leaves(copies) if _floating(x)}
  others = dict(rules_lib.named_leaves(above)) if above is not None else {}

  @jax.jit
  def every(arrays, others, key):
    return {p: started(key, p, x, others.get(p)) for p, x in arrays.items()}

  grown = every(arrays, {p: others[p] for p in arrays if p in others}, key)
  return rules_lib.map_named(
    lambda path, x: _like(x, grown[path]) if path in grown else x, copies
  )


def _like(x, value):
  """The value, cut over devices as x is."""
  traced = isinstance(value, jax.core.Tracer)
  return value if traced else jax.device_put(value, x.sharding)


def _named(how: str) -> Start:
  choices.one_of('how', how, starts.__all__, '=')
  return getattr(starts, how)


def _floating(x) -> bool:
  return hasattr(x, 'dtype') and jnp.issubdtype(x.dtype, jnp.floating)


def _alike(groups) -> str:
  said = '; '.join(f'{group} ({why})' for group, why in groups.items())
  return (
    f'Zeros would not keep the function in {said}: new channels there are copies that'
    ' share equally. how="net2net" with a key makes shares that differ.'
  )


def _near(numbers) -> str:
  return (
    f'The function is kept up to {", ".join(numbers)}: what that is added to, as the mean'
    ' square of a norm, is another in the wider network, and what writes to it can take'
    ' no factor up. It is far off where the mean square is as small; compare outputs.'
  )


def _another(constants) -> str:
  said = '; '.join(f'{group}: {what}' for group, what in constants.items())
  return (
    'The function has a number of channels itself and runs with the parameters of the'
    f' plan as another network. {said}. Or pass exact=False, and train on.'
  )


def _refused(left) -> str:
  said = '; '.join(
    f'{group or "a number"}: {why}' for group, why in left.items()
  )
  return (
    f'No copies of channels keep the function: {said}. Widen without a key and by a'
    ' whole factor, so that each channel is there equally often; leave these groups'
    ' as they are by sizes={group: its size}; or pass exact=False, and train on.'
  )
