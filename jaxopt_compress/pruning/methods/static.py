"""Masks that are there from the start and never change.

A network that is sparse before it has learned anything: what dynamic methods have to
beat. With an allocation of 'erk' it is the random sparse network of Mocanu et al. 2018,
https://arxiv.org/abs/1707.04780, and Evci et al. 2020.
"""

from jaxopt_compress.core import compression
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import exchange
from jaxopt_compress.pruning import masking


def static(
  rules: masking.Rules, uses: dict | None = None, *, seed: int | None = 0
) -> compression.Compression:
  """Masks the targets of the rules at once, for good.

  Masked weights are zero, and their number never changes. The schedules of the rules
  have no part in this.

  Args:
    rules: ordered `(regex, value)`, as for `jc.prune`.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    seed: of the random masks; None: by the score of each rule.

  >>> import jax.numpy as jnp
  >>> comp = static([(r'w', masking.Sparsity(0.75))])
  >>> comp.init({'w': jnp.ones((4, 4))}).masks['w'].sum().item()
  4
  """

  def change(spec, leaves, now):
    return now.masks

  return clock.clocked(rules, change, exchange.first(uses, seed), rest='zero')
