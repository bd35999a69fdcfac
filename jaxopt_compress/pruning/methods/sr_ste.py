"""SR-STE: N:M masks from scratch, with masked weights held down.

    w  <-  w - rate (dL/dy + decay (1 - mask) w)

Zhou et al. 2021, https://arxiv.org/abs/2102.04010, eq. 7 to 9. Without the decay masks
would change to the end, as masked weights near the threshold keep coming back.
"""

from typing import Any

from jaxopt_compress.core import compression
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning.methods.gradual import gradual


def sr_ste(
  rules: masking.Rules,
  uses: dict | None = None,
  *,
  decay: float = 2e-4,
  **given: Any,
) -> compression.Compression:
  """Straight-through masks whose masked weights decay by the gradient.

  The decay is added to the gradient of masked weights before the optimizer sees it, by
  `jc.pruning.sparse` and by the trainer; with Adam it is scaled as the gradient is.

  Args:
    rules: ordered `(regex, value)`, as for `jc.prune`; such as
      `Sparsity(kind='n_m', n=2, m=4, end=steps, schedule='constant')`.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    decay: in parts of the weight, lambda of the paper.
    **given: as for `prune`.

  Raises:
    ValueError: a negative decay.

  >>> import jax.numpy as jnp
  >>> comp = sr_ste([(r'kernel', '1:2')])
  >>> comp.init({'kernel': jnp.array([[1.], [2.]])}).pull
  0.0002
  """
  if not 0 <= decay < float('inf'):
    raise ValueError(f'decay={decay}; a factor, 0 or more, is expected.')
  return clock.learning(gradual(rules, uses, **given), pull=decay)
