"""Which leaves get masks, and the masks that a rule means at any sparsity.

    mask   = the share of highest score that a rule keeps
    leaf   = where(mask, w, 0)

What pruning at once (`prune`) and the methods that change masks while a network trains
(`methods`) are made of.
"""

from collections.abc import Sequence
import re
from typing import Any
import warnings

import jax
import jax.numpy as jnp

from jaxopt_compress import modules
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import masked_array
from jaxopt_compress.pruning import ranking
from jaxopt_compress.pruning import scoring
from jaxopt_compress.pruning import spec as spec_lib
from jaxopt_compress.pruning import words
from jaxopt_compress.pruning.storage import bitmask
from jaxopt_compress.pruning.storage import n_m_array

Sparsity = spec_lib.Sparsity

# What a rule says: a Sparsity, or the words that one is said in (`words`).
Rules = Sequence[tuple[str, Sparsity | float | str | None]]

# What part of a leaf may be masked by place without a word: weights of few bits, such
# as bfloat16, always have some.
_MANY_TIES = 0.1


def apply_masks(
  params: Any,
  masks: dict[str, jax.Array],
  gradient: str = 'masked',
  scores: dict[str, jax.Array] | None = None,
) -> Any:
  """Puts `Masked(leaf, mask)` in place of the leaves that have a mask.

  Args:
    params: a tree of arrays.
    masks: `{path: bool mask}`.
    gradient: of the leaves: 'masked' or 'dense', see `Masked`.
    scores: `{path: what is learned about each weight}`, or None.

  Raises:
    ValueError: a mask for a leaf that is not there, or of another shape.
  """
  for path, x in rules_lib.named_leaves(params):
    stored = array.is_compressed(x) and not isinstance(x, masked_array.Masked)
    if path in masks and stored:
      advice = (
        'would be stored as floats. Prune first: jc.chain(jc.methods.gradual(...),'
        ' jc.fake_quantize(...)).'
      )
      if isinstance(x, (bitmask.Bitmask, n_m_array.NMArray)):
        advice = (
          'would be stored beside its own. Prune jc.materialize(params), in which'
          ' its zeros rank last, and jc.sparsify that again.'
        )
      raise ValueError(
        f'{path} is {x.describe()} already; a mask over it {advice}'
      )
  check_masks(params, masks)
  scores = scores or {}

  def with_mask(path, x):
    if path not in masks:
      return x
    return masked_array.Masked(x, masks[path], scores.get(path), gradient)

  return modules.dress(rules_lib.map_named(with_mask, params), params)


def check_masks(params: Any, masks: dict[str, jax.Array]) -> None:
  """Raises a ValueError where masks are not of these parameters."""
  shapes = {
    path: tuple(getattr(x, 'shape', ()))
    for path, x in rules_lib.named_leaves(params)
  }
  for path, mask in masks.items():
    if shapes.get(path) != tuple(mask.shape):
      was = f'shape {shapes[path]}' if path in shapes else 'no such leaf'
      raise ValueError(
        f'A mask of shape {tuple(mask.shape)} for {path!r}: {was}. Masks belong to'
        ' the parameters that they were made from.'
      )


def by_rule(rules: Rules, params: Any) -> list[tuple[Sparsity, dict[str, Any]]]:
  """The leaves of each rule that prunes, in the order of the rules.

  Args:
    rules: ordered `(regex, value)`, as for `prune`.
    params: a tree of arrays; compressed leaves count as one.

  Returns:
    [(Sparsity, {path: leaf})].

  Raises:
    ValueError: a leaf that no rule covers, a rule that is never used, or a value
      that says no sparsity.

  >>> rules = [(r'b', None), (r'.*', Sparsity(0.5))]
  >>> [list(leaves) for _, leaves in by_rule(rules, {'a': 1.0, 'b': 2.0})]
  [['a']]
  """
  pairs = words.rules(rules)
  shares = zip(pairs, rules_lib.split(pairs, params), strict=True)
  return [(spec, leaves) for (_, spec), leaves in shares if spec is not None]


def compute(
  spec: Sparsity,
  leaves: dict[str, Any],
  uses: dict | None = None,
  fraction: float | jax.Array | None = None,
  *,
  scores: dict[str, jax.Array] | None = None,
  **others: Any,
) -> dict[str, jax.Array]:
  """The masks of the leaves of one rule, at any sparsity.

  What methods that change masks are made of: `prune` computes them at the sparsity
  of a schedule, others from scores of their own.

  Args:
    spec: what the rule says; its schedule has no part in this.
    leaves: `{path: leaf}` of the rule, as `by_rule` gives them.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    fraction: of zeros, in [0, target]; it may be traced. None is `spec.target`.
    scores: `{path: a score for each weight}`, of the shapes of the leaves; None for
      those that the rule names. Infinite ones always stay, or never.
    **others: what the rule's score takes beside weights, as for `prune`.

  Returns:
    `{path: bool mask}`, True where a weight is kept.

  Raises:
    ValueError: as for `prune`.

  >>> leaves = {'w': jnp.array([4., 3., 2., 1.])}
  >>> compute(Sparsity(0.5), leaves, fraction=0.25)['w'].tolist()
  [True, True, True, False]
  >>> own = {'w': jnp.array([0., 1., 2., 3.])}
  >>> compute(Sparsity(0.5), leaves, scores=own)['w'].tolist()
  [False, False, True, True]
  """
  ramp = 1.0
  if fraction is not None:
    # Exactly 1 at the target, whatever the division rounds to.
    there = jnp.asarray(fraction) >= spec.target
    ramp = jnp.where(there, 1.0, fraction / max(spec.target, 1e-9))
  return masks_at(spec, leaves, uses, ramp, scoring.by_path(others), scores)


def masks_at(
  spec, leaves, uses, ramp, others, scores=None
) -> dict[str, jax.Array]:
  """The masks of the leaves of one rule at `ramp`, of given scores or its own."""
  axes = {path: axes_of(path, x, spec, uses) for path, x in leaves.items()}
  if scores is None:
    scores = scoring.scores(spec, leaves, axes, others)
  shapes = {path: x.shape for path, x in leaves.items()}
  if (given := {path: s.shape for path, s in scores.items()}) != shapes:
    raise ValueError(
      f'Scores of {given} for leaves of {shapes}; a number for each weight of each is'
      ' expected.'
    )
  masks = ranking.masks(spec, scores, axes, ramp)
  if not any(isinstance(m, jax.core.Tracer) for m in masks.values()):
    told = ranking.by_place(spec, scores, axes, ramp, masks)
    for path, number in told.items():
      _tell_ties(path, int(number), masks[path].size)
  return masks


def _tell_ties(path, number, size):
  if number > _MANY_TIES * size:
    warnings.warn(
      f'{path}: whether {number} of its {size} weights stay depends on their order'
      ' alone, as scores are equal; the first stay. Leave constant leaves as they'
      f' are by a rule (r"{re.escape(path)}", None), and prune before you quantise.',
      stacklevel=2,
    )


def axes_of(
  path: str, x: Any, spec: Sparsity, uses: dict | None = None
) -> uses_lib.Axes:
  """What the axes of a leaf are: contracted, stacked (layers), or free."""
  # Any leaf can be pruned weight by weight, even one that is in no product; rows, and
  # shares of layers, are known from products alone.
  found = uses_lib.of(path, uses)
  in_none = found is not None and not any(u.contracted for u in found)
  plain = spec.kind == 'unstructured' and spec.allocation == 'uniform'
  if plain and spec.scope != 'row' and (uses is None or in_none):
    # A matrix has no layers, but [layers, n] of scales in a scan has; [n, 1], of
    # which not every row could keep a weight, is none.
    has_layers = x.ndim > (1 if in_none else 2)
    stack = has_layers and x.size * (1 - spec.target) >= x.shape[0]
    every = tuple(range(-x.ndim, 0))
    return uses_lib.Axes((), every[: int(stack)], every[int(stack) :])
  return uses_lib.axes(path, x, uses)
