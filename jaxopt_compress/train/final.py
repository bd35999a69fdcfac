"""What a stage leaves behind, and what of it is stored."""

from typing import Any

from jaxopt_compress import pruning
from jaxopt_compress import quantization
from jaxopt_compress.core import array
from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import words
from jaxopt_compress.train.step import state as state_lib


def finish(
  state: state_lib.TrainState,
  stage: options.Stage,
  model: model_lib.Model,
  compression: compression_lib.Compression,
  given: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """What a stage leaves behind: see `stages.Built.final`.

  Args:
    state: after the last step.
    stage, model, compression: of the stage.
    given: what the score of a stage that trains nothing takes: see `one_shot`.
  """
  params = plain = state.params
  if stage.steps:
    params = state_lib.compressed(state, compression)
    plain = array.materialize(params) if stage.adapters.rules else plain
  else:
    if stage.prune.rules:
      params = pruned(params, stage, model.uses, given)
    if stage.quantize.rules:
      rules = words.quantize_rules(stage.quantize, model.uses)
      params = quantization.quantize.quantize(
        params, rules, model.uses, ranges=state.comp_state
      )
  return {
    'params': compression_lib.freeze(params),
    'variables': state.variables,
    'plain': plain,
  }


def stored(final: dict[str, Any]) -> dict[str, Any]:
  """What a stage needs at inference: its parameters and its variables."""
  return {'params': final['params'], 'variables': final['variables']}


def without_zeros(
  final: dict[str, Any], uses: dict[str, Any]
) -> dict[str, Any]:
  """`stored` as it is written: pruned leaves without zeros where that is smaller."""
  params, _ = pruning.sparsify.sparsify(final['params'], uses=uses)
  return stored(final) | {'params': params}


def pruned(
  params: Any,
  stage: options.Stage,
  uses: dict[str, Any],
  given: dict[str, Any] | None,
) -> Any:
  """The parameters under the masks of a stage that trains nothing."""
  rules = words.prune_rules(stage.prune, stage.steps, uses)
  return pruning.prune.prune(params, rules, uses, **(given or {}))
