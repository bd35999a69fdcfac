"""What the rules of a config mean: words and numbers become specifications.

quantize = ((r'.*/kernel', 'W8A8'), (r'.*', None))
quantize = ((r'.*/kernel', 'int4 g32, int8 token'), (r'.*', None))
prune    = ((r'head/.*', None), (r'.*/kernel', 0.8), (r'.*', None))
prune    = ((r'.*/kernel', '2:4'), (r'.*', None))                   2 kept of 4
prune    = ((r'.*/kernel', 'neurons 0.5'), (r'.*', None))
prune    = ((r'.*/kernel', 'block 4x4 0.5'), (r'.*', None))         tiles of 4 x 4
prune    = ((r'.*/kernel', '0.8 wanda every=5'), (r'.*', None))    goes before prune_score
lora     = ((r'.*/kernel', 8), (r'.*', None))                       of rank 8

Or by what a weight is used for, with no name of a layer: the keywords of `jc.rules_for`,
on the command line `--config.stage.small.quantize.dot=W4A16` where a config has `dot`.

quantize = dict(dot='W4A16', conv='W8A8', gather='int8', last=None)
prune    = dict(dot=0.8, at_least=1024)
lora     = dict(dot=8)
"""

from collections.abc import Mapping
import dataclasses
import inspect
from typing import Any

import jax

from jaxopt_compress import pruning
from jaxopt_compress import quantization
from jaxopt_compress.analysis.rules_for import rules_for
from jaxopt_compress.core import choices
from jaxopt_compress.core import compression
from jaxopt_compress.train import fields
from jaxopt_compress.train import options

# What a dict in place of rules may say.
_BY_USE = tuple(inspect.signature(rules_for).parameters)[1:]


def quantize_rules(
  quantize: options.Quantize, uses: dict[str, Any]
) -> list[tuple[str, Any]]:
  """Rules for `jc.quantize` and `quantization.fake_quantize`."""
  pairs = _pairs('quantize', quantize.rules, uses)
  return [(p, quantization.schemes.scheme(value)) for p, value in pairs]


def lora_rules(
  adapters: options.Adapters, uses: dict[str, Any]
) -> list[tuple[str, Any]]:
  """Rules for `jc.adapters.add_lora`."""
  return list(_pairs('lora', adapters.rules, uses))


def prune_rules(
  prune: options.Prune, steps: int, uses: dict[str, Any]
) -> list[tuple[str, Any]]:
  """Rules for `jc.methods.gradual`, in a stage of that many steps."""
  pairs = _pairs('prune', prune.rules, uses)
  return [(pattern, _sparsity(value, prune, steps)) for pattern, value in pairs]


def _sparsity(value, prune, steps):
  if value is None:
    return None
  begin, end = (round(fraction * steps) for fraction in prune.span)
  of_stage = dict(
    score=prune.score,
    scope=prune.scope or None,
    k=prune.k,
    begin=begin,
    end=end,
    every=prune.every,
    schedule=prune.schedule,
    allocation=prune.allocation,
  )
  return pruning.Sparsity(**of_stage | pruning.words.fields(value))


def asks(stage: options.Stage) -> set[str]:
  """What the scores of a stage that trains nothing take beside weights."""
  if stage.steps:
    return set()
  rules = stage.prune.rules
  if isinstance(rules, Mapping):
    values = [value for key, value in rules.items() if key != 'at_least']
  else:
    values = [value for _, value in _pairs('prune', rules, {})]
  specs = [_sparsity(value, stage.prune, 0) for value in values]
  return {name for spec in specs if spec for name in spec.inputs()}


def on_data(stage: options.Stage) -> bool:
  """Whether some of it comes from batches."""
  return bool(asks(stage) - {'key'})


# Numbers of a config that only some methods take.
METHOD_NUMBERS = ('drop', 'threshold', 'penalty', 'decay', 'seed')


def prune_method(
  prune: options.Prune, steps: int, uses: dict[str, Any]
) -> compression.Compression:
  """What changes the masks, in a stage of that many steps."""
  given = {name: getattr(prune, name) for name in takes(prune)}
  method = getattr(pruning.methods, prune.method)
  if (
    prune.score == 'random' and 'given' in inspect.signature(method).parameters
  ):
    given['key'] = jax.random.key(prune.seed)
  return method(prune_rules(prune, steps, uses), uses, **given)


def seeded(stage: options.Stage, seed: int) -> options.Stage:
  """The stage with a seed of its masks: that which it says, or this one."""
  if stage.prune.seed >= 0:
    return stage
  prune = dataclasses.replace(stage.prune, seed=seed)
  return dataclasses.replace(stage, prune=prune)


def takes(prune: options.Prune) -> list[str]:
  """Which of `METHOD_NUMBERS` the method takes."""
  choices.one_of('prune_method', prune.method, pruning.methods.__all__, '=')
  signature = inspect.signature(getattr(pruning.methods, prune.method))
  return [name for name in METHOD_NUMBERS if name in signature.parameters]


def _pairs(where, rules, uses):
  if isinstance(rules, Mapping):
    fields.check_keys(where, rules, _BY_USE)
    return rules_for(uses, **rules)
  for rule in rules:
    if not isinstance(rule, tuple) or len(rule) != 2:
      raise ValueError(f'A rule is a pair (regex, value), not {rule!r}.')
  return rules
