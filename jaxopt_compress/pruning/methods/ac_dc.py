"""AC/DC: phases of compressed and of dense training take turns.

Peste et al. 2021, https://arxiv.org/abs/2106.12379, algorithm 1: a dense warm-up, then
compressed and decompressed phases by turns, and a compressed one to the end. A phase of
compression begins with the weights of largest magnitude; in one of decompression the
others train again, from zero.
"""

from typing import Any

import jax.numpy as jnp

from jaxopt_compress.core import compression
from jaxopt_compress.pruning import clock
from jaxopt_compress.pruning import masking


def ac_dc(
  rules: masking.Rules, uses: dict | None = None, **given: Any
) -> compression.Compression:
  """Masks by turns: `target` for `every` steps, nothing for `every` steps.

  Dense before `begin`, compressed for good from `end` on. Masked weights are zero.

  Args:
    rules: ordered `(regex, value)`, as for `jc.prune`; `every` is the length of
      a phase, and `schedule` has no part.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    **given: as for `prune`.

  >>> comp = ac_dc([(r'w', masking.Sparsity(0.5, begin=2, end=8, every=2))])
  >>> params = {'w': jnp.arange(4.)}
  >>> state, kept = comp.init(params), []
  >>> for step in range(1, 10):
  ...   state = comp.update(state, params, compression.Info(step))
  ...   kept.append(state.masks['w'].sum().item())
  >>> kept
  [4, 2, 2, 4, 4, 2, 2, 2, 2]
  """

  def masks(spec, leaves, step):
    phase = (step - spec.begin) // spec.every
    compressed = (step >= spec.begin) & ((phase % 2 == 0) | (step >= spec.end))
    found = masking.compute(spec, leaves, uses, **given)
    return {path: mask | ~compressed for path, mask in found.items()}

  def change(spec, leaves, now):
    return masks(spec, leaves, now.step)

  def first(spec, leaves):
    return masks(spec, leaves, jnp.zeros((), jnp.int32))

  return clock.clocked(rules, change, first, rest='zero')
