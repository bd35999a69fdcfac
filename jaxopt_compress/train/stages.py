"""One stage of a plan, ready to run: its compression, its step, its templates.

Building computes nothing: shapes are traced and rules are checked, so that a typo
in the fifth stage is found before the first has been trained.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress import distillation
from jaxopt_compress import quantization
from jaxopt_compress.analysis.plan import plan as channels_lib
from jaxopt_compress.calibration import ranges as ranges_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.train import compressing
from jaxopt_compress.train import distil
from jaxopt_compress.train import features
from jaxopt_compress.train import fields
from jaxopt_compress.train import final as final_lib
from jaxopt_compress.train import grow
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import named
from jaxopt_compress.train import on_policy
from jaxopt_compress.train import optimizer as optimizer_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import penalty
from jaxopt_compress.train import plan as plan_lib
from jaxopt_compress.train import shrink as shrink_lib
from jaxopt_compress.train import words
from jaxopt_compress.train.step import state as state_lib
from jaxopt_compress.train.step import train_step as train_step_lib


@dataclasses.dataclass(frozen=True)
class Built:
  """A stage and all that it needs to run.

  `final` is the abstract form of what a finished stage leaves behind:
  {'params': stored leaves, 'variables', 'plain': parameters before compression}.
  Where channels go or come, `source` is the model before, and `plan` says which. Sizes are
  `guessed` where only scores can tell them.
  """

  stage: options.Stage
  source: model_lib.Model
  plan: channels_lib.Plan | None
  model: model_lib.Model
  compression: compression_lib.Compression
  step: Callable[..., Any] | None  # for one replica; None if nothing is trained
  create: Callable[..., state_lib.TrainState]
  template: state_lib.TrainState  # abstract
  final: dict[str, Any]
  ranges: dict[str, Any]  # placeholders of what `calibrate` finds; may be {}
  teachers: Sequence[model_lib.Model] = ()  # of the stages that it learns from
  guessed: bool = False


def build_all(
  plan: plan_lib.Plan,
  models: Mapping[str, model_lib.Model],
  found: Mapping[str, channels_lib.Plan],
) -> dict[str, Built]:
  """All stages by name, each with the sizes that the one before it leaves.

  Args:
    plan: of the run.
    models: as the config describes them.
    found: the plans for channels that are known; the sizes of others are guessed.

  Raises:
    ValueError: as `build`.
  """
  built = {}
  for stage in plan.stages:
    model = models[stage.model]
    parent = built.get(stage.parent)
    if parent and parent.stage.model == stage.model:
      model = parent.model
    elif parent and stage.grow.asked:
      grow.check_model(stage, parent.model, model)
    teachers = tuple(built[n].model for n in stage.distil.stages)
    known = found.get(stage.name)
    seed = plan_lib.stage_seed(plan.seed, stage.name)
    b = build(stage, model, teachers, plan.data, known, seed)
    guessed = known is None and shrink_lib.depends(stage.shrink)
    if parent and model is parent.model:
      guessed |= parent.guessed
    built[stage.name] = dataclasses.replace(b, guessed=guessed)
  return built


def _refuse(e, stage, source):
  """Raises a ValueError for a mistake of the user's, or of a model of theirs."""
  if isinstance(e, ValueError):
    raise ValueError(f'Stage {stage.name!r}: {e}') from e
  if named.is_own(str(source.keywords.get('name', ''))):
    raise ValueError(
      f'Stage {stage.name!r}: config.models.{source.name} does not take it.'
      f' {type(e).__name__}: {e}'
    ) from e


def build(
  stage: options.Stage,
  source: model_lib.Model,
  teachers: Sequence[model_lib.Model],
  data: options.Data,
  plan: channels_lib.Plan | None = None,
  seed: int = 0,
) -> Built:
  """Builds and checks a stage.

  Args:
    stage: to be built.
    source: the model that it starts from.
    teachers: the models that it learns from.
    data: what is read.
    plan: of the channels that are there, where some go or come; None to guess how
      many go.
    seed: of random masks, where the stage says none.

  Raises:
    ValueError: rules that do not cover, match nothing, or name what is not there;
      the message begins with the name of the stage.
  """
  try:
    model = source
    if stage.shrink.asked:
      plan = plan or shrink_lib.guessed(stage.shrink, source)
      model = shrink_lib.resized(source, plan)
    if stage.grow.asked:
      plan = plan or grow.planned(stage.grow, source)
      model = grow.resized(source, plan)
    blank = _placeholders(stage, model)
    drawn = words.seeded(stage, seed)
    compression = compressing.compression_of(drawn, model.uses, blank)
    optimizer, learned = optimizer_lib.pair(stage.optimizer, stage.steps)
    asked = features.read(stage, model, teachers)
    create = _creates(drawn, model.uses, optimizer, learned, asked)

    # Shapes alone: what does not fit raises here, and nothing is computed.
    key = jax.eval_shape(lambda: jax.random.key(0))
    template = jax.eval_shape(create, model.params, model.variables, key, blank)
    final = _final(stage, model, compression, template)
    _check_read(stage, blank, template.learned)
    distil.check_numbers(stage, model.answers)
    redraw = on_policy.redraws(stage, model, data)
  except Exception as e:
    _refuse(e, stage, source)
    raise
  step = train_step_lib.train_step(
    features.of_student(asked, stage, model),
    penalty.added(
      distil.loss_of(stage, data, asked, source.task), stage.penalty
    ),
    optimizer,
    inputs=data.input,
    compression=compression,
    learned_optimizer=learned,
    redraw=redraw,
    accumulate=stage.accumulate,
    **distil.for_step(stage, teachers, asked),
  )
  return Built(
    stage=stage,
    source=source,
    plan=plan,
    model=model,
    compression=compression,
    step=step if stage.steps else None,
    create=create,
    template=template,
    final=final,
    ranges=blank,
    teachers=teachers,
  )


def _creates(stage, uses, optimizer, learned, asked):
  """`Built.create`."""
  trained = compressing.everything
  if stage.adapters.rules:
    trained = compressing.adapters

  def create(params, variables, rng, ranges):
    params, compression = trained(stage, uses, params, rng, ranges)
    return state_lib.create(
      params,
      variables,
      rng,
      optimizer,
      compression=compression,
      learned_optimizer=learned,
      follow=stage.distil.follows,
      origins=penalty.origins(stage.penalty, params),
      # A key that no step has: those fold in their number.
      connectors=asked.connectors(jax.random.fold_in(rng, 2**32 - 2)),
    )

  return create


def _final(stage, model, compression, template):
  """`Built.final`: what a score takes has the form of the parameters, or is a key."""
  asks = words.asks(stage)
  return jax.eval_shape(
    lambda s, given: final_lib.finish(s, stage, model, compression, given),
    template,
    {n: template.rng if n == 'key' else model.params for n in asks},
  )


def _check_read(stage, ranges, learned):
  """Options of what this stage turns out not to have."""
  unread = (
    []
    if learned
    else [('learned_rate', 'lsq, lsq+ or pact in quantize, or movement')]
  )
  if stage.prune.rules:
    taken = words.takes(stage.prune)
    taken += ['seed'] * (stage.prune.score == 'random')
    unread += [
      (f'prune_{name}', 'a prune_method (or score) that takes it')
      for name in words.METHOD_NUMBERS
      if name not in taken
    ]
  if not words.on_data(stage):
    unread += [('prune_batches', 'a prune_score of data and steps=0')]
  if not ranges:
    static = 'static ranges in quantize'
    unread += [('calibrate', static), ('calibrate_batches', static)]
    if not stage.steps and not words.on_data(stage):
      unread += [
        (key, f'steps, or {static}, or a prune_score of data')
        for key in ('batch_size', 'files')
      ]
  for key, need in unread:
    fields.check_unread(f'config.stage.{stage.name}', stage, [key], need)


def _placeholders(stage, model):
  if not stage.quantize.rules:
    return {}
  rules = words.quantize_rules(stage.quantize, model.uses)
  found = quantization.ranges.placeholders(model.params, rules, model.uses)
  chosen = quantization.schemes.by_leaf(rules, model.params)
  for path, scheme in chosen.items():
    specs = (
      (scheme.weight, scheme.act) if stage.adapters.rules and scheme else ()
    )
    if any(s.learn for s in specs if s):
      raise ValueError(
        f'{path} is the frozen base of adapters ({scheme.describe()}): it can'
        ' neither learn ranges nor follow a moving average. Leave out "lsq",'
        ' "pact" and "ema".'
      )
  # Ranges that are learned, or follow, may begin anywhere.
  stay = [path for path in found if not chosen[path].act.learn]
  if stay and not stage.init:
    raise ValueError(
      f'{stay[0]} has static activations, whose range is measured on a trained'
      ' network and then stays. Set init to the stage that trains it, let the'
      ' range be learned ("lsq", "pact"), or leave out "static" to measure at run'
      ' time.'
    )
  return found


def calibrate(
  built: Built,
  params: Any,
  variables: Any,
  batches: Sequence[Any],
  given: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Ranges of the static activations of a stage, in the shapes of `built.ranges`.

  Args:
    built: the stage.
    params, variables: that it starts from.
    batches: inputs.
    given: what the score of a stage that trains nothing takes: see `one_shot`.

  Raises:
    ValueError: as `jc.calibrate`; the message begins with the name of the stage.
  """

  def output(params, x):
    return built.model.apply(params, variables, x)[0]

  quantize = built.stage.quantize
  rules = words.quantize_rules(quantize, built.model.uses)
  if built.stage.prune.rules and not built.stage.steps:
    masked = final_lib.pruned(params, built.stage, built.model.uses, given)
    params = array.materialize(masked)
  try:
    found = ranges_lib.calibrate(
      output, params, rules, batches, built.model.uses, quantize.calibrate
    )
  except ValueError as e:
    raise ValueError(f'Stage {built.stage.name!r}: {e}') from e
  return jax.tree.map(
    lambda x, like: jnp.broadcast_to(x, like.shape), found, built.ranges
  )


def start(
  built: Built, name: str, own: tuple[Any, Any], source: dict[str, Any]
) -> tuple[Any, Any]:
  """What a stage starts from that has an `init`: (params, variables).

  Args:
    built: the stage.
    name: of the model of `init`.
    own: (params, variables) of its model, as they are initialised.
    source: what `init` left behind; see `Built.final`.

  Raises:
    ValueError: models of different layouts; the message begins with the stage's name.
  """
  found = array.materialize(source['params']), source['variables']
  if name == built.model.name:
    return found
  # In one tree: statistics of batches belong to the channels that weights come from.
  target, source = (
    dict(params=params, variables=variables)
    for params, variables in (own, found)
  )
  try:
    started = distillation.warm_start(target, source)
  except ValueError as e:
    raise ValueError(
      f'Stage {built.stage.name!r} starts model {built.model.name!r} from model'
      f' {name!r}: {e}'
    ) from e
  return started['params'], started['variables']


def with_sharding(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """An abstract tree that says that every device holds it whole."""
  sharding = mesh_lib.replicated(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
