"""What happens to the parameters while a stage trains."""

from typing import Any

import jax

from jaxopt_compress import quantization
from jaxopt_compress.adapters import lora
from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import words


def everything(stage, uses, params, rng, ranges):
  """(what is trained, its compression) of a stage that trains all parameters."""
  del rng
  return params, compression_of(stage, uses, ranges)


def adapters(stage, uses, params, rng, ranges):
  """(what is trained, its compression) of a stage that trains adapters.

  The state of the compression is the frozen base, stored as the stage says.
  """
  if stage.quantize.rules:
    rules = words.quantize_rules(stage.quantize, uses)
    params = quantization.quantize.quantize(params, rules, uses, ranges=ranges)
  # A key that no step has: those fold in their number.
  key = jax.random.fold_in(rng, 2**32 - 1)
  factors = lora.add_lora(
    params, words.lora_rules(stage.adapters, uses), uses, key=key
  )
  compression = compression_of(stage, uses, ranges)
  return factors, compression._replace(init=lambda factors: params)


def _beside(
  stage: options.Stage, uses: dict[str, Any]
) -> compression_lib.Compression:
  """Adapters beside a frozen base, which is the state."""
  return compression_lib.Compression(
    init=lambda factors: (),
    apply=lambda factors, base: lora.with_lora(
      base,
      factors,
      uses,
      alpha=stage.adapters.alpha,
      rank_stabilized=stage.adapters.rank_stabilized,
    ),
    update=lambda base, factors, info: base,
  )


def compression_of(
  stage: options.Stage, uses: dict[str, Any], ranges: dict[str, Any]
) -> compression_lib.Compression:
  """What happens to the parameters while a stage trains: masks, then rounding.

  Ranges of static activations are in its state, so that a run which resumes goes
  on with those it began with.
  """
  if stage.adapters.rules:
    return _beside(stage, uses)
  parts = []
  if stage.prune.rules:
    parts.append(words.prune_method(stage.prune, stage.steps, uses))
  if stage.quantize.rules:
    rules = words.quantize_rules(stage.quantize, uses)
    parts.append(quantization.fake_quantize(rules, uses, ranges=ranges))
  # Nothing happens over time, but the ranges have to be in the state.
  if not stage.steps:
    return compression_lib.Compression(
      init=lambda params: ranges,
      apply=lambda params, state: params,
      update=lambda state, params, info: state,
    )
  return compression_lib.chain(*parts)
