"""Channels that go before a stage trains: which, and the model that is left.

    sizes      how many stay of each group     from the program, before anything runs
    sources    which of them                   from scores, on what the stage starts from

Where each group keeps its share, sizes follow from the program alone, so that all stages
are built and checked before the first is trained. Where groups are ranked together, or
the machine is timed, sizes are known only then: the stage is built with a guess, and
again with what was found.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
import dataclasses
import functools
import inspect
import itertools
import os
import re
from typing import Any

import jax
import numpy as np

from jaxopt_compress import pruning
from jaxopt_compress.analysis import added
from jaxopt_compress.analysis import observe as observe_lib
from jaxopt_compress.analysis import statistics
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.analysis.layers import streams
from jaxopt_compress.analysis.plan import config_delta
from jaxopt_compress.analysis.plan import config_numbers
from jaxopt_compress.analysis.plan import fold_sizes
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.distillation import losses
from jaxopt_compress.pruning.structured import compensate
from jaxopt_compress.train import fields
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options

tree_of = model_lib.tree_of

# Scores that are no function of a weight and its gradients.
OTHERS = ('activations', 'random')
SCOPES = ('local', 'alike', 'global')
ROUNDINGS = ('down', 'nearest', 'up')
LAYER_SCORES = ('cosine', 'angular', 'loss', 'score')  # of `pruning.depth`


def score_words() -> list[str]:
  """What `score` may be: a function of `pruning.scores`, or one of `OTHERS`."""
  named = vars(pruning.scores).items()
  found = [n for n, f in named if inspect.isfunction(f) and n[0] != '_']
  # Those that take what only a mask of single weights has are for `prune`.
  given = {'x', 'axes', 'k', 'quantile', 'gradient', 'gradient_squares'}
  return [*(n for n in found if set(_asks(n)) <= given), *OTHERS]


def of_batches(shrink: options.Shrink) -> bool:
  """Whether batches of data are read."""
  asks = set(_asks(shrink.score)) & {'gradient', 'gradient_squares'}
  on_data = bool(asks) or shrink.score == 'activations' or shrink.compensate
  return on_data or (bool(shrink.layers) and shrink.layer_score != 'score')


def depends(shrink: options.Shrink) -> bool:
  """Whether sizes are only known when there are scores, or times."""
  return shrink.scope != 'local' or bool(shrink.latency)


def _asks(score) -> Collection[str]:
  """What a function of `pruning.scores` takes besides weights."""
  f = getattr(pruning.scores, score, None)
  return inspect.signature(f).parameters if f else ()


def check(where: str, shrink: options.Shrink) -> None:
  """Raises a ValueError for words that do not fit together."""
  choices.one_of(f'{where}.score', shrink.score, score_words())
  choices.one_of(f'{where}.scope', shrink.scope, SCOPES)
  choices.one_of(f'{where}.rounding', shrink.rounding, ROUNDINGS)
  if not of_batches(shrink):
    need = 'a score of data or compensate'
    fields.check_unread(where, shrink, ['batches'], need)
  if shrink.multiple == 1:
    fields.check_unread(where, shrink, ['rounding'], 'multiple')
  choices.one_of(f'{where}.layer_score', shrink.layer_score, LAYER_SCORES)
  alone = shrink.layers and not (shrink.keep or shrink.limits)
  if bool(shrink.keep) == bool(shrink.limits) and not alone:
    given = {'keep': shrink.keep} if shrink.keep else {}
    raise ValueError(
      f'{where} says {given | shrink.limits or "neither keep nor a limit"}. Give the'
      ' fraction of the channels that stay, as in keep=0.5, or what the network may'
      ' cost, as in flops=0.5, and not both.'
    )
  if 'k' in _asks(shrink.score) and bool(shrink.k) == bool(shrink.quantile):
    raise ValueError(
      f'{where}.score={shrink.score} has k={shrink.k} and quantile='
      f'{shrink.quantile}: one of them says what is noise. Without either this'
      " is 'magnitude'."
    )
  costs = {'keep': shrink.keep} if shrink.keep else shrink.limits
  if set(costs.values()) == {1} and not (shrink.layers or shrink.by):
    raise ValueError(
      f'{where} says {costs}: all of it, so nothing goes. Say less, or leave'
      ' `shrink` out.'
    )


def structure(model: model_lib.Model) -> structure_lib.Structure:
  """The groups of channels of a model, from its program alone."""
  tree = tree_of(model.params, model.variables)
  return structure_lib.structure(output_of(model))(tree, model.inputs)


def guessed(shrink: options.Shrink, model: model_lib.Model) -> plan_lib.Plan:
  """A plan of the sizes that are left, by no score: computes nothing."""
  found = structure(model)
  alike = {name: np.zeros(group.size) for name, group in found.free.items()}
  # Together they would be ranked by nothing, and nothing is timed: each gives its
  # share.
  known = dataclasses.replace(shrink, scope='local', latency=0.0)
  if shrink.latency and not known.limits:
    known = dataclasses.replace(known, keep=min(shrink.latency, 1.0))
  return _selected(known, model, found, alike, _budget(known, model))


def chosen(
  shrink: options.Shrink,
  model: model_lib.Model,
  params: Any,
  variables: Any,
  batches: Sequence[Any],
  *,
  seed: int,
  table: str | os.PathLike | None = None,
) -> tuple[plan_lib.Plan, list[str]]:
  """The plan that keeps what is worth most, and what is said of its costs.

  Args:
    shrink: what a config says.
    model: that the stage starts from.
    params, variables: of it; compressed leaves count for what they stand for.
    batches: (inputs, labels) to score it on.
    seed: of scores that are random.
    table: the file that keeps what is measured for a limit of latency.

  Raises:
    ValueError: as `jc.importance` and `jc.select`.
  """
  found = structure(model)
  tree = array.materialize(tree_of(params, variables))
  worth = _importance(shrink, found, model, tree, batches, seed)
  budget = _budget(shrink, model, table)
  plan = _selected(shrink, model, found, worth, budget)
  told = budget.told(plan).splitlines() if budget else []
  if shrink.latency:
    told.append(f'latency  measured: {budget.measured(plan):.3g} ms')
  return plan, told


def cut(
  model: model_lib.Model,
  plan: plan_lib.Plan,
  params: Any,
  variables: Any,
  inputs: Sequence[Any] = (),
) -> tuple[Any, Any, dict[str, compensate.Loss]]:
  """What is left of a model: (params, variables, what the fits lose).

  Args:
    model: the model before.
    plan: the channels that stay.
    params, variables: of all channels.
    inputs: batches, on which the weights behind what goes are fitted to what stays;
      empty to cut alone.
  """
  tree, lost = array.materialize(tree_of(params, variables)), {}
  if inputs:
    tree, lost = _compensated(model, plan, tree, inputs)
  tree = plan_lib.shrink(plan, tree)
  return tree['params'], tree['variables'], lost


def _compensated(model, plan, tree, inputs):
  output = output_of(model)
  like = tree_of(model.params, model.variables), model.inputs
  uses, biases = (f(output)(*like) for f in (uses_lib.uses, added.biases))
  reading = pruning.readers(plan, uses)
  wanted = {re.escape(path): statistics.moments() for path in reading}
  observed = jax.jit(observe_lib.observe(output, wanted))
  stats = {}
  for x in inputs:
    stats = observe_lib.merge_stats(wanted, stats, observed(tree, x)[1])
  return pruning.compensate(plan, tree, stats, uses, biases)


def folded(
  model: model_lib.Model,
  plan: plan_lib.Plan,
  small: model_lib.Model,
  params: Any,
  variables: Any,
) -> tuple[Any, Any, str]:
  """(params, variables, what is said of it) that start where the mask was.

  Args:
    model, small: before and after.
    plan: the channels that stay.
    params, variables: what `cut` returned; may be traced.
  """
  groups = plan.structure.groups
  if not any(groups[name].inexact for name in plan.sizes):
    return params, variables, ''
  passed = streams.groups(plan.structure)
  layers = {n: x for n, x in plan.sources.items() if n in passed}
  deep = resized(model, plan_lib.Plan(plan.structure, layers))
  fold = fold_sizes.fold_sizes(output_of(deep), plan, output_of(small))
  try:
    tree, found = fold(tree_of(params, variables), model.inputs)
  except ValueError as e:
    return params, variables, f'Not folded: {e}'
  if found.left:  # half of a repair may be worse than none
    said = f'Not folded: no factor makes up for {found.left[0]}.'
    return params, variables, said
  if not found.factors:
    return params, variables, ''
  said = (
    f'{len(found.factors)} parameters took up numbers that depend on widths, so'
    ' that it starts where these channels are masked.'
  )
  return tree['params'], tree['variables'], said


def folding(
  model: model_lib.Model, plan: plan_lib.Plan, small: model_lib.Model
) -> tuple[bool, str]:
  """(whether `folded` changes parameters, what it says); nothing is computed."""
  told = []

  def fold(params, variables):
    new, _, said = folded(model, plan, small, params, variables)
    told.append((new is not params, said))

  jax.eval_shape(fold, small.params, small.variables)
  return told[0]


def resized(model: model_lib.Model, plan: plan_lib.Plan) -> model_lib.Model:
  """The model that runs what a plan leaves.

  Raises:
    ValueError: its program has sizes itself, and no numbers of its config set them.
  """
  tree = tree_of(model.params, model.variables)
  small = jax.eval_shape(lambda tree: plan_lib.shrink(plan, tree), tree)
  again = model
  if any(name in plan.structure.layers for name in plan.sources):
    # Layers with names are modules: a model that has fewer is another one.
    keywords = _shallower(model, small)
    again = model_lib.build(model.name, keywords, model.inputs, model.task)
  try:
    return model_lib.with_shapes(again, small['params'], small['variables'])
  except Exception:  # whatever a model raises that has other sizes
    if not has_own_sizes(plan):
      raise
    return model_lib.of_config(model, plan)


def has_own_sizes(plan: plan_lib.Plan) -> bool:
  """Whether sizes change that the program has itself, as that of a Linen module."""
  groups = plan.structure.groups
  return any(
    groups[n].fixed and groups[n].size != k for n, k in plan.sizes.items()
  )


def _shallower(model, small) -> dict[str, Any]:
  """The keywords of a model that has the leaves of `small`."""
  said, keys = (
    model.keywords,
    [key for key in ('depth', 'depths') if key in model.keywords],
  )
  for key in keys:
    most = said[key]
    whole = isinstance(most, int)
    ranges = [range(n + 1) for n in ((most,) if whole else most)]
    for depths in itertools.product(*ranges):
      keywords = said | {key: depths[0] if whole else depths}
      if _paths(tree_of(*model.shapes(keywords))) == _paths(small):
        return keywords
  raise ValueError(
    f'No depth of model {said["name"]!r} gives the layers that are left (it has'
    f' {keys or "no word for it"}). Let as many layers go of each stage of the model,'
    ' or leave `layers` out.'
  )


def _paths(tree) -> set[str]:
  return {path for path, _ in rules_lib.named_leaves(tree)}


def output_of(model: model_lib.Model) -> Callable[..., Any]:
  """`output(tree, x)`, `tree` as `tree_of` makes it."""

  def output(tree, x):
    return model.apply(tree['params'], tree['variables'], x)[0]

  return output


def _budget(shrink, model, table=None):
  """What the limits are of, or None."""
  if not shrink.limits:
    return None
  return pruning.budget.Budget(
    output_of(model),
    tree_of(model.params, model.variables),
    model.inputs,
    table=table if shrink.latency else None,
    **shrink.limits,
  )


def _selected(shrink, model, found, worth, budget):
  return pruning.keep.select(
    found,
    worth,
    # Of layers alone, the rules say all.
    keep=shrink.keep or (None if budget else 1.0),
    budget=budget,
    by=_rules(shrink, model, found, worth),
    scope=shrink.scope,
    at_least=int(shrink.at_least) if shrink.at_least >= 1 else shrink.at_least,
    multiple=shrink.multiple,
    rounding=shrink.rounding,
  )


def _rules(shrink, model, found, worth):
  """`by` of `select`: layers first, as they are never exact."""
  by = list(shrink.by)
  if not shrink.layers:
    return by or _of_keywords(model, found, worth)
  layers = streams.groups(found)
  if not layers:
    raise ValueError(
      f'layers={shrink.layers}, and the model has none that pass one value on, of'
      ' one shape. Leave it out.'
    )
  if not by:
    stay = not (shrink.keep or shrink.limits)
    by = [
      (re.escape(n), None if stay or _kept(found.groups[n]) else 'keep')
      for n in worth
      if n not in layers
    ]
  return [*((re.escape(name), shrink.layers) for name in layers), *by]


def _of_keywords(model, found, worth):
  """Rules for a network that has all sizes itself: what its keywords set may go."""
  groups = [found.groups[name] for name in worth]
  exact = [g.name for g in groups if not g.inexact]
  if not exact or not all(map(_kept, groups)):
    return None

  def shapes(keywords):
    return tree_of(*model.shapes(keywords))

  may = config_delta.settable(shapes, model.keywords, found, exact)
  if not may:
    has = list(config_numbers.numbers(model.keywords))
    raise ValueError(
      f'Model {model.name!r} has the sizes of {exact[:5]} itself, so that a smaller'
      f' one is built of other keywords, and none of {has} sets them without one that'
      ' has to stay. Let it have a keyword for each width that may go, as in'
      ' nn.Dense(self.width).'
    )
  return [(re.escape(n), 'keep' if n in may else None) for n in worth]


def _kept(group) -> bool:
  return bool(group.inexact or group.fixed)


def _importance(shrink, found, model, tree, batches, seed):
  """{group: what each of its channels, or layers, is worth}."""
  worth = _of_channels(shrink, found, model, tree, batches, seed)
  if not shrink.layers:
    return worth
  score, inputs = shrink.layer_score, [x for x, _ in batches]
  if score == 'score':
    return worth | pruning.depth.score(found, tree)
  if score == 'loss':
    return worth | pruning.depth.loss(found, loss_of(model), tree, batches)
  score = getattr(pruning.depth, score)
  return worth | score(found, output_of(model), tree, inputs)


def loss_of(model: model_lib.Model) -> Callable[..., jax.Array]:
  """`loss(tree, x, labels)`: the loss of the task, `tree` as `tree_of` makes it."""

  def loss(tree, x, labels):
    y = output_of(model)(tree, x)
    return losses.mean(*model.task.loss(y, labels, None))

  return loss


def _of_channels(shrink, found, model, tree, batches, seed):
  if shrink.score == 'random':
    rng = np.random.default_rng(seed)
    return {name: rng.random(g.size) for name, g in found.free.items()}

  loss = loss_of(model)
  if shrink.score == 'activations':
    inputs = [x for x, _ in batches]
    return pruning.activations(found, output_of(model), tree, inputs)
  score, asks = getattr(pruning.scores, shrink.score), _asks(shrink.score)
  others = ()
  if 'gradient' in asks:
    others = (pruning.gradients(loss, tree, batches),)
  if 'gradient_squares' in asks:
    others = (pruning.fisher(loss, tree, batches),)
  if 'k' in asks:
    at = {'quantile': shrink.quantile} if shrink.quantile else {'k': shrink.k}
    score = functools.partial(score, **at)
  return pruning.importance.importance(found, tree, *others, score=score)
