"""SET: the smallest weights go, random ones come.

Mocanu et al. 2018, https://arxiv.org/abs/1707.04780, algorithm 1. A fraction of the
active weights is removed at each update, those nearest to zero (the paper takes the
same fraction of positive and of negative ones), and as many are added at random.
"""

from jaxopt_compress.core import compression
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import exchange
from jaxopt_compress.pruning import masking


def sparse_evolutionary(
  rules: masking.Rules,
  uses: dict | None = None,
  *,
  drop: float = 0.3,
  seed: int = 0,
) -> compression.Compression:
  """Exchanges weights of random masks, at steps that are no steps of the optimizer.

  The number of weights of each layer never changes. Masked weights are zero, and new
  ones begin there. Masks are random at first; they change at `begin`, every `every`
  steps, and at `end` for the last time.

  Args:
    rules: ordered `(regex, value)`, unstructured; `schedule` has no part.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    drop: the fraction of the active weights that is exchanged.
    seed: of the first masks and of what is grown.

  >>> import jax.numpy as jnp
  >>> rules = [(r'w', masking.Sparsity(0.5, end=9, every=3))]
  >>> comp, params = sparse_evolutionary(rules), {'w': jnp.arange(8.)}
  >>> state = comp.update(comp.init(params), params, compression.Info(3))
  >>> state.masks['w'].sum().item()
  4
  """
  exchange.check(rules, drop)

  def change(spec, leaves, now):
    def grow(path, x):
      return exchange.uniform(seed, path, x, now.step)

    return exchange.exchanged(spec, leaves, now.masks, grow, drop, uses)

  first = exchange.first(uses, seed)
  return clock.clocked(rules, change, first, skips=True, rest='zero')
