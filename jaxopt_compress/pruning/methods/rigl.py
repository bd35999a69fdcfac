"""RigL: the smallest weights go, those of the largest gradients come.

    f(t)     = drop / 2 (1 + cos(pi t / T_end))
    dropped  = the f(t) of smallest |w| among the active
    grown    = as many of largest |dL/dw| among the inactive; they begin at 0

Evci et al. 2020, https://arxiv.org/abs/1911.11134, algorithm 1. The gradient is dense:
that of a zero which could be anything. It is there for nothing, as products with
masks are dense as well.
"""

import jax.numpy as jnp

from jaxopt_compress.core import compression
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import exchange
from jaxopt_compress.pruning import masking


def rigl(
  rules: masking.Rules,
  uses: dict | None = None,
  *,
  drop: float = 0.3,
  seed: int | None = 0,
) -> compression.Compression:
  """Exchanges weights by gradients, at steps that are no steps of the optimizer.

  The number of weights of each layer never changes. Masked weights are zero; those
  that come back begin at zero, with nothing remembered. A weight that is dropped and
  grown in one step has stayed. Masks change every `every` steps from `begin` on, and
  no more once `end` is reached (three quarters of the training, in the paper).

  Args:
    rules: ordered `(regex, value)`, unstructured; `schedule` has no part.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    drop: the fraction of the active weights that is exchanged at `begin`.
    seed: of the first masks; None: by the score of each rule.

  >>> rules = [(r'w', masking.Sparsity(0.5, end=9, every=3))]
  >>> comp, params = rigl(rules, drop=1.0), {'w': jnp.array([1., 2., 3., 4.])}
  >>> grads = {'w': jnp.array([0., 9., 9., 0.])}
  >>> state = comp.update(comp.init(params), params, compression.Info(3, grads))
  >>> state.masks['w'].sum().item()
  2
  """
  exchange.check(rules, drop)

  def change(spec, leaves, now):
    def grow(path, x):
      return jnp.abs(now.grads[path])

    fraction = exchange.cosine(spec, drop, now.step)
    return exchange.exchanged(spec, leaves, now.masks, grow, fraction, uses)

  return clock.clocked(
    rules,
    change,
    exchange.first(uses, seed),
    needs_grads=True,
    skips=True,
    rest='zero',
    gradient='dense',
  )
