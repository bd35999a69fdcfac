"""Several losses, or several teachers, as one.

weighted   sum_k w_k loss_k
"""

from functools import partial
from typing import Any

import jax

from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import softened

SumAndCount = positions.SumAndCount


def weighted(
  *terms: tuple[Any, ...],
  mask: jax.Array | None = None,
) -> SumAndCount:
  """The weighted sum of losses on the same positions.

  What has weight 0 has no part in the sum or in any gradient, whatever it is. With one
  loss and several teachers this is an ensemble of losses; `teachers.ensemble` is one of
  distributions. For `kl` the two have the same gradient.

  Args:
    *terms: each `(weight, loss, *inputs)`. The weight is a scalar, and may be traced;
      the loss is called as `loss(*inputs, mask=mask)`; what derivatives are taken of
      is among the inputs. Bind options with `functools.partial`.
    mask: [...], weights of positions, for all terms.

  Returns:
    (sum, count); the count is that of any term.

  Raises:
    ValueError: there are no terms, or their counts differ (as far as they are known
      outside of `jit`): a loss that counts other things, such as pairs, is divided by
      its own count before it is added.

  >>> import jax.numpy as jnp
  >>> from jaxopt_compress.distillation import losses
  >>> s, t, labels = jnp.zeros((1, 2)), jnp.array([[0., -jnp.inf]]), jnp.array([0])
  >>> total, count = weighted(
  ...   (0.5, losses.total_variation, s, t),
  ...   (2., losses.cross_entropy, s, labels),
  ... )
  >>> round(float(total), 4)  # 0.5 * 0.5 + 2 log 2
  1.6363
  """
  if not terms:
    raise ValueError(
      'A weighted sum of no losses. Give terms, each (weight, loss, *inputs).'
    )
  sums, counts = [], []
  for weight, loss, *inputs in terms:
    total, count = positions.gated(weight, partial(loss, mask=mask), *inputs)
    sums.append(weight * total)
    counts.append(count)
  known = {float(n) for n in counts if softened.is_known(n)}
  if len(known) > 1:
    raise ValueError(
      f'These losses count different things: {sorted(known)}. Divide each by its'
      ' own count (losses.mean) before you add them.'
    )
  return sum(sums), counts[0]
