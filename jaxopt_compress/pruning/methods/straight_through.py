"""Straight-through top-k: masked weights go on learning.

    y      = f(where(mask, w, 0))
    dL/dw  = dL/dy          also where the mask is 0

Bengio et al. 2013, https://arxiv.org/abs/1308.3432, section 4; as pruning, among others,
Lin et al. 2020 (DPF), https://arxiv.org/abs/2006.07253. Masks are those of `gradual`: what
differs is that a masked weight can grow until it comes back.
"""

from typing import Any

from jaxopt_compress.core import compression
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning.methods.gradual import gradual


def straight_through(
  rules: masking.Rules, uses: dict | None = None, **given: Any
) -> compression.Compression:
  """Masks as `prune` does, with the gradient that there is without masks.

  Give rules with `every=1` and the `end` of the training, so that masks follow the
  weights; from `end` on they are fixed.

  Args:
    rules: ordered `(regex, value)`, as for `jc.prune`.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    **given: as for `prune`.

  >>> import jax, jax.numpy as jnp
  >>> comp = straight_through([(r'w', masking.Sparsity(0.5))])
  >>> params = {'w': jnp.array([3., 1.])}
  >>> state = comp.init(params)
  >>> y = lambda p: comp.apply(p, state)['w'].materialize()
  >>> y(params).tolist(), jax.grad(lambda p: y(p).sum())(params)['w'].tolist()
  ([3.0, 0.0], [1.0, 1.0])
  """
  return clock.learning(gradual(rules, uses, **given))
