"""What a network of other widths costs, counted from its shapes and its program."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax

from jaxopt_compress.analysis import flops as flops_lib
from jaxopt_compress.analysis import plan as plan_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib


@dataclasses.dataclass(frozen=True, init=False)
class Budget:
  """At most so much of a cost; below or at one it is a fraction of what there is.

      Budget(apply, params, x, flops=0.5)      half of the operations of apply(params, x)
      Budget(apply, params, x, params=1e6)     a million parameters

  Attributes:
    fun, args: of the program; its first argument is the parameters.
    limits: {'flops', 'params' or 'bytes': the limit, as a number}.
  """

  fun: Callable
  args: tuple
  limits: dict[str, float]

  def __init__(
    self,
    fun: Callable,
    *args: Any,
    flops: float | None = None,
    params: float | None = None,
    bytes: float | None = None,
  ):
    asked = {'flops': flops, 'params': params, 'bytes': bytes}
    asked = {k: v for k, v in asked.items() if v is not None}
    if not asked or not all(v > 0 for v in asked.values()):
      raise ValueError(
        f'A budget of {asked}: a positive limit is expected, as in'
        ' jc.Budget(apply, params, x, flops=0.5).'
      )
    object.__setattr__(self, 'fun', fun)
    object.__setattr__(
      self, 'args', jax.tree.map(_abstract, array.materialize(args))
    )
    object.__setattr__(self, 'limits', asked)
    now = self._costs(self.args[0])
    limits = {k: v * now[k] if v <= 1 else v for k, v in asked.items()}
    object.__setattr__(self, 'limits', limits)

  def costs(self, plan: plan_lib.Plan) -> dict[str, int]:
    """What the network of a plan costs, of all that is limited.

    Raises:
      ValueError: the program does not run with the parameters of the plan.
    """
    shapes = plan.shapes

    def shrunk(path, x):
      return jax.ShapeDtypeStruct(shapes.get(path, x.shape), x.dtype)

    params = self.args[0]
    leaves = [shrunk(path, x) for path, x in rules_lib.named_leaves(params)]
    params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    try:
      return self._costs(params)
    except Exception as e:
      raise ValueError(
        f'The program does not run with {dict(plan.sizes)} channels, so its operations'
        f' cannot be counted: {e} Take sizes from parameters where they are fixed'
        ' in the model, or leave the group out.'
      ) from e

  def _costs(self, params) -> dict[str, int]:
    leaves = jax.tree.leaves(params)
    count = {
      'params': lambda: sum(math.prod(x.shape) for x in leaves),
      'bytes': lambda: sum(
        math.prod(x.shape) * jax.numpy.dtype(x.dtype).itemsize for x in leaves
      ),
      'flops': lambda: flops_lib.flops(self.fun)(params, *self.args[1:]),
    }
    return {name: count[name]() for name in self.limits}


def _abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, 'shape') else x
