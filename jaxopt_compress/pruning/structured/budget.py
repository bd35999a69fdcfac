"""What a network of other widths costs, counted from its shapes and its program.

flops, params, bytes       counted
latency                    predicted from a table that is measured once on a machine
"""

from collections.abc import Callable
import dataclasses
import functools
import math
import os
from typing import Any

import jax

from jaxopt_compress.analysis.layers import siblings
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.plan import resized
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning.structured import latency as latency_lib
from jaxopt_compress.pruning.structured import stopwatch


@dataclasses.dataclass(frozen=True, init=False)
class Budget:
  """At most so much of some costs; below or at one it is a fraction of what there is.

      Budget(apply, params, x, flops=0.5)      half of the operations of apply(params, x)
      Budget(apply, params, x, params=1e6)     a million parameters
      Budget(apply, params, x, latency=0.5, table='latency.json')
      Budget(apply, params, x, flops=0.5, params=0.4)           both

  Costs follow from the sizes of the groups: the program does not have to run with
  them, as models do whose code has sizes of its own.

  Attributes:
    fun, args: of the program; its first argument is the parameters.
    limits: {'flops', 'params', 'bytes' or 'latency': the limit, as a number}.
    now: {...: what the program costs as it is}.
  """

  fun: Callable
  args: tuple
  limits: dict[str, float]
  now: dict[str, float]
  _program: resized.Resized = dataclasses.field(repr=False)
  _latency: latency_lib.Latency | None = dataclasses.field(repr=False)

  def __init__(
    self,
    fun: Callable,
    *args: Any,
    flops: float | None = None,
    params: float | None = None,
    bytes: float | None = None,
    latency: float | None = None,
    table: str | os.PathLike | None = None,
  ):
    """Counts, and measures, the program as it is.

    Args:
      fun, *args: the program, on an example; arguments may be abstract.
      flops, params, bytes: limits.
      latency: in milliseconds, or a fraction, on the device that JAX runs on.
      table: a file that keeps what is measured; None measures again each time.
    """
    asked = {
      'flops': flops,
      'params': params,
      'bytes': bytes,
      'latency': latency,
    }
    asked = {k: v for k, v in asked.items() if v is not None}
    if not asked or not all(v > 0 for v in asked.values()):
      raise ValueError(
        f'A budget of {asked}: a positive limit is expected, as in'
        ' jc.Budget(apply, params, x, flops=0.5).'
      )
    if table is not None and latency is None:
      raise ValueError(f'table={table} is for a budget with latency=.')
    args = jax.tree.map(_abstract, array.materialize(args))
    program = resized.resized(fun)(*args)
    predicted = None
    if latency is not None:
      measured = stopwatch.Table(table)
      now = stopwatch.seconds(fun, *args)
      predicted = latency_lib.Latency(program, now, measured)
    fields = {
      'fun': fun,
      'args': args,
      'limits': asked,
      '_program': program,
      '_latency': predicted,
    }
    for name, value in fields.items():
      object.__setattr__(self, name, value)
    now = self._costs(None)
    limits = {k: v * now[k] if v <= 1 else v for k, v in asked.items()}
    object.__setattr__(self, 'now', now)
    object.__setattr__(self, 'limits', limits)

  def costs(self, plan: plan_lib.Plan) -> dict[str, float]:
    """What the network of a plan costs, of all that is limited.

    Raises:
      ValueError: the plan is of another program.
    """
    axes = plan.structure.axes
    if axes != self._program.axes:
      apart = [p for p in axes if axes[p] != self._program.axes.get(p)]
      raise ValueError(
        f'The plan is of another program than the budget: {apart[:3]} have other'
        f' groups here. Find the structure of the function of the budget, with'
        ' arguments of these shapes.'
      )
    return self._costs(plan)

  def measured(self, plan: plan_lib.Plan) -> float:
    """Milliseconds of the program with the parameters of a plan, run here.

    Raises:
      ValueError: it does not run with them.
    """
    shrink = functools.partial(plan_lib.shrink, plan)
    params = jax.eval_shape(shrink, self.args[0])
    try:
      return 1e3 * stopwatch.seconds(self.fun, params, *self.args[1:])
    except Exception as e:
      raise ValueError(
        f'The program does not run with {dict(plan.sizes)} channels, so it cannot be'
        f' measured: {e} Take sizes from parameters where they are fixed in the'
        ' model, or build the model again and measure that.'
      ) from e

  def told(self, plan: plan_lib.Plan) -> str:
    """A line for each cost: what is limited, what the plan has, what there was."""
    lines = []
    for name, cost in self.costs(plan).items():
      numbers = cost, self.limits[name], self.now[name]
      has, most, before = (_said(name, n) for n in numbers)
      lines.append(f'{name:8} {before} -> {has}, at most {most}')
    return '\n'.join(lines)

  def _costs(self, plan) -> dict[str, float]:
    # Layers with names of their own are chosen, what else is in groups has sizes.
    sizes, layers, entries = {}, {}, []
    if plan is not None:
      named = plan.structure.layers
      layers = {g: x for g, x in plan.sources.items() if g in named}
      sizes = {g: n for g, n in plan.sizes.items() if g not in named}
    for path, x in rules_lib.named_leaves(self.args[0]):
      if hasattr(x, 'shape'):
        n = math.prod(x.shape)
        if plan is not None and path in plan.structure.axes:
          n = _entries(plan.structure, path, sizes, layers)
        entries.append((n, x.dtype))
    count = {
      'flops': lambda: self._program.flops(sizes, layers),
      'params': lambda: sum(n for n, _ in entries),
      'bytes': lambda: sum(n * dtype.itemsize for n, dtype in entries),
      'latency': lambda: 1e3 * self._latency.seconds(sizes, layers),
    }
    return {name: count[name]() for name in self.limits}


def _entries(structure, path, sizes, layers) -> int:
  """How many entries a leaf, and its copies in layers, will have."""
  n = math.prod(structure.size(x, sizes) for x in structure.axes[path])
  for group, there in layers.items():
    prefixes = structure.layers[group]
    for i, inside in enumerate(prefixes):
      if siblings.within(path, inside):
        n *= list(there).count(i)
  return n


def _abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, 'shape') else x


def _said(name, n) -> str:
  return f'{n:.3g} ms' if name == 'latency' else f'{n:,.0f}'
