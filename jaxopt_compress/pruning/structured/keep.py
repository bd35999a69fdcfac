"""Which channels stay: a plan for a smaller network.

    importance = jc.importance(structure, params)
    plan = jc.select(structure, importance, keep=0.5)
    small = jc.shrink(plan, params)       # as large as it says, as fast as it is small

While a network is trained towards a plan, `plan.mask(params)` is what it will be.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import re

import numpy as np

from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.structure import next_steps
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning.structured import budget as budget_lib
from jaxopt_compress.pruning.structured import quotas

Rules = Sequence[tuple[str, float | str | None]]


def select(
  structure: structure_lib.Structure,
  importance: Mapping[str, np.ndarray],
  *,
  keep: float | None = None,
  budget: budget_lib.Budget | None = None,
  by: Rules | None = None,
  scope: str | Sequence[tuple[str, str]] = 'local',
  at_least: float = 1,
  at_most: float = 1.0,
  multiple: int = 1,
  rounding: str = 'down',
) -> plan_lib.Plan:
  """The plan that keeps the channels of most importance.

  Args:
    structure: what `jc.structure(apply)(params, x)` returned.
    importance: {group: number for each channel}; groups without stay as they are. Of
      [*sizes of `Group.within`, size], each channel of what the group lies within
      keeps its own, as many as the others.
    keep: the fraction of the channels that stays.
    budget: instead of `keep`: as many as the budget allows.
    by: an ordered list `(regex, fraction)` over the names of the groups in
      `importance`: of those it matches that much stays (or so many channels, a whole
      number above 1), or all of it (None), or what `keep` or the budget says
      ('keep'). Without it that is so for all groups but those that are not exact, or
      of which the program has sizes: they stay.
    scope: which groups are ranked together, by one threshold: 'local', each by
      itself; 'alike', those whose names differ in numbers alone, as layers do;
      'global', all; or an ordered list `(regex, label)`: those of one label. What
      `normalize` of `importance` made of them is what is compared.
    at_least, at_most: of each group so many channels stay in any case, or no more: a
      fraction below or at 1.0, or a whole number.
    multiple: sizes are rounded to multiples of it; groups of fewer channels stay as
      they are.
    rounding: 'down', 'nearest' or 'up'. `Plan.asked` and `print(plan)` say what was
      asked for; a budget holds for what is rounded.

  Raises:
    ValueError: numbers out of range, an importance that does not fit or is not
      finite, a rule that matches nothing, a multiple that leaves nothing to remove,
      or a budget that cannot be met.

  >>> import jax, jax.numpy as jnp
  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.ones((1, 4)), 'b': jnp.ones((4, 1))}
  >>> found = structure_lib.structure(f)(p, jnp.ones((1, 1)))
  >>> plan = select(found, {'a:-1': np.array([3., 1., 4., 2.])}, keep=0.5)
  >>> plan.sources['a:-1'].tolist()
  [0, 2]
  """
  if (keep is None) == (budget is None):
    limits = getattr(budget, 'limits', budget)
    raise ValueError(f'keep={keep} and budget={limits}: give one of the two.')
  if budget is not None and not isinstance(budget, budget_lib.Budget):
    raise ValueError(
      f'budget={budget!r}: a jc.Budget is expected, as jc.Budget(apply, params, x,'
      ' flops=0.5).'
    )
  importance = checked(structure, importance)
  fractions = _fractions(structure, importance, by)
  limits = quotas.Limits(at_least, at_most, multiple, rounding)
  ranked = {
    name: np.sort(importance[name])[..., ::-1].reshape(-1, group.size).mean(0)
    for name, group in structure.groups.items()
    if fractions.get(name) is not None
  }
  scopes = _scopes(scope, [n for n in ranked if fractions[n] == 'keep'])

  def planned(keep):
    asked = {
      name: quotas.alone(ranked[name].size, fraction, limits)
      for name, fraction in fractions.items()
      if fraction is not None and fraction != 'keep'
    }
    for names in scopes:
      together = {name: ranked[name] for name in names}
      asked |= quotas.together(together, keep, limits)
    sources = {}
    for name, n in asked.items():
      n = max(
        limits.rounded(n, ranked[name].size), structure.groups[name].least
      )
      # Of equal importances the first stay.
      order = np.argsort(-importance[name], kind='stable')
      sources[name] = np.sort(order[..., :n])
    return plan_lib.Plan(structure, sources, asked)

  if budget is not None:
    plan = _largest(planned, budget, limits)
    # Of what a budget leaves, only rules ask for a size.
    ruled = {n: k for n, k in plan.asked.items() if fractions[n] != 'keep'}
    return dataclasses.replace(plan, asked=ruled)
  _check_fraction('keep', keep)
  return _smaller(planned(keep), limits)


def _smaller(plan, limits) -> plan_lib.Plan:
  """The plan, unless rounding leaves all as it is."""
  now = {name: plan.structure.groups[name].size for name in plan.sizes}
  if plan.sizes == now and plan.asked != now:
    raise ValueError(
      f'Nothing goes: of {dict(plan.asked)} channels multiple={limits.multiple} with'
      f' rounding={limits.rounding!r} makes {now}, all that there are. Take a'
      ' smaller multiple.'
    )
  return plan


def _largest(planned, budget, limits) -> plan_lib.Plan:
  """The plan of the largest fraction that the budget allows."""
  known = {}

  def over(plan):
    key = tuple(plan.sizes.values())
    if key not in known:
      costs = budget.costs(plan)
      known[key] = {k: n for k, n in costs.items() if n > budget.limits[k]}
    return known[key]

  least, whole = planned(0.0), planned(1.0)
  if too_much := over(least):
    _smaller(least, limits)
    raise ValueError(
      f'The budget cannot be met: the smallest network that these groups give has'
      f' {too_much}, and the limits are {budget.limits}. Let more groups go, by'
      ' rules, or lower multiple or at_least.'
    )
  if not over(whole):
    return whole
  low, high, fits, next_up = 0.0, 1.0, least, whole
  # Sizes are whole numbers: most halvings give a plan that is known already.
  while high - low > 1e-7:
    middle = (low + high) / 2
    plan = planned(middle)
    if over(plan):
      high, next_up = middle, plan
    else:
      low, fits = middle, plan
  # In the last step several groups grow at once. Some of them may still do so, but
  # layers that are alike stay alike.
  for names in _alike(fits.sources).values():
    larger = plan_lib.Plan(
      fits.structure,
      fits.sources | {name: next_up.sources[name] for name in names},
      {**fits.asked, **{name: next_up.asked[name] for name in names}},
    )
    if not over(larger):
      fits = larger
  return fits


def _alike(names: Iterable[str]) -> dict[str, list[str]]:
  """{kind: groups whose leaves differ in numbers alone, at the same axis}.

  >>> list(_alike(['layer_0/w:-1', 'layer_1/w:-1', 'layer_1/w:-2']).values())
  [['layer_0/w:-1', 'layer_1/w:-1'], ['layer_1/w:-2']]
  """
  found: dict[str, list[str]] = {}
  for name in names:
    path, _, axis = name.rpartition(':')
    found.setdefault(re.sub(r'\d+', '#', path) + axis, []).append(name)
  return found


def _scopes(scope, names) -> list[list[str]]:
  """Lists of groups that are ranked together."""
  if not isinstance(scope, str):
    found: dict[str, list[str]] = {}
    for name, label in rules_lib.match(scope, dict.fromkeys(names, 0)).items():
      found.setdefault(label, []).append(name)
    return list(found.values())
  choices.one_of('scope', scope, ('local', 'alike', 'global'), '=')
  if scope == 'alike':
    return list(_alike(names).values())
  return [[*names]] if scope == 'global' else [[name] for name in names]


def _fractions(structure, importance, by):
  """{group: fraction, number of channels, 'keep', or None for all of it}."""
  if by is None:
    groups = {name: structure.groups[name] for name in importance}
    found = {
      name: None if group.inexact or group.fixed else 'keep'
      for name, group in groups.items()
    }
  else:
    _check_locked(structure, importance, by)
    found = rules_lib.match(by, dict.fromkeys(importance, 0))
  for name, fraction in found.items():
    if fraction is not None and fraction != 'keep':
      size = structure.groups[name].size
      if not (isinstance(fraction, int) and 1 <= fraction <= size):
        _check_fraction(name, fraction)
  if not any(f is not None for f in found.values()):
    kept = [structure.groups[name] for name in found] if by is None else []
    whys = list(dict.fromkeys(why for group in kept for why in group.remarks))
    more = f'; and {len(whys) - 2} more, see print(structure)' * (len(whys) > 2)
    step = (
      ' Then make the model of these sizes: jc.config_delta finds its config, and'
      ' jc.rebuild the model that was saved with one.'
    ) * any(group.fixed for group in kept)
    raise ValueError(
      f'All of {list(found)[:5]} stay as they are:'
      f' {"; ".join(whys[:2]) or "a rule says so"}{more}. Name the ones that may go,'
      f" as in by=[('mlp.*', 'keep'), ('.*', None)].{step}"
    )
  return found


def _check_locked(structure, importance, by):
  """Raises a ValueError for a rule that only names groups that are locked."""
  for pattern, _ in rules_lib.compiled_rules(by):
    named = [n for n in structure.groups if pattern.fullmatch(n)]
    if named and not any(n in structure.free for n in named):
      locked = structure.groups[named[0]].locked
      raise ValueError(
        f'The rule {pattern.pattern!r} names {named[0]}, which may not'
        f' go: {next_steps.said(named[0], locked)}'
      )


def _check_fraction(name, keep):
  if not isinstance(keep, (int, float)) or not 0 < keep <= 1:
    raise ValueError(
      f'{name}={keep}; a fraction in (0, 1] is expected, or in rules a number of'
      ' channels that there are.'
    )


def checked(structure, importance) -> dict[str, np.ndarray]:
  """The importances as arrays, or ValueError where one does not fit."""
  if not importance:
    raise ValueError('No group has an importance: see jc.importance.')
  for name, x in importance.items():
    if name not in structure.free:
      known = list(structure.free)[:5]
      why = structure.groups[name].locked if name in structure.groups else ()
      step = f' {next_steps.said(name, why)}' if why else ''
      raise ValueError(
        f'{name} is no group that may go. Such are {known}.{step}'
      )
    group = structure.groups[name]
    size = group.size
    nested = *(structure.groups[g].size for g in group.within), size
    if np.shape(x) not in ((size,), nested) or not np.isfinite(x).all():
      raise ValueError(
        f'The importance of {name} has shape {np.shape(x)} and'
        f' {int((~np.isfinite(x)).sum())} numbers that are not finite; {size} finite'
        ' numbers are expected.'
      )
  return {name: np.asarray(x) for name, x in importance.items()}
