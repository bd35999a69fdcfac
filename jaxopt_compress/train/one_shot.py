"""What a stage that prunes and trains nothing ranks its weights by.

Scores take more than weights (see `pruning.scoring`): gradients, what weights meet, a
key. A stage that is trained has them at every step; here they come from batches of
training data as it is, and the parameters that the stage starts from.
"""

import re
from typing import Any

import jax

from jaxopt_compress import pruning
from jaxopt_compress.analysis import observe as observe_lib
from jaxopt_compress.analysis import statistics
from jaxopt_compress.core import array
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import plan as plan_lib
from jaxopt_compress.train import plans
from jaxopt_compress.train import shrink
from jaxopt_compress.train import stages
from jaxopt_compress.train import words


def given(
  job: job_lib.Job, built: stages.Built, params: Any, variables: Any
) -> dict[str, Any]:
  """{name: what the score takes}; empty where it takes nothing, or steps train.

  Args:
    job: the run.
    built: the stage.
    params, variables: that it starts from.

  Raises:
    ValueError: gradients that are not finite; the message begins with the stage's
      name.
  """
  stage = built.stage
  asks, found = words.asks(stage), {}
  if 'key' in asks:
    seed = plan_lib.stage_seed(job.plan.seed, stage.name)
    found['key'] = jax.random.key(words.seeded(stage, seed).prune.seed)
  if not words.on_data(stage):
    return found
  batches = plans.batches(job, stage, stage.prune.batches)
  tree = array.materialize(shrink.tree_of(params, variables))
  loss = shrink.loss_of(built.model)
  try:
    if 'gradient' in asks:
      grads = pruning.gradients(loss, tree, batches)
      found['gradient'] = grads['params']
    if 'gradient_squares' in asks:
      squares = pruning.fisher(loss, tree, batches)
      found['gradient_squares'] = squares['params']
  except ValueError as e:
    raise ValueError(f'Stage {stage.name!r}: {e}') from e
  if 'input_squares' in asks:
    found['input_squares'] = _met(built, tree, [x for x, _ in batches])
  return found


def _met(built, tree, inputs):
  """The squares of what each weight that is pruned meets, summed over inputs."""

  def output(params, variables, x):
    return built.model.apply(params, variables, x)[0]

  rules = words.prune_rules(built.stage.prune, 0, built.model.uses)
  pruned = pruning.masking.by_rule(rules, tree['params'])
  paths = [path for _, leaves in pruned for path in leaves]
  wanted = {re.escape(path): statistics.sum_squares() for path in paths}
  observed = jax.jit(observe_lib.observe(output, wanted))
  stats = {}
  for x in inputs:
    now = observed(tree['params'], tree['variables'], x)[1]
    stats = observe_lib.merge_stats(wanted, stats, now)
  return stats
