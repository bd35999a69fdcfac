"""Which channels stay: a plan for a smaller network.

    importance = jc.importance(structure, params)
    plan = jc.select(structure, importance, keep=0.5)
    small = jc.shrink(plan, params)       # as large as it says, as fast as it is small

While a network is trained towards a plan, `plan.mask(params)` is what it will be.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from jaxopt_compress.analysis import plan as plan_lib
from jaxopt_compress.analysis import structure as structure_lib
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning import budget as budget_lib

# What bisection leaves open of the fraction that is kept.
_HALVINGS = 12


def select(
  structure: structure_lib.Structure,
  importance: Mapping[str, np.ndarray],
  *,
  keep: float | None = None,
  budget: budget_lib.Budget | None = None,
  by: Sequence[tuple[str, float | str | None]] | None = None,
  multiple: int = 1,
  at_least: int = 1,
) -> plan_lib.Plan:
  """The plan that keeps the channels of most importance.

  Args:
    structure: what `jc.structure(apply)(params, x)` returned.
    importance: {group: number for each channel}; groups without stay as they are. Of
      [*sizes of `Group.within`, size], each channel of what the group lies within
      keeps its own, as many as the others.
    keep: the fraction of each group that stays.
    budget: instead of `keep`: as much of each group as the budget allows.
    by: an ordered list `(regex, fraction)` over the names of the groups in
      `importance`: of those it matches that much stays, or all of it (None), or what
      `keep` or the budget says ('keep'). Without it that is so for all groups but
      those that are not exact, or of which the program has sizes: they stay.
    multiple: sizes are rounded to multiples of it, down; groups of fewer channels
      stay as they are.
    at_least: so many channels stay in any case.

  Raises:
    ValueError: numbers out of range, an importance that does not fit or is not
      finite, a rule that matches nothing, or a budget that cannot be met.

  >>> import jax, jax.numpy as jnp
  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.ones((1, 4)), 'b': jnp.ones((4, 1))}
  >>> found = structure_lib.structure(f)(p, jnp.ones((1, 1)))
  >>> plan = select(found, {'a:-1': np.array([3., 1., 4., 2.])}, keep=0.5)
  >>> plan.sources['a:-1'].tolist()
  [0, 2]
  """
  if (keep is None) == (budget is None):
    raise ValueError(f'keep={keep} and budget={budget}: give one of the two.')
  if multiple < 1 or at_least < 1:
    raise ValueError(
      f'multiple={multiple}, at_least={at_least}: 1 or more each.'
    )
  _check_importance(structure, importance)
  fractions = _fractions(structure, importance, by)
  if not any(f is not None for f in fractions.values()):
    raise ValueError(
      f'All of {list(fractions)[:5]} stay as they are: they are not exact, the program'
      ' has their sizes (see print(structure)), or a rule says so. Name the ones that'
      " may go, as in by=[('mlp.*', 'keep'), ('.*', None)]."
    )

  def planned(keep):
    sources = {}
    for name, fraction in fractions.items():
      if fraction is not None:
        kept = keep if fraction == 'keep' else fraction
        n = _size(structure.groups[name].size, kept, multiple, at_least)
        # Of equal importances the first stay.
        order = np.argsort(-np.asarray(importance[name]), kind='stable')
        sources[name] = np.sort(order[..., :n])
    return plan_lib.Plan(structure, sources)

  if budget is None:
    _check_fraction('keep', keep)
    return planned(keep)
  return _largest(planned, budget)


def _largest(planned, budget) -> plan_lib.Plan:
  """The plan of the largest fraction that the budget allows."""

  def over(plan):
    costs = budget.costs(plan)
    return {k: n for k, n in costs.items() if n > budget.limits[k]}

  least, whole = planned(0.0), planned(1.0)
  if too_much := over(least):
    raise ValueError(
      f'The budget cannot be met: the smallest network that these groups give has'
      f' {too_much}, and the limits are {budget.limits}. Let more groups go, by'
      ' rules, or lower multiple or at_least.'
    )
  if not over(whole):
    return whole
  low, high, best = 0.0, 1.0, least
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    plan = planned(middle)
    if over(plan):
      high = middle
    else:
      low, best = middle, plan
  return best


def _size(size, keep, multiple, at_least) -> int:
  """How many of `size` channels stay."""
  if size < max(multiple, at_least):
    return size
  n = int(size * keep + 1e-6) // multiple * multiple
  floor = -(-at_least // multiple) * multiple
  return min(max(n, floor), size)


def _fractions(structure, importance, by):
  """{group: fraction, 'keep', or None for all of it}."""
  if by is None:
    groups = {name: structure.groups[name] for name in importance}
    return {
      name: None if group.inexact or group.fixed else 'keep'
      for name, group in groups.items()
    }
  found = rules_lib.match(by, dict.fromkeys(importance, 0))
  for name, fraction in found.items():
    if fraction is not None and fraction != 'keep':
      _check_fraction(name, fraction)
  return found


def _check_fraction(name, keep):
  if not 0 < keep <= 1:
    raise ValueError(f'{name}={keep}; a fraction in (0, 1] is expected.')


def _check_importance(structure, importance):
  for name, x in importance.items():
    if name not in structure.free:
      known = list(structure.free)[:5]
      raise ValueError(f'{name} is no group that may go. Such are {known}.')
    group = structure.groups[name]
    size = group.size
    nested = *(structure.groups[g].size for g in group.within), size
    if np.shape(x) not in ((size,), nested) or not np.isfinite(x).all():
      raise ValueError(
        f'The importance of {name} has shape {np.shape(x)} and'
        f' {int((~np.isfinite(x)).sum())} numbers that are not finite; {size} finite'
        ' numbers are expected.'
      )
