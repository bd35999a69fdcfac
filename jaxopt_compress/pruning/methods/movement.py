"""Movement pruning: what moves away from zero stays.

    mask   = top k of S
    dL/dS  = w dL/dy          as if S multiplied the weights
    S      = - sum of w dL/dy over steps, by SGD

Sanh et al. 2020, https://arxiv.org/abs/2005.07683, eq. 3 to 5. A weight gains when a step
of descent makes it larger. It suits networks that were trained before on something
else, where magnitudes tell of that.
"""

import jax.numpy as jnp

from jaxopt_compress.core import compression
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import masking


def movement(
  rules: masking.Rules, uses: dict | None = None
) -> compression.Compression:
  """Masks by scores that are learned beside the weights.

  The scores are `jc.core.Learned` in the state. They begin at zero and have an
  optimizer of their own: the trainer's for what is learned, or
  `jc.pruning.sparse(tx, method, scores=...)`.
  A masked weight stays as it is; its score goes on.

  Args:
    rules: ordered `(regex, value)`, as for `jc.prune`; their score has no part.
    uses: what `jc.uses(apply)(params, x)` returned, or None.

  >>> comp = movement([(r'w', masking.Sparsity(0.5, end=4))])
  >>> comp.init({'w': jnp.ones(4)}).scores['w'].value.tolist()
  [0.0, 0.0, 0.0, 0.0]
  """

  def masks(spec, leaves, scores, step):
    fraction = spec.target * spec.ramp(step)
    return masking.compute(spec, leaves, uses, fraction, scores=scores)

  def change(spec, leaves, now):
    return masks(spec, leaves, now.scores, now.step)

  def first(spec, leaves):
    scores = clock.zeros(leaves)
    return masks(spec, leaves, scores, jnp.zeros((), jnp.int32))

  return clock.clocked(rules, change, first, learns=True)
