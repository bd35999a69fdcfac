"""A network that has shrunk, on disk, and the model of it again.

A file of `jc.save` with, in its header, the plan that made the arrays: of which network
they were, and which of its channels stayed. A fresh process needs that and what built
the network:

    jc.export.save_shrunk('small.safetensors', plan, jc.shrink(plan, params))

    model, params, config = jc.export.rebuild(build, config, 'small.safetensors')
"""

from collections.abc import Callable
import os
from typing import Any
from typing import NamedTuple

import jax

from jaxopt_compress.analysis.plan import config_delta
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.export import trees


class Rebuilt(NamedTuple):
  """A model of the new sizes, its parameters as they were saved, and its config."""

  model: Any
  params: Any
  config: Any


def save_shrunk(
  path: str | os.PathLike, plan: plan_lib.Plan, params: Any
) -> None:
  """Writes parameters that a plan made, and the plan, to a safetensors file.

  Compressed leaves are saved as they are, in what of them runs on any machine.

  Args:
    path: of the file.
    plan: what `jc.select` returned.
    params: what `jc.shrink(plan, ...)` returned, maybe trained or compressed since.

  Raises:
    ValueError: a leaf that is not of the shape that the plan makes, or not there, or
      that holds what no file does.
  """
  _check(plan, params, 'jc.shrink(plan, params) makes them.')
  names = plan_lib.names_of(plan.shapes)
  there = {names.get(name, name) for name, _ in rules_lib.named_leaves(params)}
  for name in plan.shapes:
    if name not in there:
      raise ValueError(
        f'{name} of the plan is not among the parameters, which are'
        f' {sorted(there)[:5]}. Save all that jc.shrink(plan, params) makes.'
      )
  trees.write(path, params, {'plan': plan.to_json()})


def load_plan(path: str | os.PathLike) -> plan_lib.Plan:
  """The plan in the header of a file that `save_shrunk` wrote."""
  header = trees.header(path)
  if 'plan' not in header:
    raise ValueError(
      f'{path} has no plan in its header: write it with'
      ' jc.export.save_shrunk(path, plan, params).'
    )
  return plan_lib.Plan.from_json(header['plan'])


def rebuild(
  build: Callable[[Any], tuple[Any, Any]],
  config: Any,
  path: str | os.PathLike,
) -> Rebuilt:
  """The model that `save_shrunk` wrote the parameters of.

  Args:
    build: config -> (model, parameters); the model is anything that does not hold
      parameters: a Linen module, the graph definition of an NNX module, a function.
      It is traced a few times to find which numbers of the config are which sizes.
    config: that the network was built of before it shrank.
    path: of the file.

  Returns:
    (model, params, config), of the new sizes.

  Raises:
    ValueError: no config of other numbers gives these sizes, or the file is for
      another network; the first leaf that differs is named. Or the file is damaged,
      or of another layout.

  Example, with NNX:

      def build(config):
        return nnx.split(Model(**config, rngs=nnx.Rngs(0)))

      graphdef, state, _ = jc.export.rebuild(build, config, 'small.safetensors')
      model = nnx.merge(graphdef, state)
  """
  plan = load_plan(path)

  def shapes(config):
    return jax.eval_shape(lambda: build(config)[1])

  _, config = config_delta.config_delta(shapes, config, plan)
  model, params = build(config)
  leaves = dict(rules_lib.named_leaves(trees.load(path)))

  def loaded(name, x):
    if name not in leaves:
      raise ValueError(
        f'{name} of the model is not in {path}, which has {sorted(leaves)[:5]}. Build'
        ' the parameters that were saved, and keep others, such as keys, beside the'
        ' model: ((graphdef, rest), params).'
      )
    return leaves[name]

  params = rules_lib.map_named(loaded, params)
  _check(
    plan, params, 'They are of another network than the plan in its header.'
  )
  return Rebuilt(model, params, config)


def _check(plan, params, advice):
  names = plan_lib.names_of(plan.shapes)
  for name, x in rules_lib.named_leaves(params):
    want = plan.shapes.get(names.get(name, name))
    if want is not None and tuple(x.shape) != want:
      raise ValueError(
        f'{name} has shape {tuple(x.shape)}, and the plan makes {want}. {advice}'
      )
