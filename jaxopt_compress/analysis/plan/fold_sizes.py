"""Numbers of a program that depend on widths, folded into parameters.

    RMS norm    x / rms(x) gain       over n of N channels:   gain  *  sqrt(N / n)
    attention   q k / sqrt(d)         of d of D features:     k     *  sqrt(d / D)

A network without some channels is not the one in which they are zero where a mean
divides by how many there are. Both programs are traced; where they have other numbers,
`scaled` tells what parameters have to take up, and what none can: a layer norm takes a
mean off that changes, and stays inexact.
"""

from collections.abc import Callable
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import raised
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.layers import streams
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.plan import scaled
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib


class Folded(NamedTuple):
  """What was folded, and what could not be.

  Attributes:
    factors: {path: what the parameter was multiplied by}.
    left: the places where the smaller program still computes something else.
    near: small numbers that were taken for nothing: exact up to these.
  """

  factors: dict[str, float]
  left: tuple[str, ...]
  near: tuple[str, ...]


def fold_sizes(
  fun: Callable, plan: plan_lib.Plan, rebuilt: Callable | None = None
) -> Callable[..., tuple[Any, Folded]]:
  """Parameters of a plan that compute what those do in which channels are zero.

  Args:
    fun: the function that the plan's structure was found for. Where layers go that it
      does not do without, that of the model of those that stay, of the old widths.
    plan: which channels, and layers, stay.
    rebuilt: the function of the model that was built again, where `fun` has sizes of
      its own.

  Returns:
    A function of parameters as `jc.shrink` returned them, and of the other arguments
    of `fun`, that returns (parameters, `Folded`). Other than these, parameters count
    by their shapes.

  Raises:
    ValueError: the parameters are not those of the plan, a leaf that would change is
      compressed, the function does not run with them, or its operations are others.

  >>> import jaxopt_compress as jc
  >>> def f(p, x):
  ...   x = x @ p['w']
  ...   return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True)) * p['gain'] @ p['v']
  >>> p = {'w': jnp.ones((2, 8)), 'gain': jnp.ones((1, 8)), 'v': jnp.ones((8, 1))}
  >>> x = jnp.ones((1, 2))
  >>> plan = jc.Plan(jc.structure(f)(p, x), {'gain:-1': [0, 5]})
  >>> small, folded = fold_sizes(f, plan)(jc.shrink(plan, p), x)
  >>> folded.factors, float(f(plan.mask(p), x)[0, 0]), float(f(small, x)[0, 0])
  ({'gain': 2.0}, 4.0, 4.0)
  """

  def folded(params, *args, **kwargs):
    closed, arrays = _before(fun, plan, params, args, kwargs)
    try:
      other, _ = walk.trace(rebuilt or fun, params, args, kwargs)
    except Exception as e:  # whatever a model raises
      raise ValueError(_does_not_run(plan, e)) from e
    asked = scaled.Scaled(scaled.ratios(closed, other))
    inputs = [
      {path: 1.0} if jnp.issubdtype(x.dtype, jnp.floating) else {}
      for path, x in arrays
    ]
    inputs += [{}] * (len(closed.jaxpr.invars) - len(inputs))
    for out in scaled.algebra.evaluate(asked, closed, inputs):
      asked.zero(out, None)
    sizes = {path: math.prod(x.shape) for path, x in arrays}
    logs, left = _solved(asked.wanted, sizes)
    factors = {path: math.exp(x) for path, x in logs.items()}
    return _multiplied(params, factors), Folded(
      factors, left, tuple(asked.near)
    )

  return folded


def _does_not_run(plan, error) -> str:
  groups = plan.structure.groups
  sizes = {
    name: f'{groups[name].size} -> {n}'
    for name, n in plan.sizes.items()
    if n != groups[name].size
  }
  return (
    f'The function does not run with parameters of the plan: {raised.said(error)}. A'
    f' size is written there that is another one now, of {sizes}: take it from an'
    ' array, or from the config, of which jc.analysis.config_delta(shapes, config, plan) finds'
    ' the numbers; and give the function of the model that is built of these, as'
    ' rebuilt=.'
  )


def _before(fun, plan, params, args, kwargs):
  """The program of the old widths, without the layers that go, and its parameters."""
  passed = streams.groups(plan.structure)
  layers = {name: x for name, x in plan.sources.items() if name in passed}
  deep = plan_lib.Plan(plan.structure, layers)
  before = _abstract(params, plan, deep)
  try:
    return walk.trace(fun, before, args, kwargs)
  except Exception as e:  # whatever a model raises
    if not layers:
      raise
    raise ValueError(
      f'The function does not run without the layers that go: {raised.said(e)}. Give'
      ' that of the model of fewer layers and the old widths in place of it, and that'
      ' of the new widths as rebuilt=.'
    ) from e


def _abstract(params, plan, deep):
  """The parameters as they were, but for layers, which `deep` says."""
  now, then = plan.shapes, deep.shapes
  names = plan_lib.names_of(now)
  leaves = []
  for path, x in rules_lib.named_leaves(params):
    mine = names.get(path, path)
    if mine in now and tuple(x.shape) != now[mine]:
      raise ValueError(
        f'{path} has shape {tuple(x.shape)}, and the plan makes {now[mine]}. Pass'
        ' what jc.shrink(plan, params) returned.'
      )
    shape = then.get(mine, getattr(x, 'shape', None))
    weak = getattr(x, 'weak_type', False)  # casts are operations, too
    leaves.append(
      x
      if shape is None
      else jax.ShapeDtypeStruct(shape, x.dtype, weak_type=weak)
    )
  return jax.tree.unflatten(
    jax.tree.structure(params, is_leaf=array.is_compressed), leaves
  )


def _solved(wanted, sizes) -> tuple[dict[str, float], tuple[str, ...]]:
  """(logarithms of factors that fulfil what is wanted, places where none do)."""
  # Elimination. Of each equation the smallest parameter that is in it takes the rest
  # up, and those that take up nothing stay as they are: gains rather than matrices.
  solved: dict[str, dict[str, float]] = {}
  left = {}
  for form, why in wanted:
    form = dict(_substituted(form, solved))
    names = sorted(form.keys() - {''}, key=lambda p: (sizes[p], p))
    if not names:
      if form:
        left[why] = None
      continue
    name = names[0]
    share = form.pop(name)
    solved[name] = {k: -v / share for k, v in form.items()}
  # From the last one on: each is then in terms of those that stay, whose logs are 0.
  logs = {}
  for name in reversed(solved):
    form = solved[name]
    logs[name] = form.get('', 0.0) + sum(
      v * logs.get(k, 0.0) for k, v in form.items() if k
    )
  # Numbers of a program are float32.
  return {p: x for p, x in logs.items() if abs(x) > 1e-6}, tuple(left)


def _substituted(form, solved):
  """A form without the parameters that are solved for."""
  for name, value in solved.items():
    if name in form:
      share = form[name]
      rest = {k: v for k, v in form.items() if k != name}
      form = scaled.plus(rest, value, share)
  return form


def _multiplied(params, factors):
  def multiplied(path, x):
    if path not in factors:
      return x
    if array.is_compressed(x):
      raise ValueError(
        f'{path} is {x.describe()}, and is to be multiplied by {factors[path]:.4g}:'
        ' fold before you compress, or pass jc.materialize(params).'
      )
    return (jnp.asarray(x) * factors[path]).astype(x.dtype)

  return rules_lib.map_named(multiplied, params)
