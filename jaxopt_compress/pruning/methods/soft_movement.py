"""Soft movement pruning: each layer finds how much it keeps.

    mask   = sigmoid(S) > threshold
    loss  += penalty * mean of sigmoid(S)
    dL/dS  = w dL/dy + the derivative of the penalty

Sanh et al. 2020, https://arxiv.org/abs/2005.07683, section 4.1 ("soft movement"), after
L0 regularisation. How sparse it gets follows from the penalty and the threshold.
"""

import math

import jax.numpy as jnp

from jaxopt_compress.core import compression
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import masking


def soft_movement(
  rules: masking.Rules,
  uses: dict | None = None,
  *,
  threshold: float = 0.1,
  penalty: float = 10.0,
) -> compression.Compression:
  """Masks where learned scores fall below a threshold.

  As `movement`, with these differences: no leaf gets sparser than the target of its
  rule, but it may stay denser; and the penalty is added to the gradient of the scores,
  by `jc.pruning.sparse` and by the trainer.

  Args:
    rules: ordered `(regex, value)`; masks change between `begin` and `end`,
      every `every` steps, and `schedule` has no part.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    threshold: of sigmoid(S), in (0, 1/2): scores begin at 0, above it.
    penalty: how much the mean of sigmoid(S), over weights and then leaves, counts in
      the loss.

  Raises:
    ValueError: numbers out of range.

  >>> comp = soft_movement([(r'w', masking.Sparsity(0.5, end=4))])
  >>> state = comp.init({'w': jnp.ones(4)})
  >>> state.masks['w'].tolist(), state.penalty
  ([True, True, True, True], 10.0)
  """
  if not 0 < threshold < 0.5 or not 0 <= penalty < math.inf:
    raise ValueError(
      f'threshold={threshold}, penalty={penalty}; a threshold in (0, 0.5) and a'
      ' penalty of 0 or more are expected.'
    )
  # sigmoid(S) > threshold, without the sigmoid.
  least = math.log(threshold / (1 - threshold))

  def change(spec, leaves, now):
    floor = masking.compute(spec, leaves, uses, scores=now.scores)
    return {path: floor[path] | (s > least) for path, s in now.scores.items()}

  def first(spec, leaves):
    return {path: jnp.ones(x.shape, bool) for path, x in leaves.items()}

  return clock.clocked(
    rules, change, first, learns=True, penalty=float(penalty)
  )
