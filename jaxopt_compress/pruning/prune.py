"""Pruning at once: weights become zeros, in one call.

    pruned = jc.prune(params, [(r'.*/kernel', '2:4'), (r'.*', None)], uses)

`methods.gradual` does it while a network trains, as `jc.fake_quantize` is to
`jc.quantize`.
"""

from typing import Any
import warnings

from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning import scoring
from jaxopt_compress.pruning.methods.gradual import gradual


def prune(
  params: Any,
  rules: masking.Rules = (),
  uses: dict | None = None,
  **others: Any,
) -> Any:
  """Prunes at once to the targets; schedules are ignored.

  A value of a rule is a `Sparsity`, the words that one is said in, or None to leave
  leaves as they are:

      0.8                            a fraction of zeros, weight by weight
      '2:4'                          2 kept of each 4 along what is contracted
      'neurons 0.5', 'heads 0.25'    whole channels
      'block 4x4 0.5'                tiles
      '0.8 wanda', '0.8 global erk'  ranked and shared out otherwise (`words`)

  Args:
    params: a tree of arrays; leaves that are masked already are ranked with their
      zeros.
    rules: ordered `(regex, value)`; first match wins, every leaf must be covered and
      every rule used. `jc.rules_for(uses, dot=0.8)` writes them.
    uses: what `jc.uses(apply)(params, x)` returned: which axes are contracted, and
      which are stacked. Without it, only weight by weight in a whole leaf needs no
      axes.
    **others: what scores take beside weights, by name: gradient= of 'taylor',
      'first_order' and 'movement', gradient_squares= of 'fisher', each a tree of the
      form of `params`; input_squares= of 'wanda', what `jc.observe` saw; key= of
      'random'.

  Returns:
    The tree with `Masked` leaves. `jc.freeze` makes them plain arrays, `jc.sparsify`
    stores them without their zeros.

  Raises:
    ValueError: no rule covers a leaf, a leaf is not floating or has NaN, its axes are
      unknown, m does not divide the contracted one, nothing would be left of a layer,
      or a score lacks what it takes.

  Example, Wanda:

      wanted = {r'.*/kernel': jc.statistics.sum_squares()}
      _, stats = jc.observe(apply, wanted)(params, x)
      rules = [(r'.*/kernel', '0.5 wanda'), (r'.*', None)]
      pruned = jc.prune(params, rules, uses, input_squares=stats)

  >>> import jax.numpy as jnp
  >>> p = prune({'w': jnp.array([3., 1.])}, [(r'w', 0.5)])
  >>> p['w'].describe()
  'masked 50%'
  """
  if _are_rules(params):
    # As it was called in the release before.
    warnings.warn(
      'jc.prune(rules, uses) is jc.methods.gradual(rules, uses) now; jc.prune(params,'
      ' rules, uses) prunes at once.',
      DeprecationWarning,
      stacklevel=2,
    )
    return gradual(params, rules or uses, **others)
  ours = masking.by_rule(rules, params)
  scoring.check_names([spec for spec, _ in ours], others)
  others, masks = scoring.by_path(others), {}
  for spec, leaves in ours:
    masks |= masking.masks_at(spec, leaves, uses, 1.0, others)
  return masking.apply_masks(params, masks)


def _are_rules(x) -> bool:
  """Pairs that begin with a string are no tree of arrays."""
  return (
    isinstance(x, (list, tuple))
    and len(x) > 0
    and all(isinstance(r, (list, tuple)) and len(r) == 2 for r in x)
    and all(isinstance(r[0], str) for r in x)
  )
