"""The masks of one stage on the weights of another: lottery tickets, rewinding.

Frankle et al. 2020, https://arxiv.org/abs/1912.05671: a sparse network is found at the
end of training, and trained again from the weights of an early step.
"""

from typing import Any

import jax.numpy as jnp

from jaxopt_compress import pruning
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.train import stages
from jaxopt_compress.train import words


def rewound(built: stages.Built, params: Any, source: Any) -> Any:
  """The parameters that a stage starts from, with the zeros of another stage.

  Zeros rank last, so the masks of the first step are those of that stage.

  Args:
    built: the stage, which says what is pruned, and how far.
    params: plain parameters.
    source: those that the stage `prune_masks` left behind.

  Raises:
    ValueError: other parameters, or leaves with another number of zeros than the
      rules ask for; the message begins with the stage's name.
  """
  stage = built.stage
  source = dict(rules_lib.named_leaves(array.materialize(source)))
  rules = words.prune_rules(stage.prune, stage.steps, built.model.uses)
  specs = rules_lib.match(rules, params)
  zeroed = rules_lib.map_named(
    lambda path, x: (
      x
      if specs[path] is None or source[path].shape != x.shape
      else jnp.where(source[path] != 0, x, jnp.zeros((), x.dtype))
    ),
    params,
  )
  masked = array.materialize(
    pruning.prune.prune(zeroed, rules, built.model.uses)
  )
  for path, x in rules_lib.named_leaves(masked):
    if specs[path] is not None and ((x != 0) != (source[path] != 0)).any():
      ours, theirs = (float((y == 0).mean()) for y in (x, source[path]))
      raise ValueError(
        f'Stage {stage.name!r} takes the masks of {stage.prune.masks!r}, of which'
        f' {path} has {theirs:.2%} zeros where the rules make {ours:.2%}. Give both'
        ' stages the same rules.'
      )
  return zeroed
