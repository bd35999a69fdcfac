"""Channels and layers that come before a stage trains: a small network starts a large one.

    grow=dict(factor=2, depth=2)      of the network that `init` has trained

Sizes follow from the program alone, so that all stages are built and checked before the
first is trained. The model is built again of the numbers of its config that give them.
"""

import dataclasses
from typing import Any

import jax

from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.distillation.growth import depth
from jaxopt_compress.distillation.growth import grow as grow_lib
from jaxopt_compress.distillation.growth import starts
from jaxopt_compress.distillation.growth import widen
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import shrink


def check(where: str, grow: options.Grow) -> None:
  """Raises a ValueError for words that do not fit together."""
  choices.one_of(f'{where}.where', grow.where, depth.WHERE)
  choices.one_of(f'{where}.layers', grow.layers, depth.STARTS)
  choices.one_of(f'{where}.how', grow.how, starts.__all__)
  for pair in grow.sizes:
    if not (isinstance(pair, tuple) and list(map(type, pair)) in ([str, int],)):
      raise ValueError(
        f"{where}.sizes has {pair!r}; the name of a group and a number, ('a:-1', 64),"
        ' is expected.'
      )
  if not (grow.sizes or max(grow.factor, grow.depth) > 1):
    raise ValueError(
      f'{where} says factor={grow.factor:g} and depth={grow.depth:g}: nothing comes.'
      ' Say more, as in factor=2, or leave `grow` out.'
    )


def check_model(
  stage: options.Stage, init: model_lib.Model, model: model_lib.Model
) -> None:
  """Raises a ValueError where a stage grows another network than it starts from."""
  shapes = [jax.tree.map(lambda x: x.shape, m.params) for m in (init, model)]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f'Stage {stage.name!r} grows model {stage.model!r}, and init {stage.init!r} has'
      ' other parameters. Set model to that of init: grow makes it larger.'
    )


def planned(grow: options.Grow, model: model_lib.Model) -> plan_lib.Plan:
  """The plan of a stage, from the program of the model that it starts from."""
  return widen.widen(
    shrink.structure(model),
    grow.factor or None,
    sizes=dict(grow.sizes),
    multiple=grow.multiple,
    depth=grow.depth or None,
    where=grow.where,
  )


def resized(model: model_lib.Model, plan: plan_lib.Plan) -> model_lib.Model:
  """The model of the larger sizes.

  Raises:
    ValueError: no numbers of its config give them, and its program has some itself.
  """
  # One after the other, as two numbers that double alike say less than one.
  for part in depth.apart(plan):
    if part.sources:
      model = _resized(model, part)
  return model


def _resized(model, plan):
  try:
    return model_lib.of_config(model, plan)
  except ValueError:
    if shrink.has_own_sizes(plan):
      raise
    # A width without a number: the program takes its size from the parameters.
    tree = shrink.tree_of(model.params, model.variables)
    large = jax.eval_shape(plan.apply, tree)
    return model_lib.with_shapes(model, large['params'], large['variables'])


def started(
  grow: options.Grow,
  model: model_lib.Model,
  plan: plan_lib.Plan,
  large: model_lib.Model,
  params: Any,
  variables: Any,
  *,
  seed: int,
) -> tuple[Any, Any]:
  """(params, variables) of the large model, from those of the small one.

  Args:
    grow: what a config says.
    model, large: before and after.
    plan: what `planned` returned.
    params, variables: of the model before; compressed leaves count for what they
      stand for.
    seed: of what is drawn.
  """
  tree = array.materialize(shrink.tree_of(params, variables))
  # What was kept on disk has no program, which is asked what copies have to share.
  plan = dataclasses.replace(plan, structure=shrink.structure(model))
  widths, deeper = depth.apart(plan)
  if widths.sources:
    wide = large if not deeper.sources else _resized(model, widths)
    tree = grow_lib.grow(
      widths,
      tree,
      grow.how,
      key=jax.random.key(seed),
      exact=grow.exact,
      rebuilt=shrink.output_of(wide),
    )
  if deeper.sources:
    tree = grow_lib.grow(deeper, tree, layers=grow.layers)
  return tree['params'], tree['variables']
